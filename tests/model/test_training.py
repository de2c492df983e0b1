import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.presets import folder_revision, load_editor, resolve_preset
from model.training.batches import MIN_VISIBLE, Batch, BatchSampler
from model.training.codec_fit import fit_codec, fitting_videos, world_videos
from model.training.config import TrainingConfig
from model.training.editing import editing_loss
from model.training.optimizers import learning_rate, stage_at
from model.training.recode import recode
from model.training.segments import Segments, load_cache, render_segments
from model.training.start import new_editing
from model.training.trainer import train
from model.training.worlds import make_world
from model.types import EditRequest, MemoryBatch, MemoryVideo
from model.weights import load_codec, load_transformer

SIZES = ((16, 16), (12, 24))


@pytest.fixture(scope="module")
def cache() -> list[Segments]:
    codec = fit_codec(world_videos(2, seed=500, size=(16, 16)))
    return [render_segments(range(100, 106), codec=codec, size=(16, 16), segment_frames=17)]


@pytest.fixture
def sampler(cache: list[Segments]) -> BatchSampler:
    return BatchSampler(cache, cache, seed=3, memory_noise=0.1, shift=4.0, memoryless=0.25)


def micro(output: Path, cache: Path) -> TrainingConfig:
    return TrainingConfig(
        output=output,
        cache=cache,
        steps=6,
        stages=((3, 1, 4), (3, 9, 2)),
        num_worlds=5,
        num_short_worlds=5,
        num_codec_worlds=1,
        render_workers=1,
        num_layers=1,
        num_heads=2,
        head_dim=16,
        ffn_dim=32,
        text_layers=1,
        text_width=16,
        sizes=SIZES,
        checkpoint_every=3,
        log_every=2,
        num_inference_steps=2,
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"memory_attention": "isolated", "memory_positions": "shared"}, {"merging": True, "num_layers": 3}],
    ids=["joint", "isolated, one range", "merging"],
)
def test_a_killed_and_resumed_run_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole = train(replace(micro(tmp_path / "whole", tmp_path / "cache"), **changes))

    draw = BatchSampler.batch

    def killed(self: BatchSampler, step: int, **options: int) -> object:
        if step == 4 and options["batch_size"] == 2:  # of training, not of the grid of pictures
            raise KeyboardInterrupt
        return draw(self, step, **options)

    config = replace(micro(tmp_path / "killed", tmp_path / "cache"), **changes)
    monkeypatch.setattr(BatchSampler, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="is there already; resume it"):
        train(config)
    resumed = train(replace(config, resume=True))

    assert folder_revision(resumed) == folder_revision(whole)
    logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [2, 4, 6]
    assert all(row["loss"] > 0 and row["gradient_norm"] > 0 for row in logged)

    editor = load_editor(resumed)
    source = editor.encode(torch.zeros(17, 12, 24, 3, dtype=torch.uint8))
    memory = (MemoryVideo(role="previous", kernel=(1, 2, 2), edited=source, source=source),)
    edited = editor.edit(EditRequest(instruction="make it red", source=source, memory=memory, seed=0)).latent
    assert editor.decode(edited).shape == (17, 12, 24, 3)


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        train(TrainingConfig(output=tmp_path, resume=True))
    with pytest.raises(ValueError, match="steps is 0; needs at least 1"):
        TrainingConfig(output=tmp_path, steps=0)
    with pytest.raises(ValueError, match="num_worlds is 7; needs more than the 7 sizes"):
        TrainingConfig(output=tmp_path, num_worlds=7)
    with pytest.raises(ValueError, match="memory_positions is 'mirrored'; needs one of ranges, reversed, shared"):
        TrainingConfig(output=tmp_path, memory_positions="mirrored")  # type: ignore[arg-type]


