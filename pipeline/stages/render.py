"""The render stage: a committed latent becomes one encoded chunk, off the critical path. Knows nothing of Ray.

`size="model"` writes the editor's own frames. `size="source"` adds the edit to the source's own pixels: the decoded edit
minus the decoded SOURCE latents, so that the codec's own error cancels (pipeline/video/upscale.py). Frames stream through
one at a time; memory does not depend on the length of the video.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from model.types import Editor
from pipeline.stages.context import EditContext, chunk_name, preview_name, thumbnail_name
from pipeline.video.io import encode_chunk, iter_span
from pipeline.video.preview import PREVIEW_HEIGHT_PX, THUMBNAIL_HEIGHT_PX, preview_stride, side_by_side
from pipeline.video.upscale import iter_carried


def render_segment(context: EditContext, editor: Editor, index: int, *, size: str) -> dict[str, Any]:
    """Write the chunk, thumbnail and preview frames of a segment; nothing happens where they are already there."""
    chunks = context.store / "chunks"
    name = chunk_name(index, size)
    if chunks.exists(name):
        return {"rendered": False}
    started = time.time()
    info, segment = context.info, context.plan[index]
    stride = preview_stride(info.num_frames)
    preview: list[tuple[int, bytes]] = []

    def frames() -> Iterator[np.ndarray]:
        for number, (source, result) in enumerate(frame_pairs(context, editor, index, size=size), segment.start_frame):
            if number == segment.start_frame:
                chunks.write_bytes(thumbnail_name(index), pair_jpeg(context, source, result, THUMBNAIL_HEIGHT_PX))
            if number % stride == 0:
                preview.append((number, pair_jpeg(context, source, result, PREVIEW_HEIGHT_PX)))
            yield result

    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        local = Path(folder) / "chunk.mp4"
        pts = context.inspection.pts[segment.start_frame : segment.end_frame]
        encode_chunk(local, frames(), pts, info, size=context.size if size == "model" else None)
        if preview:
            numbers, pairs = zip(*preview, strict=True)
            chunks.write_table(preview_name(index), pa.table({"frame": list(numbers), "jpeg": list(pairs)}))
        chunks.put_file(local, name)
    return {"rendered": True, "render_s": round(time.time() - started, 4)}


def frame_pairs(
    context: EditContext, editor: Editor, index: int, *, size: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(source, result) frames of a segment, `[H, W, 3]`; what was padded for the editor is cut here."""
    segment = context.plan[index]
    tensors = context.latents.get(index, names=("edited", "source"))
    edited = editor.decode(tensors["edited"])[: segment.num_frames]

    def span(target: tuple[int, int] | None) -> Iterator[np.ndarray]:
        is_16bit = target is None and context.info.bit_depth > 8
        return iter_span(
            context.source_uri,
            context.inspection,
            segment.start_frame,
            segment.end_frame,
            size=target,
            is_16bit=is_16bit,
        )

    if size == "model":
        for source, frame in zip(span(context.size), edited, strict=True):
            yield source, (frame.clamp(0, 1) * 255).round().byte().cpu().numpy()
        return
    decoded_source = editor.decode(tensors["source"])[: segment.num_frames]
    # Two readers of the source would decode it twice: the frames that the generator takes are kept until they are yielded.
    taken: list[np.ndarray] = []

    def sources() -> Iterator[np.ndarray]:
        for source in span(None):
            taken.append(source)
            yield source

    for result in iter_carried(sources(), edited, decoded_source):
        yield taken.pop(0), result


def pair_jpeg(context: EditContext, source: np.ndarray, result: np.ndarray, height_px: int) -> bytes:
    """Source and result side by side, as a viewer sees them, as one small JPEG."""
    eight_bit = [frame if frame.dtype == np.uint8 else (frame >> 8).astype(np.uint8) for frame in (source, result)]
    pair = side_by_side(*eight_bit, height_px=height_px, display_aspect=float(context.info.display_aspect))
    buffer = io.BytesIO()
    Image.fromarray(pair).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
