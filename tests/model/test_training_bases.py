"""Training from other bases than our own layout, parts of a network, several workers, and continued clips."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.presets import folder_revision, load_editor, resolve_preset
from model.training.config import TrainingConfig
from model.training.segments import Segments, codec_revision, read_segments, write_segments
from model.training.start import starting_point
from model.training.trainer import train
from model.types import EditRequest, MemoryVideo
from model.weights import load_transformer
from tests.model.test_training import micro
from tests.model.training_workers import losses, train_in_processes
from tests.pipelines import NUM_FRAMES, SIZE, lucy, text_to_video


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    lucy(folder / "lucy")
    text_to_video(folder / "wan")
    return {"lucy": folder / "lucy", "wan": folder / "wan"}


def random_segments(config: TrainingConfig, *, num_videos: int, num_segments: int) -> Segments:
    """Latents of the base's shape that mean nothing."""
    start = starting_point(config)
    height, width = SIZE
    rows, channels = num_videos * num_segments, len(start.codec.mean.flatten())
    shape = (rows, channels, start.latent_frames, height // start.codec.patch[0], width // start.codec.patch[1])
    generator = torch.Generator().manual_seed(0)
    source, change = (torch.randn(shape, generator=generator) for _ in range(2))
    return Segments(
        source=source.bfloat16(),
        edited=(source + 0.5 * change).bfloat16(),
        mask=torch.ones(rows, *shape[2:], dtype=torch.bool),
        world=torch.arange(num_videos).repeat_interleave(num_segments),
        shot=torch.zeros(rows, dtype=torch.long),
        instructions={number: f"change {number}" for number in range(num_videos)},
    )


def finetuning(folder: Path, base: Path, *, num_segments: int = 3, **changes: Any) -> TrainingConfig:
    config = TrainingConfig(
        output=folder / "run", base=str(base), data=str(folder / "data"), steps=2, stages=((2, 3, 2),), warmup_steps=1,
        log_every=1, memoryless=0.0, learning_rate=1e-2,
    )  # fmt: skip
    config = replace(config, **changes)
    segments = random_segments(config, num_videos=4, num_segments=num_segments)
    name = f"pairs-{SIZE[0]}x{SIZE[1]}x{NUM_FRAMES}-{codec_revision(starting_point(config).codec)}.pt"
    write_segments(folder / "data" / name, segments)
    return config


def changed(before: Path, after: Path) -> set[str]:
    """Parameters that moved, as the transformer's modules are called."""
    one, two = (load_transformer(folder / "transformer").state_dict() for folder in (before, after))
    return {name for name, tensor in two.items() if not same(tensor, one.get(name))}


def same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(tensor.bfloat16(), other.bfloat16())


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("lucy", {"train": "all", "memory_layouts": "paper"}),
        ("lucy", {"train": "memory", "merging": True, "gradient_checkpointing": True, "precision": "bfloat16"}),
        ("lucy", {"train": "lora", "lora_rank": 4}),
        ("wan", {"train": "memory"}),
    ],
    ids=["all", "memory", "lora", "text-to-video"],
)
def test_published_pipelines_are_finetuned(
    tmp_path: Path, bases: Mapping[str, Path], base: str, changes: dict[str, Any]
) -> None:
    config = finetuning(tmp_path, bases[base], **changes)
    folder = train(config)
    moved = changed(bases[base], folder)
    assert any(".attn1." in name for name in moved)
    assert any(name.startswith("memory_patch_embedding.") for name in moved)
    if changes["train"] == "all":
        assert any(".ffn." in name for name in moved)
    else:
        # As the paper: cross-attention, feed-forward, text and time stay.
        assert all(".attn1." in name or name.startswith("memory_") for name in moved)
    assert any(name.startswith("memory_compressors.") for name in moved) == ("merging" in changes)

    preset = resolve_preset(folder)
    assert preset.components["vae"] == bases[base] / "vae"
    assert preset.sampler == resolve_preset(bases[base]).sampler
    editor = load_editor(folder)
    source = editor.encode(torch.zeros(NUM_FRAMES, *SIZE, 3, dtype=torch.uint8))
    memory = (MemoryVideo(role="retrieved", kernel=(1, 4, 4), edited=source, source=source),)
    edited = editor.edit(EditRequest(instruction="make it red", source=source, memory=memory, seed=0)).latent
    assert bool(edited.isfinite().all())


def test_parts_of_a_network_on_two_workers_learn_what_one_process_does(tmp_path: Path) -> None:
    config = replace(
        micro(tmp_path / "one", tmp_path / "cache"), num_layers=3, merging=True, steps=3, stages=((2, 1, 6), (1, 2, 3)),
        warmup_steps=1, log_every=1, memoryless=0.0, num_shards=4,
    )  # fmt: skip
    train(config)
    two = replace(config, output=tmp_path / "two", sharding="fsdp")
    train_in_processes(two, count=2, options=tmp_path / "options.json")
    one, other = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == other.keys()
    assert all(abs(one[step] - other[step]) < 1e-4 for step in one), (one, other)
    alone, together = (
        load_transformer(tmp_path / name / "preset" / "transformer").state_dict() for name in ("one", "two")
    )
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, atol=1e-2, rtol=1e-2)


def test_data_that_does_not_fit_is_named(tmp_path: Path, bases: Mapping[str, Path]) -> None:
    config = finetuning(tmp_path, bases["lucy"], num_segments=1)
    with pytest.raises(ValueError, match="no video of two segments or more"):
        train(config)
    with pytest.raises(ValueError, match="data is 'nowhere'; needs 'worlds' or a folder of segments"):
        train(replace(config, data="nowhere"))
    with pytest.raises(ValueError, match="preset is 'lucky'; needs one of"):
        train(replace(config, base="lucky"))
    (path,) = Path(config.data).iterdir()
    path.rename(path.with_name("pairs-32x48x9-00000000.pt"))
    with pytest.raises(ValueError, match="of another codec or segment length"):
        train(config)


def test_the_base_itself_continues_clips_of_one_segment(tmp_path: Path, bases: Mapping[str, Path]) -> None:
    config = finetuning(tmp_path, bases["lucy"], num_segments=1, extension="own", extension_segments=2)
    folder = train(config)
    (path,) = (tmp_path / "run" / "cache").glob("own-*.pt")
    segments = read_segments(path)
    assert segments.world.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert segments.is_generated is not None
    assert segments.is_generated.tolist() == [False, True, True] * 4
    assert not torch.equal(segments.edited[1], segments.edited[2])
    again = train(replace(config, output=tmp_path / "again", cache=tmp_path / "run" / "cache"))
    assert folder_revision(folder) == folder_revision(again)
