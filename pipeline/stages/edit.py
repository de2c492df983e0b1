"""The edit stage: source frames and remembered latents in, one committed latent out. Knows nothing of Ray or scheduling.

The result is a pure function of the spec, the plan and the latents read from the STORE, never of what happens to be in a
worker's memory: a memory is always used as a reader of the store would get it, so a resumed run and an undisturbed one
agree byte for byte.
"""

import time
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.types import Editor, EditRequest, MemoryVideo
from pipeline.stages.context import EditContext
from pipeline.video.io import decode_span
from retrieval.latents import latent_meta
from retrieval.schema import PlannedSegment


def encode_source(context: EditContext, editor: Editor, segment: PlannedSegment) -> Float[Tensor, "c t h w"]:
    """Source latents of a segment; a shorter one is padded by its last frame to the editor's next legal length."""
    frames = decode_span(
        context.source_uri, context.inspection, segment.start_frame, segment.end_frame, size=context.size
    )
    missing = editor.geometry.padded_frames(segment.num_frames) - segment.num_frames
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    return editor.encode(torch.from_numpy(frames))


def load_memory(context: EditContext, segment: PlannedSegment) -> tuple[MemoryVideo, ...]:
    memory = []
    for planned in segment.memory:
        tensors = context.latents.get(planned.segment, names=("edited", "source"))
        memory.append(
            MemoryVideo(
                role=planned.role,
                kernel=planned.kernel,
                edited=tensors["edited"].float(),
                source=tensors["source"].float(),
            )
        )
    return tuple(memory)


def load_state(context: EditContext, segment: PlannedSegment) -> dict[str, Tensor]:
    """What the previous segment's editor asked to be carried on (empty for editors without state)."""
    for planned in segment.memory:
        if planned.role == "previous":
            tensors = context.latents.get(planned.segment)
            return {name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")}
    return {}


def edit_segment(
    context: EditContext,
    editor: Editor,
    index: int,
    *,
    worker: dict[str, Any],
    source: Float[Tensor, "c t h w"] | None = None,
) -> dict[str, Any]:
    """Generate and commit one segment; a committed one is left as it is.

    Args:
        worker: who does it (node, process), for the record.
        source: the segment's source latents where they were prefetched.

    Returns:
        `generated` (whether anything was made) and timings in seconds.
    """
    if context.latents.is_committed(index):
        return {"generated": False}
    segment = context.plan[index]
    started = time.time()
    if source is None:
        source = encode_source(context, editor, segment)
    encoded = time.time()
    memory = load_memory(context, segment)
    loaded = time.time()
    result = editor.edit(
        EditRequest(
            instruction=context.instruction,
            source=source,
            memory=memory,
            seed=segment.seed,
            settings=context.spec.memory,
            state=load_state(context, segment),
        )
    )
    if not torch.isfinite(result.latent).all():
        raise FloatingPointError(f"segment {index}: the editor's latent is not finite")
    generated = time.time()
    tensors = {"edited": result.latent, "source": source}
    tensors.update({f"state.{name}": value for name, value in result.state.items()})
    timings = {
        "encode_s": round(encoded - started, 4),
        "memory_s": round(loaded - encoded, 4),
        "generate_s": round(generated - loaded, 4),
    }
    context.latents.put(
        index,
        tensors,
        meta=latent_meta(segment, weights_revision=editor.weights_revision),
        record={"worker": worker, "started_at": started, "finished_at": time.time(), "timings": timings},
    )
    return {"generated": True, **timings}
