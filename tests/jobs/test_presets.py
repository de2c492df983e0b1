"""`memory-v2v edit --preset`: a diffusers pipeline folder from end to end, and a published one that is not on this machine."""

import json
import time
from pathlib import Path

import pytest

from jobs.edit import main
from pipeline.video.io import inspect, write_video
from tests.jobs.commands import edit_store, latents_of, memory_v2v, moving_frames
from tests.pipelines import NUM_FRAMES, lucy

INSTRUCTION = "Change the square to a blue ball"


@pytest.mark.ray
def test_a_pipeline_folder_edits_a_video(tmp_path: Path) -> None:
    """Two segments, the second remembering the first; 16 frames: the last is padded by two."""
    folder, video, workspace = tmp_path / "lucy", tmp_path / "square.mp4", tmp_path / "workspace"
    lucy(folder)
    write_video(video, moving_frames(2 * NUM_FRAMES - 2, height=64, width=96, seed=0), 25)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"id": "square", "source": str(video), "instruction": INSTRUCTION}) + "\n")
    command = ("edit", "--manifest", manifest, "--preset", folder, "--workspace", workspace, "--workers", "1", "--json")
    answer = memory_v2v(*command)
    assert answer.status == 0, answer.stderr
    assert answer.by_id["square"]["segments"] == 2
    assert inspect(answer.by_id["square"]["output"]).info.num_frames == 2 * NUM_FRAMES - 2
    record = edit_store(workspace, "square").read_json("record.json")
    assert record["spec"]["preset"] == "small"
    assert record["spec"]["sampler"] == {"num_inference_steps": 4, "guidance_scale": 3.0, "negative_prompt": ""}
    assert record["segments"][1]["memory"][0]["role"] == "previous"
    assert latents_of(workspace, "square").get(1, names=("edited",))["edited"].shape == (4, 3, 4, 6)
    assert [video["status"] for video in memory_v2v(*command).result["videos"]] == ["skipped"]


def test_a_published_preset_that_is_not_here_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    workspace = tmp_path / "workspace"
    started = time.monotonic()
    command = ["film.mp4", "--instruction", INSTRUCTION, "--preset", "lucy-edit-5b", "--workspace", str(workspace)]
    assert main(command) == 2
    assert time.monotonic() - started < 10
    assert "hf download decart-ai/Lucy-Edit-Dev" in capsys.readouterr().err
    assert not workspace.exists()