def test_training_starts_from_a_base(tmp_path: Path) -> None:
    """What the base has is taken over, what it lacks starts new; a base of other sizes is refused."""
    config = replace(micro(tmp_path / "base", tmp_path / "cache"), num_layers=3, steps=2, stages=((2, 1, 4),))
    base = train(config)
    further = replace(config, output=tmp_path / "further", base=str(base), merging=True, learning_rate=1e-12, steps=1)
    before, after = (load_transformer(folder / "transformer").state_dict() for folder in (base, train(further)))
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())
    new = {name for name in after if name not in before}
    assert new
    assert all(name.startswith("memory_compressors.") for name in new)
    with pytest.raises(ValueError, match=r"num_heads is 1; base .* has 2, leave it out"):
        train(replace(further, output=tmp_path / "other", num_heads=1))

    isolated = replace(further, output=tmp_path / "isolated", base=str(tmp_path / "further/preset"), merging=False)
    apart = load_transformer(train(replace(isolated, memory_attention="isolated")) / "transformer")
    assert apart.is_isolated
    assert set(apart.state_dict()) == set(before), "isolated memory leaves the base's compressors behind"


@pytest.mark.gpu
def test_a_gpu_trains_to_the_last_picture(tmp_path: Path) -> None:
    config = micro(tmp_path / "run", tmp_path / "cache")  # device "auto"
    editor = load_editor(train(config), device="cuda")
    assert editor.weights_revision
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def truths_of(cache: list[Segments]) -> dict[float, Tensor]:
    """The edited latents of every segment, by the sum of its source's."""
    return {
        segments.source[row].float().sum().item(): segments.edited[row].float()
        for segments in cache
        for row in range(len(segments))
    }


def test_memory_and_target_are_mixed_alike(cache: list[Segments]) -> None:
    """What was decoded of a mixed change is the change with its colours mixed; memories of a sample as its target."""
    codec = fit_codec(world_videos(2, seed=500, size=(16, 16)))
    maps = codec.colour_maps()
    linear = BatchSampler(cache, cache, seed=3, memory_noise=0.0, shift=4.0, memoryless=0.25, colour_maps=maps)
    truths = truths_of(cache)
    num_mixed, num_seen = 0, 0
    for step in range(24):
        batch = linear.batch(step, batch_size=2, num_frames=9)
        if batch.memory_sigma is not None:
            continue
        for sample, source in enumerate(batch.source):
            memories = [item.latents[sample].chunk(2) for item in batch.memory if bool(item.latents[:, 48:].any())]
            pairs = []
            for edited, seen in [(batch.x_0[sample], source), *memories]:
                change = truths[seen.sum().item()] - seen
                if bool(change.any()) and not torch.equal(edited, seen):
                    nothing = codec.decode(torch.zeros_like(change)[None])
                    pairs.append([codec.decode(part[None])[0] - nothing[0] for part in (change, edited - seen)])
            if not pairs:
                continue
            before, after = (torch.cat([pair[half].flatten(1) for pair in pairs], dim=1) for half in (0, 1))
            mixing = torch.linalg.lstsq(before.T, after.T).solution.T
            assert float((mixing @ before - after).norm() / after.norm()) < 0.2, "but for what so small a codec drops"
            is_mixed = float((mixing - torch.eye(3)).abs().max()) > 1e-2
            assert batch.memory or not is_mixed
            num_mixed, num_seen = num_mixed + is_mixed, num_seen + 1
    assert 0.15 < num_mixed / num_seen < 0.7


def test_some_memories_that_would_show_the_edit_show_the_source_and_what_is_learned_stays_the_truth(
    cache: list[Segments],
) -> None:
    plain = BatchSampler(cache, cache, seed=3, memory_noise=0.0, shift=4.0, memoryless=0.0)
    truths = truths_of(cache)
    num_missed, num_shown, num_untold, num_to_edit = 0, 0, 0, 0
    for step in range(60):
        batch = plain.batch(step, batch_size=2, num_frames=9)
        if batch.memory_sigma is not None:
            continue
        for sample, source in enumerate(batch.source):
            assert torch.equal(batch.x_0[sample], truths[source.sum().item()])
            memories = [item.latents[sample].chunk(2) for item in batch.memory]
            is_untold = all(torch.equal(edited, seen) for edited, seen in memories)
            if not torch.equal(batch.x_0[sample], source):
                num_untold, num_to_edit = num_untold + is_untold, num_to_edit + 1
            for edited, seen in memories:
                if not bool(seen.any()) or torch.equal(truths[seen.sum().item()], seen):
                    continue
                is_missed = torch.equal(edited, seen)
                assert is_missed or torch.equal(edited, truths[seen.sum().item()])
                if not is_untold:
                    num_missed, num_shown = num_missed + is_missed, num_shown + 1
    assert 0.1 < num_missed / num_shown < 0.3
    assert 0.15 < num_untold / num_to_edit < 0.5, "the instruction must be read beside memories, too"


