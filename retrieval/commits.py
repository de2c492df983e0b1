"""Names of the files of a committed segment, and which segments are committed. Light: the driver plans and resumes with it.

    segment-00012.json      how the latents came to be
    segment-00012.parquet   the latents (retrieval/latents.py), written last

A segment is done when the Parquet file is there: it appears whole or not at all, and what it was made from stands in it.
"""

import re

from retrieval.store import Store


def parquet_name(index: int) -> str:
    return f"segment-{index:05d}.parquet"


def record_name(index: int) -> str:
    return f"segment-{index:05d}.json"


def committed_segments(latents: Store) -> set[int]:
    """Segments that are done. One listing."""
    found = (re.fullmatch(r"segment-(\d{5,})\.parquet", name) for name in latents.names())
    return {int(match[1]) for match in found if match}
