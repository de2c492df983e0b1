"""The assemble stage: all chunks of a video become one file with the source's timestamps, audio and subtitles.

The finished file appears at once or not at all, and `record.json`, written last, says that the edit is done and how every
segment came to be. Knows nothing of Ray.
"""

import io
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.stages.context import EditContext, chunk_name
from pipeline.versions import package_versions
from pipeline.video.io import assemble, write_video
from pipeline.video.preview import preview_stride

MIN_PREVIEW_FPS = 5.0
"""A long film's preview is a time-lapse rather than a slide show."""


def assemble_video(context: EditContext, *, size: str) -> dict[str, Any]:
    """Write `edited.mp4` (or `.mkv`), `preview.mp4` and last `record.json`; then drop the chunks."""
    started = time.time()
    chunks = context.store / "chunks"
    names = [chunk_name(row.segment, size) for row in context.plan]
    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        local = [local_copy(chunks, name, Path(folder)) for name in names]
        result = assemble(local, context.source_uri, context.inspection, Path(folder) / "edited")
        output = Path(result.path).name
        preview = Path(folder) / "preview.mp4"
        rate = min(30.0, max(MIN_PREVIEW_FPS, context.info.fps / preview_stride(context.info.num_frames)))
        write_video(preview, preview_frames(context), rate)
        context.store.put_file(preview, "preview.mp4")
        context.store.put_file(Path(result.path), output)
    record = {
        "edit_id": context.store.url.rsplit("/", 1)[-1],
        "spec": context.spec.to_json(),
        "source": context.source_uri,
        "versions": package_versions(),
        "hardware": platform.processor() or platform.machine(),
        "size": size,
        "output": output,
        "container": result.container,
        "container_reason": result.why,
        "notes": list(result.notes),
        "num_frames": context.info.num_frames,
        "fps": context.info.fps,
        "segments": [segment_record(context, index) for index in range(len(context.plan))],
        "assembled": {"started_at": started, "finished_at": time.time()},
    }
    context.store.write_json("record.json", record)
    for name in chunks.names(".mp4") + chunks.names(".preview.parquet"):
        chunks.delete(name)
    return {"output": output, "assemble_s": round(time.time() - started, 4)}


def local_copy(chunks: Any, name: str, folder: Path) -> Path:
    if chunks.is_local:
        return Path(chunks.path(name))
    path = folder / name
    path.write_bytes(chunks.read_bytes(name))
    return path


def preview_frames(context: EditContext) -> Iterator[np.ndarray]:
    chunks = context.store / "chunks"
    for name in chunks.names(".preview.parquet"):
        for jpeg in chunks.read_table(name)["jpeg"].to_pylist():
            yield np.asarray(Image.open(io.BytesIO(jpeg)))


def segment_record(context: EditContext, index: int) -> dict[str, Any]:
    row = context.plan[index]
    return {
        "segment": row.segment,
        "shot": row.shot,
        "start_frame": row.start_frame,
        "end_frame": row.end_frame,
        "seed": row.seed,
        "memory": [
            {"segment": item.segment, "role": item.role, "score": item.score, "kernel": list(item.kernel)}
            for item in row.memory
        ],
        **context.latents.record(index),
    }