def test_a_base_is_carried_over_to_a_fitted_codec(tmp_path: Path) -> None:
    config = replace(micro(tmp_path / "base", tmp_path / "cache"), steps=2, stages=((2, 1, 4),))
    base = train(config)
    with pytest.raises(ValueError, match="codec is 'fitted', train is 'memory'; needs train all"):
        replace(config, base=str(base), codec="fitted", train="memory")
    old = fit_codec(fitting_videos(2, seed=5, size=SIZES[0]), group_frames=4)
    old.save_pretrained(base / "codec")
    preset = train(
        replace(config, output=tmp_path / "new", base=str(base), codec="fitted", learning_rate=1e-12, steps=1)
    )
    resolved = resolve_preset(str(preset))
    assert resolved.geometry.frame_multiple == 2
    assert load_codec(resolved.components["codec"]).group_frames == 2
    expected = load_transformer(base / "transformer")
    recode(expected, old, load_codec(preset / "codec"))
    for name, tensor in load_transformer(preset / "transformer").state_dict().items():
        if not name.startswith("colour_head."):
            assert torch.allclose(tensor, expected.state_dict()[name], atol=0.02, rtol=0.02), name  # kept as bfloat16


def test_own_memories_are_made_from_the_noised_truth(cache: list[Segments]) -> None:
    """A network that changes nothing remembers the source; the source half stays."""
    sampler = BatchSampler(cache, cache, seed=3, memory_noise=0.0, shift=4.0, memoryless=0.0)
    batches = (sampler.batch(step, batch_size=2, num_frames=2) for step in range(40))
    batch = next(batch for batch in batches if batch.memory_sigma is not None)
    editing = new_editing(micro(Path(), Path()), has_colour_head=False)
    features, mask = editing.read(batch.instructions)
    for noised, own in zip(batch.memory, editing.own_memory(batch, features, mask), strict=True):
        edited, source = own.latents.chunk(2, dim=1)
        torch.testing.assert_close(edited, source)
        assert torch.equal(source, noised.latents[:, 48:])
        assert (own.role, own.kernel) == (noised.role, noised.kernel)


def test_own_edits_are_made_from_noise_and_the_later_ones_remember_the_first(cache: list[Segments]) -> None:
    codec = fit_codec(world_videos(2, seed=500, size=(16, 16)))
    sampler = BatchSampler(
        cache, cache, seed=3, memory_noise=0.0, shift=4.0, memoryless=0.0, colour_maps=codec.colour_maps()
    )
    batches = [sampler.batch(step, batch_size=2, num_frames=2) for step in range(80)]
    assert 0.08 < sum(batch.is_whole for batch in batches) / len(batches) < 0.32
    batch = next(batch for batch in batches if batch.is_whole and len(batch.memory) == 3)
    editing = new_editing(micro(Path(), Path()), has_colour_head=False)
    torch.nn.init.normal_(editing.transformer.proj_out.weight, std=0.02)
    features, mask = editing.read(batch.instructions)

    def edits(given: Batch) -> tuple[MemoryBatch, ...]:
        return editing.own_edits(given, features, mask, num_range_frames=2)

    whole = edits(batch)
    for noise, own in zip(batch.memory, whole, strict=True):
        assert torch.equal(own.latents[:, 48:], noise.latents[:, 48:])
        assert (own.role, own.kernel) == (noise.role, noise.kernel)
    other = replace(batch.memory[0], latents=-batch.memory[0].latents)
    again = edits(replace(batch, memory=(other, *batch.memory[1:])))
    assert not torch.equal(again[0].latents, whole[0].latents)
    assert all(
        not torch.equal(*pair)
        for pair in zip((a.latents for a in again[1:]), (b.latents for b in whole[1:]), strict=True)
    )
    last = replace(batch.memory[2], latents=-batch.memory[2].latents)
    again = edits(replace(batch, memory=(*batch.memory[:2], last)))
    torch.testing.assert_close([item.latents for item in again[:2]], [item.latents for item in whole[:2]])
    assert torch.equal(edits(replace(batch, x_0=-batch.x_0))[2].latents, whole[2].latents), (
        "of the truth they know nothing"
    )


