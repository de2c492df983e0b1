"""`report.html` of a run: one file that shows what went in, what came out and why, without a network or a server.

Built only from what the workspace holds (`contents.py`), with as many pictures as fit a size (`media.py`), as one page
(`page.py`, with page.html, page.css and page.js). Knows nothing of Ray or of how the workspace came to be.
"""

from pipeline.report.contents import gather
from pipeline.report.media import MEDIA_BYTES, choose_media
from pipeline.report.page import build_page
from retrieval.store import Store

__all__ = ["write_report"]


def write_report(workspace: Store, run_id: str, *, media_bytes: int = MEDIA_BYTES) -> str:
    """Write `runs/<run_id>/report.html` and return its URL.

    Args:
        workspace: the folder that holds `runs/` and `videos/`.
        run_id: a run whose `run.json`, `results.parquet` and `failures.parquet` are written. A missing `finished_at`
            means a run still going.
        media_bytes: most bytes that previews and thumbnails may take of the file.

    Raises:
        FileNotFoundError: if the run's tables are not there. What is missing or broken of a single video is told in the
            report instead.
    """
    run = gather(workspace, run_id)
    media = choose_media(workspace, run.videos, max_bytes=media_bytes)
    folder = workspace / "runs" / run_id
    folder.write_bytes("report.html", build_page(run, media).encode())
    return f"{folder.url}/report.html"
