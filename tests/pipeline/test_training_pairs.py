"""Own videos to train on, and the command that takes them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.train import main
from model.training.config import TrainingConfig
from model.training.segments import read_segments
from model.training.start import starting_point
from pipeline.table import ManifestError
from pipeline.training_pairs import is_manifest, load_pairs, prepare_pairs
from pipeline.video.io import write_video
from tests.jobs.commands import moving_frames
from tests.presets import write_random_preset

HEIGHT, WIDTH = 64, 64


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.mp4 and b.mp4 of 40 frames, their edits, an edit that is too short, and a file that is no video."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate("ab"):
        frames = moving_frames(40, height=HEIGHT, width=WIDTH, seed=seed)
        write_video(folder / f"{name}.mp4", iter(frames), 25)
        write_video(folder / f"{name}-edited.mp4", iter([tinted(frame) for frame in frames]), 25)
        write_video(folder / f"{name}-short.mp4", iter(frames[:30]), 25)
    (folder / "text.mp4").write_text("not a video")
    return folder


def tinted(frame: np.ndarray) -> np.ndarray:
    """The lower half in another colour."""
    edited = frame.copy()
    edited[HEIGHT // 2 :, :, 0] //= 4
    return edited


def write_manifest(folder: Path, *rows: tuple[str, str, str]) -> str:
    path = folder / "pairs.csv"
    path.write_text("\n".join(["source,edited,instruction", *(",".join(row) for row in rows)]) + "\n")
    return str(path)


def test_pairs_become_segments_in_latents(videos: Path, tmp_path: Path) -> None:
    base = write_random_preset(tmp_path / "base")
    manifest = write_manifest(videos, ("a.mp4", "a-edited.mp4", "tint it"), ("b.mp4", "b-edited.mp4", "tint this"))
    config = TrainingConfig(output=tmp_path / "run", cache=tmp_path, base=str(base), data=manifest)
    start = starting_point(config)
    folder = prepare_pairs(config)
    (path,) = folder.iterdir()
    segments = read_segments(path)
    assert segments.world.tolist() == [0, 0, 0, 1, 1, 1]
    assert segments.instructions == {0: "tint it", 1: "tint this"}
    decoded = start.codec.decode(segments.edited[:1].float())[0]
    source = start.codec.decode(segments.source[:1].float())[0]
    assert float(decoded[0, :, HEIGHT // 2 :].mean() / source[0, :, HEIGHT // 2 :].mean()) == pytest.approx(
        0.25, abs=0.1
    )
    assert float((decoded[:, :, : HEIGHT // 2] - source[:, :, : HEIGHT // 2]).abs().mean()) < 0.02
    rows = segments.mask.float().mean((0, 1, 3))
    assert float(rows[:7].mean()) < 0.1
    assert float(rows[9:].mean()) > 0.5
    # The last segment has 6 frames, its last one repeated.
    still = start.codec.decode(segments.source[2:3].float())[0]
    assert float((still[:, -1] - still[:, -6]).abs().mean()) < 0.01
    assert torch.equal(read_segments(next(prepare_pairs(config).iterdir())).edited, segments.edited)
    assert len(list(tmp_path.glob("pairs-*"))) == 1


def test_all_bad_rows_are_listed_with_their_line(videos: Path, tmp_path: Path) -> None:
    base = write_random_preset(tmp_path / "base")
    config = TrainingConfig(output=tmp_path / "run", cache=tmp_path, base=str(base))
    manifest = write_manifest(
        videos, ("a.mp4", "a-edited.mp4", ""), ("b.mp4", "b-edited.mp4", "x" * 600), ("", "b.mp4", "red")
    )
    with pytest.raises(ManifestError) as caught:
        prepare_pairs(replace(config, data=manifest))
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [
        (2, "instruction"), (3, "instruction"), (4, "source"),
    ]  # fmt: skip
    manifest = write_manifest(videos, ("gone.mp4", "a-edited.mp4", "red"), ("a.mp4", "lost.mp4", "red"))
    with pytest.raises(ManifestError, match=r"(?s)line 2: column 'source'.*does not exist.*line 3: column 'edited'"):
        prepare_pairs(replace(config, data=manifest))
    manifest = write_manifest(
        videos, ("a.mp4", "a-short.mp4", "red"), ("text.mp4", "b-edited.mp4", "red"), ("a.mp4", "a-edited.mp4", "red")
    )
    with pytest.raises(ManifestError) as caught:
        prepare_pairs(replace(config, data=manifest))
    short, broken = caught.value.problems
    assert (short.line, short.column, short.message) == (2, "edited", "has 30 frames; needs the 40 of its source")
    assert (broken.line, broken.column) == (3, "source")
    assert not list(tmp_path.glob("pairs-*"))


def test_jsonl_rows_and_wrong_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"source": "a.mp4", "edited": "s3://b/e.mp4", "instruction": "red"}))
    (pair,) = load_pairs(str(path))
    assert (pair.source, pair.edited) == (str(tmp_path / "a.mp4"), "s3://b/e.mp4")
    path.write_text(json.dumps({"source": "a.mp4", "edit": "e.mp4", "instruction": "red"}))
    with pytest.raises(ManifestError, match=r"column 'edit': is unknown; did you mean 'edited'"):
        load_pairs(str(path))
    assert is_manifest(str(path))
    assert not is_manifest(str(tmp_path))
    assert not is_manifest("worlds")


def test_the_command_trains_on_a_manifest(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_random_preset(tmp_path / "base")
    manifest = write_manifest(videos, ("a.mp4", "a-edited.mp4", "tint it"), ("b.mp4", "b-edited.mp4", "tint this"))
    options = [
        "--output", str(tmp_path / "run"), "--base", str(base), "--data", manifest, "--steps", "2",
        "--stages", "2", "2", "2", "--train", "memory",
    ]  # fmt: skip
    assert main(options) == 0
    assert (tmp_path / "run" / "preset" / "preset.json").is_file()
    assert main(options) == 2
    assert "is there already; resume it" in capsys.readouterr().err
    assert main([*options, "--resume"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["--output", str(tmp_path / "other"), "--train", "lora"])
    assert stopped.value.code == 2
    assert "train is 'lora'; needs a base" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "other"), "--data", str(tmp_path / "gone.csv")]) == 2
    assert "gone.csv: 1 problem, nothing was started\n  does not exist" in capsys.readouterr().err
