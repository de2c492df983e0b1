"""Rendered worlds: analytic truth of the geometry, exactness of the edit's mask, determinism, and the two splits."""

import math
from dataclasses import replace

import pytest
import torch

from model.training import primitives
from model.training.camera_path import CameraPath, Stay
from model.training.edits import EDIT_TASKS, STAGED_TASKS
from model.training.palette import CHROMATIC
from model.training.raycast import camera_axes, camera_rays, cast_solid
from model.training.restyle import STYLES, draw_style
from model.training.scene import SHAPE_WORDS, Solid, Texture, is_heldout_pair
from model.training.worlds import World, demo_world, edited_attribute, make_world, render, render_frames

SIZE = (48, 56)
SOLID_TASKS = [task for task in EDIT_TASKS if task not in STAGED_TASKS]
PLAIN = Texture(kind="plain", period_m=1.0, direction=(1.0, 0.0, 0.0), contrast=0.0, roughness=0.0, offset=(0.0, 0.0))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """As every worker: many small operations gain nothing from threads, and crawl where other processes want the cores."""
    torch.set_num_threads(1)


def world_of(task: str, *, split: str = "train", **options: object) -> World:
    return make_world(3, split=split, task=task, **options)  # type: ignore[arg-type]


def still_world() -> World:
    """A plain sphere of radius 0.5 m, 5 m ahead at the camera's height, in an otherwise empty scene."""
    stay = Stay(frame=0, position=(0.0, 1.5, 0.0), look_at=(0.0, 1.5, 5.0), ease_frames=0, sees_target=True)
    camera = CameraPath(
        stays=(stay,), fov_deg=60.0, drift_m=0.0, drift_frames=(100.0, 100.0, 100.0), drift_phase=(0.0, 0.0, 0.0)
    )
    sphere = Solid(
        shape="sphere",
        centre=(0.0, 1.5, 5.0),
        half=(0.5, 0.5, 0.5),
        yaw=0.0,
        spin=0.0,
        colour=(1.0, 0.0, 0.0),
        texture=PLAIN,
        motion=None,
    )
    world = world_of("recolour")
    return replace(world, scene=replace(world.scene, camera=camera, solids=(sphere,), noise_sigma=0.0, vignette=0.0))


def test_sphere_is_as_large_and_as_far_as_the_pinhole_says() -> None:
    world = still_world()
    stand = camera_axes(world.scene, range(1), torch.device("cpu"))
    rays = camera_rays(world.scene, stand, (200, 200), (0, 200))
    hit = cast_solid(world.scene, world.scene.solids[0], rays, range(1))
    assert hit is not None
    is_hit = hit.depth < primitives.FAR_M
    radius_px = math.tan(math.asin(0.5 / 5.0)) / rays.pixel
    assert int(is_hit.sum()) == pytest.approx(math.pi * radius_px**2, rel=0.02)
    assert hit.depth.min().item() == pytest.approx(4.5, abs=1e-3)


@pytest.mark.parametrize("shape", sorted(primitives.INTERSECT))
def test_hits_lie_on_the_surface_and_normals_face_the_camera(shape: str) -> None:
    generator = torch.Generator().manual_seed(1)
    origin = torch.tensor([0.3, 2.5, -4.0])
    aim = torch.rand(4000, 3, generator=generator) * 2 - 1
    direction = aim - origin
    t, nx, ny, nz = primitives.INTERSECT[shape](*origin, *direction.T)
    is_hit = t < primitives.FAR_M
    assert is_hit.float().mean() > (0.05 if shape in ("ring", "frame") else 0.2)
    x, y, z = (origin + t[:, None] * direction)[is_hit].T
    flat = (x * x + z * z).sqrt()
    distance = {
        "sphere": (x * x + y * y + z * z).sqrt() - 1,
        "dome": (x * x + y * y + z * z).sqrt() - 1 - y.clamp(max=0),
        "box": torch.stack([x.abs(), y.abs(), z.abs()]).amax(0) - 1,
        "cylinder": torch.maximum(flat, y.abs()) - 1,
        "cone": flat - (1 - y) / 2,
        "ring": torch.stack([z.abs(), (x * x + y * y).sqrt() - 1, 0.7 - (x * x + y * y).sqrt()]).amax(0).clamp(min=0),
        "frame": torch.stack([z.abs(), torch.maximum(x.abs(), y.abs()) - 1]).amax(0).clamp(min=0),
    }[shape]
    assert distance.abs().max() < 1e-3
    facing = (torch.stack([nx, ny, nz], 1) * direction).sum(1)[is_hit]
    assert facing.max() < 1e-3