def test_with_own_edits_only_what_is_outside_the_edited_region_is_learned_of_the_truth() -> None:
    """Inside, memories are right where they are nearer to the truth than doing nothing."""
    x_0 = torch.zeros(1, 3, 1, 4, 4)
    said = torch.stack([x_0 + 0.1, x_0 + 1.0, x_0 + 0.5], dim=1)
    said[:, 2, ..., 3] = 2.0
    said = said.requires_grad_()
    logits = torch.zeros(1, 3, 1, 4, 4, requires_grad=True)
    mask = torch.tensor([False, False, True, True]).expand(1, 1, 4, 4)
    options = {"channel_weight": torch.ones(3, 2), "edit_weight": 1.0, "look_weight": 8.0}
    loss, edited = editing_loss(said.mean(1), x_0, mask, (said, logits), is_whole=True, **options)
    loss.backward()
    assert said.grad is not None
    assert logits.grad is not None
    assert not said.grad[..., 2:].any()
    assert said.grad[:, 0, ..., :2].all()
    believed = (-logits.grad).argmax(1)[0, 0, 0].tolist()
    assert believed == [0, 0, 2, 0]
    assert float(edited) > 0, "and is told all the same"


def test_batches_drawn_ahead_are_the_same_ones(sampler: BatchSampler) -> None:
    stages = [(step, 1 + step % 2, 2) for step in range(3, 9)]
    here, ahead = list(sampler.stream(stages)), list(sampler.stream(stages, workers=2))
    assert len(here) == len(ahead) == 6
    for one, two, (step, num_frames, batch_size) in zip(here, ahead, stages, strict=True):
        drawn = sampler.batch(step, batch_size=batch_size, num_frames=num_frames)
        assert one.instructions == two.instructions == drawn.instructions
        assert torch.equal(one.noise, two.noise)
        assert torch.equal(one.noise, drawn.noise)


def test_a_batch_is_a_function_of_its_step(sampler: BatchSampler, cache: list[Segments]) -> None:
    again = BatchSampler(cache, cache, seed=3, memory_noise=0.1, shift=4.0, memoryless=0.25)
    other = BatchSampler(cache, cache, seed=4, memory_noise=0.1, shift=4.0, memoryless=0.25)
    sampler.batch(0, batch_size=4, num_frames=1)
    one, two = (s.batch(7, batch_size=4, num_frames=2) for s in (sampler, again))
    assert one.instructions == two.instructions
    assert torch.equal(one.x_0, two.x_0)
    assert torch.equal(one.noise, two.noise)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(one.memory, two.memory, strict=True))
    assert not torch.equal(one.noise, other.batch(7, batch_size=4, num_frames=2).noise)


def test_half_of_the_batches_with_memory_merge_where_that_is_asked_for(cache: list[Segments]) -> None:
    plain, merging = (
        BatchSampler(cache, cache, seed=3, memory_noise=0.1, shift=4.0, memoryless=0.25, is_merging=is_merging)
        for is_merging in (False, True)
    )
    batches = [merging.batch(step, batch_size=2, num_frames=1) for step in range(200)]
    with_memory = [batch for batch in batches if batch.memory]
    shares = [batch.merging.share for batch in with_memory if batch.merging]
    assert 0.35 < len(shares) / len(with_memory) < 0.65
    assert 0.3 <= min(shares) < 0.4
    assert 0.6 < max(shares) <= 0.7
    assert not any(batch.merging for batch in batches if not batch.memory)
    other = plain.batch(7, batch_size=2, num_frames=1)
    assert other.merging is None
    assert torch.equal(other.noise, batches[7].noise), "merging must not change what else is drawn"


