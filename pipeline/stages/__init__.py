"""What a worker process does with tasks: builds its editors once, then edits, renders and assembles. Knows nothing of Ray."""

import os
import socket
import threading
from collections import OrderedDict
from importlib import import_module
from typing import Any

import torch

from model.types import Editor
from pipeline.stages.assemble import assemble_video
from pipeline.stages.context import EditContext, load_context
from pipeline.stages.edit import edit_segment, encode_source
from pipeline.stages.render import render_segment
from pipeline.tasks import Task
from retrieval.latents import LatentLRU

OPEN_CONTEXTS = 8
"""Edits whose plan a worker keeps open."""
MEMORY_LRU_BYTES = 256 << 20
"""Latents of any edit that a worker keeps, so that a chain of segments does not read its memories again."""


class EditStages:
    """The `Stages` of the main job.

    Args:
        size: "source" or "model", the resolution of the result.
        editor_factory: "module:callable" that makes an Editor from a preset name and `device=`.
        device: "cpu", "cuda", or None for the GPU where there is one.
    """

    def __init__(
        self, *, size: str, editor_factory: str = "model.presets:load_editor", device: str | None = None
    ) -> None:
        module, _, function = editor_factory.partition(":")
        self._make_editor = getattr(import_module(module), function)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._size = size
        self._editors: dict[str, Editor] = {}
        self._lru = LatentLRU(MEMORY_LRU_BYTES)
        self._contexts: OrderedDict[str, EditContext] = OrderedDict()
        self._prefetched: dict[Task, torch.Tensor] = {}
        # A task and the prefetch for the next one run side by side; loading weights switches torch's global state.
        self._loading = threading.Lock()

    def run(self, task: Task) -> dict[str, Any]:
        context = self._context(task.edit_url)
        worker = {"node": socket.gethostname(), "pid": os.getpid()}
        if task.kind == "edit":
            source = self._prefetched.pop(task, None)
            self._prefetched.clear()
            return edit_segment(context, self._editor(context.preset), task.index, source=source, worker=worker)
        if task.kind == "render":
            return render_segment(context, self._editor(context.preset), task.index, size=self._size)
        return assemble_video(context, size=self._size)

    def prefetch(self, task: Task) -> None:
        """Decode and encode the source of the next segment, and read the memories of it that are committed."""
        if task.kind != "edit":
            return
        context = self._context(task.edit_url)
        segment = context.plan[task.index]
        self._prefetched[task] = encode_source(context, self._editor(context.preset), segment)
        for planned in segment.memory:
            if context.latents.is_committed(planned.segment):
                context.latents.get(planned.segment)

    def _context(self, edit_url: str) -> EditContext:
        with self._loading:
            if edit_url not in self._contexts:
                self._contexts[edit_url] = load_context(edit_url, lru=self._lru)
                while len(self._contexts) > OPEN_CONTEXTS:
                    self._contexts.popitem(last=False)
            self._contexts.move_to_end(edit_url)
            return self._contexts[edit_url]

    def _editor(self, preset: str) -> Editor:
        with self._loading:
            if preset not in self._editors:
                self._editors[preset] = self._make_editor(preset, device=self._device)
            return self._editors[preset]
