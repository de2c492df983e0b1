"""The main job as other tools call it: done, skipped, killed and resumed, bad input, both sizes, the plan alone."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from pipeline.video.io import inspect, write_video
from retrieval.store import Store
from tests.bad_videos import BAD_FILES
from tests.jobs.commands import committed, edit_store, latent_bytes, memory_v2v, moving_frames, start

INSTRUCTION = "make it look like a warm sunset"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short videos, one with a hard cut; 41 and 52 frames: remainders of 7 and 1 frames at 17 a segment."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / "plain.mp4", folder / "cut.mp4"]
    write_video(paths[0], moving_frames(41, height=72, width=96, seed=0), 25, audio_tone=True)
    write_video(
        paths[1],
        [*moving_frames(26, height=64, width=64, seed=1), *moving_frames(26, height=64, width=64, seed=2)],
        25,
    )
    return paths


@pytest.fixture(scope="module")
def finished(videos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which both videos were edited without disturbance."""
    workspace = tmp_path_factory.mktemp("finished")
    answer = memory_v2v("edit", *videos, "--instruction", INSTRUCTION, "--workspace", workspace, "--json")
    assert answer.status == 0, answer.stderr
    assert [video["status"] for video in answer.result["videos"]] == ["done", "done"]
    return workspace


def test_edited_files_have_the_sources_frames_times_and_size(videos: list[Path], finished: Path) -> None:
    for source in videos:
        (edit,) = finished.glob(f"videos/{source.stem}-*/edits/*")
        record = json.loads((edit / "record.json").read_text())
        before, after = inspect(str(source)), inspect(str(edit / record["output"]))
        assert after.info.num_frames == before.info.num_frames
        assert (after.info.width_px, after.info.height_px) == (before.info.width_px, before.info.height_px)
        assert [pts * after.info.time_base[0] / after.info.time_base[1] for pts in after.pts] == pytest.approx(
            [pts * before.info.time_base[0] / before.info.time_base[1] for pts in before.pts], abs=1e-4
        )
        assert [row["start_frame"] for row in record["segments"]] == sorted(
            row["start_frame"] for row in record["segments"]
        )
        assert record["segments"][-1]["end_frame"] == before.info.num_frames
        assert not list((edit / "chunks").glob("*.mp4")), "chunks stay only until the video is assembled"


def test_segments_never_span_a_cut_and_memories_are_earlier(finished: Path) -> None:
    (edit,) = finished.glob("videos/cut-*/edits/*")
    record = json.loads((edit / "record.json").read_text())
    spans = [(row["start_frame"], row["end_frame"]) for row in record["segments"]]
    assert any(start == 26 for start, _ in spans)
    for row in record["segments"]:
        assert all(memory["segment"] < row["segment"] for memory in row["memory"])
    assert record["segments"][1]["memory"][0]["role"] == "previous"


def test_a_finished_edit_is_skipped_without_ray_in_under_ten_seconds(videos: list[Path], finished: Path) -> None:
    before = committed(finished)
    began = time.monotonic()
    answer = memory_v2v("edit", *videos, "--instruction", INSTRUCTION, "--workspace", finished, "--json")
    assert answer.status == 0
    assert [video["status"] for video in answer.result["videos"]] == ["skipped", "skipped"]
    assert [video["generated_segments"] for video in answer.result["videos"]] == [0, 0]
    assert committed(finished) == before
    assert time.monotonic() - began < 10


