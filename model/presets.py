"""Presets: a folder in diffusers' format that holds everything one editor is, and its name.

    <preset>/preset.json        name, legal geometry, sampler, longest instruction
    <preset>/transformer/ codec/ text_encoder/      config.json and safetensors weights

The top level imports no torch: the driver reads geometry and checks instructions without it. `load_editor` does.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.geometry import Geometry
from model.memory import MemorySettings

if TYPE_CHECKING:
    from model.types import Editor

PRESETS: dict[str, Path] = {"tiny": Path(__file__).parent / "weights" / "tiny"}
"""Bundled presets by name; any folder of the same layout is one too."""

PRESET_FILE = "preset.json"
REVISION_SUFFIXES = (".json", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Preset:
    name: str
    path: Path
    geometry: Geometry
    sampler: Mapping[str, Any]
    """`num_inference_steps`, `guidance_scale`, `shift`; and `merging_share` where memory frames are to be merged."""
    max_instruction_tokens: int
    """Of the byte tokenizer: one per UTF-8 byte and one for the end."""
    weights_revision: str
    """First 16 hex digits of a sha256 over the preset's configurations and weights."""

    def check_instruction(self, text: str) -> None:
        """Refuse an instruction this editor cannot read whole. Nothing is ever truncated.

        Raises:
            ValueError: if it is empty or has more tokens than the text encoder was trained for.
        """
        if not text.strip():
            raise ValueError("instruction is empty; needs a text that says what to change")
        num_tokens = len(text.encode()) + 1
        if num_tokens > self.max_instruction_tokens:
            raise ValueError(
                f"instruction has {len(text)} characters, {num_tokens} byte tokens; "
                f"preset {self.name!r} takes at most {self.max_instruction_tokens} tokens"
            )

    def check_memory(self, settings: MemorySettings) -> None:
        """Refuse to merge or discard memory frames with a network that cannot.

        Raises:
            ValueError: if its memory is isolated, or it has no merging blocks.
        """
        merging = settings.resolved(self.sampler).merging
        if merging == "off":
            return
        config = json.loads((self.path / "transformer" / "config.json").read_text())
        if config.get("memory_attention", "joint") != "joint":
            raise ValueError(f"merging is {merging!r}; preset {self.name!r} has isolated memory, it needs 'off'")
        if not config.get("merging_blocks"):
            raise ValueError(
                f"merging is {merging!r}; preset {self.name!r} was trained without merging, it needs 'off'"
            )


def resolve_preset(name_or_path: str | Path) -> Preset:
    """The preset of a known name, or of a folder that holds `preset.json`.

    Raises:
        ValueError: for a name that is neither (the nearest known name is suggested), or a folder that is not whole.
    """
    path = PRESETS.get(str(name_or_path), Path(name_or_path))
    if not path.is_dir():
        near = difflib.get_close_matches(str(name_or_path), PRESETS, n=1, cutoff=0.4)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"preset is {str(name_or_path)!r}; needs one of {', '.join(PRESETS)} or a preset folder{suggestion}"
        )
    try:
        document = json.loads((path / PRESET_FILE).read_text())
        geometry = document["geometry"]
        return Preset(
            name=document["name"],
            path=path,
            geometry=Geometry(**{**geometry, "sizes": tuple((height, width) for height, width in geometry["sizes"])}),
            sampler=document["sampler"],
            max_instruction_tokens=document["max_instruction_tokens"],
            weights_revision=folder_revision(path),
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"preset folder {path} is not whole: {PRESET_FILE}: {type(error).__name__}: {error}"
        ) from error


def write_preset_file(
    folder: Path, *, name: str, geometry: Geometry, sampler: Mapping[str, Any], max_instruction_tokens: int
) -> None:
    """`preset.json`, beside the saved components."""
    document = {
        "name": name,
        "geometry": {
            "segment_frames": geometry.segment_frames,
            "min_frames": geometry.min_frames,
            "frame_multiple": geometry.frame_multiple,
            "sizes": [list(size) for size in geometry.sizes],
        },
        "sampler": dict(sampler),
        "max_instruction_tokens": max_instruction_tokens,
    }
    (folder / PRESET_FILE).write_text(json.dumps(document, indent=2) + "\n")


def folder_revision(folder: Path) -> str:
    """Changes when any configuration or weight does; the same wherever the folder lies."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in REVISION_SUFFIXES:
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def load_editor(name_or_path: str | Path, *, device: str = "cpu") -> "Editor":
    """The editor of a preset, ready to edit."""
    from model.editor import MemoryEditor

    return MemoryEditor.from_preset(resolve_preset(name_or_path), device=device)
