"""Names of the files of a committed segment, and which segments are committed. Light: the driver plans and resumes with it.

    segment-00012.parquet   the latents (retrieval/latents.py)
    segment-00012.json      the commit record, written last

A segment is done when both are there.
"""

import re

from retrieval.store import Store


def parquet_name(index: int) -> str:
    return f"segment-{index:05d}.parquet"


def record_name(index: int) -> str:
    return f"segment-{index:05d}.json"


def committed_segments(latents: Store) -> set[int]:
    """Segments that are done. One listing."""
    names = set(latents.names())
    found = (re.fullmatch(r"segment-(\d{5,})\.json", name) for name in names)
    indices = {int(match[1]) for match in found if match}
    return {index for index in indices if parquet_name(index) in names}