def test_batches_come_in_every_layout_and_memories_belong_to_their_world(
    sampler: BatchSampler, cache: list[Segments]
) -> None:
    clean = BatchSampler(cache, cache, seed=3, memory_noise=0.0, shift=4.0, memoryless=0.25)
    world_of = {
        segments.source[row].float().sum().item(): int(segments.world[row])
        for segments in cache
        for row in range(len(segments))
    }
    layouts, num_sourceless, num_own, num_contradicted = set(), 0, 0, 0
    for step in range(60):
        batch = clean.batch(step, batch_size=2, num_frames=9)
        layouts.add(tuple((item.role, item.kernel) for item in batch.memory))
        is_sourceless = bool(batch.memory) and not any(bool(item.latents[:, 48:].any()) for item in batch.memory)
        num_sourceless += is_sourceless
        if batch.memory_sigma is not None:
            num_own += 1
            assert batch.memory
            assert not is_sourceless, "what the network makes itself it makes from the source"
            assert 0.1 <= float(batch.memory_sigma.min()) <= float(batch.memory_sigma.max()) <= 0.5
        worlds = [world_of[sample.sum().item()] for sample in batch.source]
        own = [make_world(world, split="train").instruction for world in worlds]
        for sample, world in enumerate(worlds):
            if batch.instructions[sample] != own[sample]:
                num_contradicted += 1
                assert batch.memory
                assert batch.memory_sigma is None
                assert batch.instructions[sample] in own
                assert any(not torch.equal(*item.latents[sample].chunk(2)) for item in batch.memory), (
                    "one shows an edit"
                )
            for item in batch.memory if not is_sourceless else ():
                assert world_of[item.latents[sample, 48:].sum().item()] == world
                assert not torch.equal(item.latents[sample, 48:], batch.source[sample])
    assert () in layouts
    assert len(layouts) > 6
    assert 0 < num_sourceless < 20
    assert 3 < num_own < 30
    assert 3 < num_contradicted < 30


