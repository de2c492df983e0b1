import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.geometry import Geometry
from model.presets import PRESETS, folder_revision, resolve_preset, write_preset_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "weights.safetensors").write_bytes(b"123")
    write_preset_file(
        tmp_path,
        name="mine",
        geometry=Geometry(segment_frames=17, min_frames=17, frame_multiple=4, sizes=((64, 64), (40, 96))),
        sampler={"num_inference_steps": 8, "guidance_scale": 1.0, "shift": 3.0},
        max_instruction_tokens=32,
    )
    return tmp_path


def test_a_folder_is_a_preset(folder: Path) -> None:
    preset = resolve_preset(folder)
    assert preset.name == "mine"
    assert preset.geometry.sizes == ((64, 64), (40, 96))
    assert preset.geometry.padded_frames(3) == 17
    assert preset.sampler["num_inference_steps"] == 8
    assert resolve_preset(str(folder)) == preset


def test_revision_follows_weights_and_settings_and_nothing_else(folder: Path) -> None:
    before = folder_revision(folder)
    (folder / "README.md").write_text("words")
    assert folder_revision(folder) == before
    (folder / "transformer" / "weights.safetensors").write_bytes(b"124")
    changed = folder_revision(folder)
    assert changed != before
    (folder / "preset.json").write_text((folder / "preset.json").read_text().replace("8", "9"))
    assert folder_revision(folder) != changed


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"preset is 'tinny'; needs one of tiny.*did you mean 'tiny'"):
        resolve_preset("tinny")


@pytest.mark.parametrize("content", [None, "{", "{}", json.dumps({"name": "x", "geometry": {"sizes": []}})])
def test_folder_that_is_not_whole_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "preset.json").write_text(content)
    with pytest.raises(ValueError, match="is not whole"):
        resolve_preset(tmp_path)


def test_instructions_are_refused_not_truncated(folder: Path) -> None:
    preset = resolve_preset(folder)
    preset.check_instruction("x" * 31)
    with pytest.raises(ValueError, match=r"32 characters, 33 byte tokens; preset 'mine' takes at most 32"):
        preset.check_instruction("x" * 32)
    with pytest.raises(ValueError, match=r"16 characters, 33 byte tokens"):
        preset.check_instruction("é" * 16)
    for empty in ("", " \n"):
        with pytest.raises(ValueError, match="instruction is empty"):
            preset.check_instruction(empty)


def test_the_driver_gets_presets_without_torch() -> None:
    code = (
        "import sys; from model.presets import resolve_preset; resolve_preset('tiny').check_instruction('make it red');"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bundled_presets_are_small() -> None:
    for path in PRESETS.values():
        assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 20_000_000
