"""The bundled editor: real weights, real sampling, rendered worlds it was not trained on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.editor import EncodedLRU, MemoryEditor
from model.memory import MemorySettings, memory_kernel
from model.presets import load_editor, resolve_preset
from model.training.worlds import edited_attribute, make_world, render
from model.transformer import MemoryTransformer3DModel
from model.types import EditRequest, MemoryVideo
from tests.presets import write_random_preset

INSTRUCTION = "turn the pink ball green"


@pytest.fixture(scope="module")
def editor() -> MemoryEditor:
    torch.set_num_threads(1)
    return load_editor("tiny")


@pytest.fixture(scope="module")
def source(editor: MemoryEditor) -> Tensor:
    return editor.encode(render(make_world(3, split="heldout"), 0, 17, size=(40, 96)).source)


def memory_of(latents: Tensor, source: Tensor, role: str, rank: int = 0) -> MemoryVideo:
    return MemoryVideo(role=role, kernel=memory_kernel(role, rank), edited=latents, source=source)


def test_result_is_a_function_of_the_request(editor: MemoryEditor, source: Tensor) -> None:
    memory = (memory_of(source + 0.1, source, "previous"), memory_of(source - 0.1, source, "retrieved"))

    def edit(seed: int, **changes: object) -> Tensor:
        request = {"instruction": INSTRUCTION, "source": source, "memory": memory, "seed": seed} | changes
        return editor.edit(EditRequest(**request)).latent

    first = edit(1)
    assert first.shape == source.shape
    assert first.dtype == torch.float32
    torch.manual_seed(123)
    assert torch.equal(edit(1), first)
    assert not torch.equal(edit(2), first)
    assert not torch.equal(edit(1, memory=memory[:1]), first)
    assert not torch.equal(edit(1, instruction="make it foggy"), first)


def test_settings_reach_the_network(source: Tensor, tmp_path: Path) -> None:
    """Each gives another result; the source channel is hidden as zeros; the defaults are what was without them."""
    editor = load_editor(write_random_preset(tmp_path / "merging", merging_blocks=(1, 2)))
    memory = (memory_of(source + 0.1, source, "previous"), memory_of(source - 0.1, source, "retrieved"))

    def edit(memory: tuple[MemoryVideo, ...] = memory, **settings: object) -> Tensor:
        request = EditRequest(instruction=INSTRUCTION, source=source, memory=memory, seed=1)
        return editor.edit(replace(request, settings=MemorySettings(**settings)) if settings else request).latent

    plain = edit()
    assert torch.equal(edit(kernels="fine", merging="off"), plain), "kernels come with the memories"
    found = [plain, edit(has_source=False)]
    for merging in ("merge-low", "merge-high", "discard-low", "discard-high"):
        found += [edit(merging=merging, merging_share=share) for share in (0.4, 0.6)]
    for number, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:number])
    assert torch.equal(edit(merging="merge-low", merging_share=0.4, has_source=True), found[2])
    blind = tuple(replace(item, source=torch.zeros_like(source)) for item in memory)
    assert torch.equal(edit(has_source=False), edit(blind))
    assert torch.equal(edit(memory=(), merging="discard-low"), edit(memory=()))


def test_merging_is_refused_where_the_network_cannot(tmp_path: Path) -> None:
    merging = MemorySettings(merging="discard-low")
    resolve_preset(write_random_preset(tmp_path / "merging", merging_blocks=(1, 2))).check_memory(merging)
    plain = resolve_preset(write_random_preset(tmp_path / "plain"))
    with pytest.raises(ValueError, match="merging is 'discard-low'; preset 'plain' was trained without merging"):
        plain.check_memory(merging)
    plain.check_memory(MemorySettings(kernels="coarse", merging="off", has_source=False))
    isolated = resolve_preset(write_random_preset(tmp_path / "isolated", memory_attention="isolated"))
    with pytest.raises(ValueError, match="merging is 'discard-low'; preset 'isolated' has isolated memory"):
        isolated.check_memory(merging)


def test_kept_memories_only_save_time(editor: MemoryEditor, source: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits whether a memory's keys and values are at hand or not; the least recently used go first."""
    config = {name: value for name, value in editor.transformer.config.items() if not name.startswith("_")}
    network = MemoryTransformer3DModel(**config | {"memory_attention": "isolated", "merging_blocks": ()})
    network.load_state_dict(editor.transformer.state_dict(), strict=False)
    num_encoded = []
    encode = network.encode_memory
    monkeypatch.setattr(network, "encode_memory", lambda item: num_encoded.append(1) or encode(item))

    def memories(*levels: float) -> tuple[MemoryVideo, ...]:
        return tuple(memory_of(source + level, source, "retrieved") for level in levels)

    def edit(isolated: MemoryEditor, *levels: float) -> Tensor:
        request = EditRequest(instruction=INSTRUCTION, source=source, memory=memories(*levels), seed=0)
        return isolated.edit(request).latent

    one = network.encode_memory(editor.prepare_memory(memories(0.1)[0])).num_bytes
    keeping = replace(editor, networks=(network.eval(),), encoded=EncodedLRU(2 * one))
    forgetting = replace(keeping, encoded=EncodedLRU(0))
    num_encoded.clear()
    first = edit(keeping, 0.1, 0.2)
    assert len(num_encoded) == 2
    assert torch.equal(edit(keeping, 0.1, 0.2), first)
    assert len(num_encoded) == 2
    assert torch.equal(edit(forgetting, 0.1, 0.2), first)
    assert len(num_encoded) == 4
    assert not torch.equal(edit(keeping, 0.2, 0.3), first)
    assert len(num_encoded) == 5
    edit(keeping, 0.2)
    assert len(num_encoded) == 5
    edit(keeping, 0.1)
    assert len(num_encoded) == 6
    assert len(keeping.encoded) == 2
    assert len(forgetting.encoded) == 0