def test_segments_never_span_a_cut_and_short_ones_repeat_their_last_frame() -> None:
    seed = next(seed for seed in range(60) if make_world(seed, split="train").cuts)
    world = make_world(seed, split="train")
    codec = fit_codec(world_videos(2, seed=500, size=(16, 16)))
    segments = render_segments([seed], codec=codec, size=(16, 16), segment_frames=17)
    bounds = [0, *world.cuts, world.num_frames]
    lengths = [end - start for start, end in pairwise(bounds)]
    assert len(segments) == sum(-(-length // 17) for length in lengths)
    assert segments.shot.unique().tolist() == list(range(len(lengths)))
    last = codec.decode(segments.source[-1:].float())[0]
    missing = -lengths[-1] % 17
    if missing >= 4:
        assert float((last[:, -1] - last[:, -4]).abs().mean()) < 0.02
    assert segments.mask.dtype == torch.bool
    assert 0 < MIN_VISIBLE < 1


def test_cache_is_read_back_as_written(tmp_path: Path) -> None:
    codec = fit_codec(world_videos(1, seed=500, size=(16, 16)))
    options = {"codec": codec, "sizes": SIZES, "num_worlds": 4, "first_seed": 10, "segment_frames": 17, "workers": 1}
    written, read = load_cache(tmp_path, **options), load_cache(tmp_path, **options)
    assert len(list(tmp_path.iterdir())) == len(SIZES)
    for one, two in zip(written, read, strict=True):
        assert torch.equal(one.edited, two.edited)
        assert one.instructions == two.instructions


def test_the_edited_region_counts_whatever_its_size() -> None:
    x_0 = torch.zeros(2, 3, 2, 16, 16)
    mask = torch.zeros(2, 2, 16, 16, dtype=torch.bool)
    mask[0, :, :4, :4] = True
    mask[1] = True
    weight = torch.ones(3, 2)
    _, edited = editing_loss(x_0 + 2.0, x_0, mask, channel_weight=weight, edit_weight=1.0, look_weight=1.0)
    torch.testing.assert_close(edited, torch.tensor([4.0, 4.0]))
    loss, edited = editing_loss(x_0, x_0, mask, channel_weight=weight, edit_weight=1.0, look_weight=1.0)
    assert float(loss) == 0
    assert not bool(edited.any())


def test_the_look_is_what_an_edited_region_has_in_common_in_a_frame() -> None:
    x_0 = torch.zeros(1, 3, 2, 8, 8)
    mask = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    mask[0, 0, :4] = True
    mask[0, 1, :4, :4] = True  # half as large in the second frame, so it counts half as much
    weight = torch.ones(3, 2)

    def look_loss(predicted: Tensor) -> float:
        with_look, without = (
            editing_loss(predicted, x_0, mask, channel_weight=weight, edit_weight=1.0, look_weight=look)[0]
            for look in (1.0, 0.0)
        )
        return float(with_look - without)

    outside = torch.where(mask[:, None], 0.0, 5.0).expand_as(x_0)
    assert look_loss(outside) == 0
    evenly = torch.where(mask[:, None], 3.0, 0.0).expand_as(x_0)
    assert look_loss(evenly) == pytest.approx(9.0)
    signs = torch.tensor([1.0, -1.0]).repeat(4)
    assert look_loss(evenly * signs) == pytest.approx(0.0, abs=1e-6), "what cancels out is no look"
    second = evenly.clone()
    second[:, :, 0] = 0
    assert look_loss(second) == pytest.approx(3.0)


def test_schedules(tmp_path: Path) -> None:
    config = TrainingConfig(output=tmp_path, steps=1000, warmup_steps=10, stages=((10, 1, 8), (20, 2, 4), (5, 5, 2)))
    assert [stage_at(step, config) for step in (0, 9, 10, 29, 30, 900)] == [
        (1, 8),
        (1, 8),
        (2, 4),
        (2, 4),
        (5, 2),
        (5, 2),
    ]
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(config.learning_rate / 10, rel=1e-3)
    assert max(rates) == pytest.approx(config.learning_rate, rel=1e-2)
    assert rates[-1] == pytest.approx(config.learning_rate / 20, rel=1e-2)


def test_a_choice_learns_who_is_right_where_and_the_network_learns_chosen_or_not() -> None:
    """The network is right in the upper half, the memories in the lower; no change nowhere."""
    x_0 = torch.randn(1, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    upper = torch.arange(8)[:, None] < 4
    said = torch.stack(
        [torch.where(upper, x_0, x_0 + 1), x_0 + 2, torch.where(upper, x_0 - 1, x_0)], dim=1
    ).requires_grad_()
    logits = torch.tensor([-30.0, 0.0, 30.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 8, 8).clone().requires_grad_()
    shares = logits.softmax(1).detach()[:, :, None]
    options = {"channel_weight": torch.ones(3, 2), "edit_weight": 1.0, "look_weight": 0.0}
    mask = torch.ones(1, 2, 8, 8, dtype=torch.bool)
    loss, _ = editing_loss((said * shares).sum(1), x_0, mask, (said, logits), **options)
    loss.backward()
    assert logits.grad is not None
    assert said.grad is not None
    assert (logits.grad[:, 0, :, :4] < 0).all(), "the network is right here"
    assert (logits.grad[:, 2, :, :4] > 0).all()
    assert logits.grad[:, :, :, 4:].abs().max() < 1e-6, "the memories are right here, and believed"
    assert (said.grad[:, 0, :, :, 4:] > 0).all(), "the network, wrong here and not believed, learns all the same"
    without, _ = editing_loss((said * shares).sum(1), x_0, mask, **options)
    assert float(loss) > float(without) > 0