def test_another_seed_is_another_edit(videos: list[Path], finished: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(finished, workspace)
    answer = memory_v2v(
        "edit", videos[0], "--instruction", INSTRUCTION, "--workspace", workspace, "--seed", "1", "--json"
    )
    assert answer.result["videos"][0]["status"] == "done"
    assert answer.result["videos"][0]["generated_segments"] == 3
    edits = list(workspace.glob("videos/plain-*/edits/*"))
    assert len(edits) == 2
    first, second = ({path.name: path.read_bytes() for path in (edit / "latents").glob("*.parquet")} for edit in edits)
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_another_size_renders_anew_but_generates_nothing(videos: list[Path], finished: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    shutil.copytree(finished, workspace)
    before = committed(workspace)
    answer = memory_v2v(
        "edit", videos[0], "--instruction", INSTRUCTION, "--workspace", workspace, "--size", "model", "--json"
    )
    (video,) = answer.result["videos"]
    assert (video["status"], video["generated_segments"]) == ("done", 0)
    assert {name: committed(workspace)[name] for name in before} == before
    info = inspect(video["output"]).info
    assert (info.height_px, info.width_px) == (56, 72)
    assert info.num_frames == 41


def test_a_dry_run_prints_the_plan_and_writes_only_prepared_tables(videos: list[Path], tmp_path: Path) -> None:
    answer = memory_v2v("edit", *videos, "--instruction", INSTRUCTION, "--workspace", tmp_path, "--dry-run")
    assert answer.status == 0, answer.stderr
    assert "critical path" in answer.stdout
    assert "plain" in answer.stdout
    written = {path.relative_to(tmp_path).parts[2] for path in tmp_path.glob("videos/*/*")}
    assert written == {"prepared", "source.json"}
    assert not (tmp_path / "runs").exists()


def test_the_driver_may_be_killed_at_any_moment(videos: list[Path], finished: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver twice, at seeded moments after the first commit; then a run to the end."""
    arguments = ("edit", *videos, "--instruction", INSTRUCTION, "--workspace", tmp_path, "--json")
    random_moments = random.Random(0)
    for _ in range(2):
        process = start(*arguments)
        num_before, deadline = len(committed(tmp_path)), time.monotonic() + 120
        while len(committed(tmp_path)) == num_before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(random_moments.random())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    kept = committed(tmp_path)
    assert kept
    answer = memory_v2v(*arguments)
    assert answer.status == 0, answer.stderr
    assert all(video["status"] in ("done", "skipped") for video in answer.result["videos"])
    after = committed(tmp_path)
    assert {name: after[name] for name in kept} == kept, "a committed segment was generated again"
    assert latent_bytes(tmp_path) == latent_bytes(finished)


def test_bad_commands_and_manifests_are_told_before_any_work(videos: list[Path], tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.jsonl"
    rows = [
        {"source": str(videos[0]), "instruction": "make it sepia", "id": "a"},
        {"source": str(videos[0]), "instruction": "  ", "id": "b"},
        {"source": str(videos[0]), "instruction": "x" * 10_000, "id": "c"},
        {"source": str(videos[0]), "instruction": "make it sepia", "id": "a"},
        {"source": str(videos[0]), "instruction": "make it sepia", "id": "d", "preset": "tinny"},
        {"source": str(videos[0]), "instruction": "make it sepia", "id": "e", "colour": "red"},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = tmp_path / "workspace"
    answer = memory_v2v("edit", "--manifest", manifest, "--workspace", workspace)
    assert answer.status == 2
    for line in (2, 3, 4, 5, 6):
        assert f"line {line}:" in answer.stderr
    assert "did you mean 'tiny'" in answer.stderr
    assert not workspace.exists()
    assert memory_v2v("edit", videos[0], "--workspace", workspace).status == 2
    assert memory_v2v("edit", "--workspace", workspace, "--instruction", "make it sepia").status == 2
    assert (
        memory_v2v("edit", videos[0], "--instruction", "sepia", "--workspace", workspace, "--top-k", "-1").status == 2
    )


def test_failed_videos_are_data_and_can_be_retried(videos: list[Path], tmp_path: Path) -> None:
    """A missing file and one that is no video fail; the good one is done; once they are there a retry does them."""
    missing, text = tmp_path / "missing.mp4", tmp_path / "text.mp4"
    text.write_text("not a video")
    manifest = tmp_path / "manifest.jsonl"
    sources = {"good": videos[0], "missing": missing, "text": text}
    rows = [{"id": name, "source": str(path), "instruction": INSTRUCTION} for name, path in sources.items()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = tmp_path / "workspace"
    answer = memory_v2v("edit", "--manifest", manifest, "--workspace", workspace, "--json")
    assert answer.status == 1
    assert {name: video["status"] for name, video in answer.by_id.items()} == {
        "good": "done",
        "missing": "failed",
        "text": "failed",
    }
    assert answer.by_id["missing"]["error_type"] == "SourceMissing"
    assert answer.by_id["text"]["error_type"] == "UnreadableVideo"
    (run,) = (workspace / "runs").iterdir()
    failures = Store(str(run)).read_table("failures.parquet").to_pylist()
    assert {row["video"] for row in failures} == {"missing", "text"}
    status = memory_v2v("status", "--workspace", workspace, "--json")
    assert {row["id"]: row["status"] for row in status.result["videos"]} == {
        "good": "done",
        "missing": "failed",
        "text": "failed",
    }
    for path in (missing, text):
        shutil.copy(videos[0], path)
    again = memory_v2v("retry-failed", "--workspace", workspace, "--json")
    assert again.status == 0, again.stderr
    assert {name: video["status"] for name, video in again.by_id.items()} == {"missing": "done", "text": "done"}
    assert edit_store(workspace, "text").exists("edited.mp4")


SOURCE_ERRORS = {"empty_file": "SourceEmpty", "directory": "SourceIsDirectory", "missing": "SourceMissing"}
"""Found before anything is opened."""


def test_one_bad_file_of_every_kind_and_the_rest_is_done(videos: list[Path], s3: str, tmp_path: Path) -> None:
    rows, wanted = [], {}
    for number, (make, error, _) in enumerate(BAD_FILES):
        name = f"{number:02}-{make.__name__.strip('<>')}"
        folder = tmp_path / name
        folder.mkdir()
        path = make(folder)
        rows.append({"id": name, "source": str(path)})
        is_missing = "missing" if not path.exists() else make.__name__
        wanted[name] = SOURCE_ERRORS.get(is_missing, error.__name__)
    one_frame = tmp_path / "one.mp4"
    write_video(one_frame, moving_frames(1, height=64, width=64, seed=0), 25)
    rows += [
        {"id": "no-bucket", "source": "s3://nobody-has-this-bucket/film.mp4"},
        {"id": "no-object", "source": f"{s3}/film.mp4"},
        {"id": "one-frame", "source": str(one_frame)},
        {"id": "good", "source": str(videos[0])},
    ]
    wanted |= {"no-bucket": "SourceMissing", "no-object": "SourceMissing", "one-frame": "", "good": ""}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row | {"instruction": INSTRUCTION}) + "\n" for row in rows))
    answer = memory_v2v("edit", "--manifest", manifest, "--workspace", tmp_path / "workspace", "--json")
    assert answer.status == 1
    assert {name: video["error_type"] or "" for name, video in answer.by_id.items()} == wanted
    statuses = {name: "done" if not error else "failed" for name, error in wanted.items()}
    assert {name: video["status"] for name, video in answer.by_id.items()} == statuses
    assert inspect(answer.by_id["one-frame"]["output"]).info.num_frames == 1