def test_geometry_is_refused_by_name(editor: MemoryEditor) -> None:
    with pytest.raises(ValueError, match="segment has 16 frames; needs 17 to 17"):
        editor.encode(torch.zeros(16, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="segment has 81 frames"):
        editor.encode(torch.zeros(81, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="64x65 px; needs one of"):
        editor.encode(torch.zeros(17, 64, 65, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at most 512 tokens"):
        editor.edit(EditRequest(instruction="x" * 10_000, source=torch.zeros(48, 5, 16, 16), memory=(), seed=0))


def test_memory_and_latents_must_agree(source: Tensor) -> None:
    with pytest.raises(ValueError, match="differ"):
        memory_of(source[:, :3], source, "previous")


def test_revision_is_the_presets(editor: MemoryEditor) -> None:
    assert editor.weights_revision == resolve_preset("tiny").weights_revision
    assert len(editor.weights_revision) == 16


@pytest.mark.parametrize("role", ["previous", "retrieved"])
def test_memory_decides_what_the_instruction_leaves_open(editor: MemoryEditor, role: str) -> None:
    """How strong a fog or which blue is a free choice: shown an earlier segment, the result makes the same one."""
    errors: dict[bool, list[float]] = {True: [], False: []}
    for seed, task in enumerate(("restyle", "surface", "restyle", "surface")):
        world = make_world(seed, split="heldout", task=task, has_cuts=False)
        earlier, now = (render(world, start, start + 17, size=(64, 64)) for start in (0, 17))
        source = editor.encode(now.source)
        shown = (memory_of(editor.encode(earlier.edited), editor.encode(earlier.source), role),)
        for has_memory in (True, False):
            request = EditRequest(
                instruction=world.instruction, source=source, memory=shown if has_memory else (), seed=seed
            )
            frames = editor.decode(editor.edit(request).latent)
            wanted = edited_attribute(now.edited, now.mask)
            errors[has_memory].append(float((edited_attribute(frames, now.mask) - wanted).abs().mean()))
    with_memory, without = (sum(errors[has_memory]) for has_memory in (True, False))
    assert with_memory < without / 2, errors


@pytest.mark.gpu
@pytest.mark.parametrize("preset", ["tiny", "tiny-isolated"])
def test_a_gpu_edits_as_the_cpu_does(source: Tensor, preset: str) -> None:
    memory = (memory_of(source + 0.1, source, "previous"), memory_of(source - 0.1, source, "retrieved"))
    request = EditRequest(instruction=INSTRUCTION, source=source, memory=memory, seed=1)
    on_cpu, on_gpu = (load_editor(preset, device=device).edit(request).latent.cpu() for device in ("cpu", "cuda"))
    assert (on_cpu - source).abs().max() > 0.1
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=2e-3)