def test_absences_are_as_long_as_asked() -> None:
    world = make_world(1, split="train", task="recolour", num_frames=60 * 17, absence_segments=(30, 30), has_cuts=True)
    visible = render_frames(world, range(0, world.num_frames, 4), size=(32, 32)).mask.any((1, 2)).tolist()
    longest = max(len(run) for run in "".join("x" if seen else "." for seen in visible).split("x"))
    assert longest * 4 >= 29 * 17
    assert world.cuts


def test_a_frame_does_not_depend_on_span_or_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of("hat")
    whole = render(world, 0, 12, size=SIZE)
    part = render(world, 7, 9, size=SIZE)
    assert torch.equal(whole.edited[7:9], part.edited)
    monkeypatch.setattr("model.training.rendering.MAX_CHUNK_RAYS", 20 * SIZE[1])
    banded = render(world, 7, 9, size=SIZE)
    # Vectorised and scalar tails of the same operation may differ in the last bit before rounding to 8 bits.
    assert (banded.edited.int() - part.edited.int()).abs().max() <= 1
    assert (banded.mask == part.mask).float().mean() > 0.999


def test_same_seed_same_world_and_pixels() -> None:
    first, second = (make_world(11, split="heldout") for _ in range(2))
    assert first == second
    assert torch.equal(render(first, 3, 5, size=SIZE).edited, render(second, 3, 5, size=SIZE).edited)
    assert make_world(12, split="heldout") != first


def test_splits_share_no_target_and_no_texture() -> None:
    targets: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split, found in targets.items():
        for seed in range(150):
            world = make_world(seed, split=split, task=SOLID_TASKS[seed % 6])  # type: ignore[arg-type]
            _, colour, *_, noun = world.solid_words[0].split()
            shape = next(shape for shape, words in SHAPE_WORDS.items() if noun in words)
            assert is_heldout_pair(colour, shape) == (split == "heldout")
            found.add(f"{colour} {shape}")
            height = world.scene.camera.stays[0].position[1]
            assert (1.55 <= height <= 1.75) == (split == "heldout")
    assert not targets["train"] & targets["heldout"]
    assert len(targets["train"]) > 15
    assert make_world(0, split="train").scene.noise_bank != make_world(0, split="heldout").scene.noise_bank


def test_what_the_instruction_leaves_open_differs_between_worlds() -> None:
    blues = [
        world.edit.afterwards.solids[0].colour
        for world in (make_world(seed, split="train", task="recolour") for seed in range(300))
        if world.instruction.endswith("blue")
    ]
    colours = torch.tensor(blues)
    assert len(blues) > 15
    assert torch.pdist(colours).mean() > 0.3


@pytest.mark.parametrize("name", sorted(STYLES))
def test_styles_stay_in_range_and_change_the_picture(name: str) -> None:
    import random

    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for seed in range(20):
        style, phrase = draw_style(random.Random(seed), name)
        styled = style(picture)
        assert styled.min() >= 0
        assert styled.max() <= 1
        assert (styled - picture).abs().mean() > 0.03
        assert phrase in STYLES[name].phrases


def test_edited_attribute_reads_the_drawn_colour() -> None:
    frames = torch.zeros(1, 9, 9, 3, dtype=torch.uint8)
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[:, 2:7, 2:7] = True
    frames[:, 3:6, 3:6] = torch.tensor([255, 51, 0], dtype=torch.uint8)
    assert edited_attribute(frames, mask).tolist() == pytest.approx([1.0, 0.2, 0.0])
    with pytest.raises(ValueError, match="mask marks no pixel"):
        edited_attribute(frames, torch.zeros_like(mask))


def test_demo_world_is_away_for_300_frames_and_returns() -> None:
    world = demo_world()
    assert world.num_frames >= 918
    assert world.cuts
    visible = render_frames(world, range(0, world.num_frames, 3), size=(32, 56)).mask.any((1, 2)).tolist()
    runs = "".join("x" if seen else "." for seen in visible).strip(".").split("x")
    assert sum(len(run) * 3 >= 300 for run in runs) >= 2


def test_wrong_arguments_are_named() -> None:
    world = world_of("recolour")
    with pytest.raises(ValueError, match=r"span is \[5, 5\)"):
        render(world, 5, 5, size=SIZE)
    with pytest.raises(ValueError, match="span"):
        render(world, 0, world.num_frames + 1, size=SIZE)
    with pytest.raises(ValueError, match="split is 'test'"):
        make_world(0, split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_frames is 0"):
        make_world(0, split="train", num_frames=0)
    with pytest.raises(ValueError, match="task is 'wig'; needs one of recolour, hat"):
        make_world(0, split="train", task="wig")  # type: ignore[arg-type]
    assert set(CHROMATIC) >= {"red", "blue"}
