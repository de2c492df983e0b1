"""The render stage: a committed latent becomes one encoded chunk, off the critical path. Knows nothing of Ray.

`size="model"` writes the editor's own frames. `size="source"` adds the edit to the source's own pixels: the decoded edit
minus the decoded SOURCE latents (so that the codec's own error cancels), upsampled edge-aware. Frames stream through in
small batches; memory does not depend on length or size of the video beyond a few frames.
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
from pipeline.video.decode import iter_span
from pipeline.video.encode import encode_chunk
from pipeline.video.preview import write_thumbnail
from pipeline.video.upscale import carry_edit

PREVIEW_FRAMES = 720
"""Frames of the whole video that the report's preview shows at most."""
PREVIEW_HEIGHT_PX = 240
FRAME_BATCH = 4
"""Frames carried to the source's size at a time."""


def render_segment(context: EditContext, editor: Editor, index: int, *, size: str) -> dict[str, Any]:
    """Write the chunk, thumbnail and preview frames of a segment; nothing happens where they are already there."""
    chunks = context.store / "chunks"
    name = chunk_name(index, size)
    if chunks.exists(name):
        return {"rendered": False}
    started = time.time()
    segment = context.plan[index]
    tensors = context.latents.get(index, names=("edited", "source"))
    edited = editor.decode(tensors["edited"].float())[: segment.num_frames]
    decoded_source = editor.decode(tensors["source"].float())[: segment.num_frames]
    preview_stride = max(1, -(-context.info.num_frames // PREVIEW_FRAMES))
    preview: list[tuple[int, bytes]] = []

    def frames() -> Iterator[np.ndarray]:
        source_size = None if size == "source" else context.size
        span = iter_span(
            context.source_uri, context.inspection, segment.start_frame, segment.end_frame, size=source_size
        )
        for start in range(0, segment.num_frames, FRAME_BATCH):
            source = np.stack([next(span) for _ in range(min(FRAME_BATCH, segment.num_frames - start))])
            stop = start + len(source)
            if size == "source":
                result = carry_edit(source, edited[start:stop], decoded_source[start:stop])
            else:
                result = (edited[start:stop].clamp(0, 1) * 255).round().byte().numpy()
            for offset in range(len(source)):
                frame = segment.start_frame + start + offset
                if frame == segment.start_frame:
                    chunks.write_bytes(thumbnail_name(index), thumbnail(source[offset], result[offset]))
                if frame % preview_stride == 0:
                    preview.append((frame, pair_jpeg(source[offset], result[offset])))
                yield result[offset]

    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        local = Path(folder) / "chunk.mp4"
        encode_chunk(
            local,
            frames(),
            context.inspection.pts[segment.start_frame : segment.end_frame],
            context.info,
            size=None if size == "source" else context.size,
        )
        if preview:
            numbers, pairs = zip(*preview, strict=True)
            chunks.write_table(preview_name(index), pa.table({"frame": list(numbers), "jpeg": list(pairs)}))
        chunks.put_file(local, name)
    return {"rendered": True, "render_s": round(time.time() - started, 4)}


def thumbnail(source: np.ndarray, result: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory(prefix="memory-v2v-") as folder:
        path = Path(folder) / "thumbnail.jpg"
        write_thumbnail(path, source, result)
        return path.read_bytes()


def pair_jpeg(source: np.ndarray, result: np.ndarray) -> bytes:
    """Source and result side by side as one small JPEG."""
    height, width = source.shape[:2]
    width = max(2, round(width * PREVIEW_HEIGHT_PX / height / 2) * 2)
    pair = [
        np.asarray(Image.fromarray(frame).resize((width, PREVIEW_HEIGHT_PX), Image.Resampling.BILINEAR))
        for frame in (source, result)
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(pair, axis=1)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
