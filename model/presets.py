"""Presets: a name, or a folder, for everything that one editor is.

    <preset>/preset.json                            name, legal geometry, sampler, longest instruction, …
    <preset>/transformer/ codec/ text_encoder/      config.json and safetensors weights: the layout of `tiny`
    <preset>/model_index.json transformer/ vae/ …   or a diffusers pipeline, as published; preset.json may then be absent

A preset.json with `base` builds on another preset: it changes settings, adds LoRA files, and its folder's own components stand
instead of the base's. Names of published checkpoints are looked up in the local hub cache only (`model.checkpoints`).

The top level imports no torch: the driver reads geometry and checks instructions without it. `load_editor` does.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoints import HUB_ID, PIPELINE_FILE, find_folder, hub_folder, pipeline_components, read_json, revision
from model.geometry import Geometry
from model.memory import MemorySettings
from model.prompts import num_tokens

if TYPE_CHECKING:
    from model.types import Editor

WEIGHTS = Path(__file__).parent / "weights"
PRESETS: dict[str, Path] = {name: WEIGHTS / name for name in ("tiny", "tiny-isolated")}
"""Bundled presets by name; any folder of the same layout is one too."""

HUB_PRESETS: dict[str, str] = {
    "lucy-edit-5b": "decart-ai/Lucy-Edit-Dev",
    "wan2.1-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
}
"""Published pipelines by name: hub ids."""

PRESET_FILE = "preset.json"
REVISION_SUFFIXES = (".json", ".safetensors")
FIELDS = (
    "name", "base", "geometry", "sampler", "max_instruction_tokens", "precision", "attention_backend", "is_vae_tiled",
    "transformer", "lora",
)  # fmt: skip
"""What a preset.json may say."""
PRECISIONS = ("float32", "bfloat16")

WAN_GEOMETRY = Geometry(
    segment_frames=81,
    min_frames=81,
    frame_multiple=4,
    sizes=((480, 832), (544, 736), (640, 640), (736, 544), (832, 480)),
)
"""What Wan2.1, Wan2.2-5B and LucyEdit were trained at: 81 frames of about 480x832 px, in several shapes."""
WAN_SAMPLER = {"num_inference_steps": 50, "guidance_scale": 5.0, "negative_prompt": ""}
"""Defaults of diffusers' pipelines; the scheduler with its shift comes with the pipeline."""
TEXT_TO_VIDEO_STRENGTH = 0.8
"""Where the network does not see the source, it edits what is left of it after so much noise (SDEdit; diffusers' default)."""


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """A low-rank update that is merged into a component's weights when they are loaded."""

    path: Path
    scale: float = 1.0
    component: str = "transformer"


@dataclass(frozen=True, kw_only=True)
class Preset:
    name: str
    path: Path
    components: Mapping[str, Path]
    """Folders by name; "transformer" may also be a single file in the original layout of Wan."""
    geometry: Geometry
    sampler: Mapping[str, Any]
    """`num_inference_steps`, `guidance_scale`; `shift` for Euler steps, which a pipeline's own scheduler may have; for a
    pipeline `negative_prompt`, `strength` and, with two transformers, `guidance_scale_2`; `merging_share` where memory
    frames are to be merged."""
    max_instruction_tokens: int
    """Of the preset's tokenizer: bytes, unless it has one of its own."""
    weights_revision: str
    """First 16 hex digits of a sha256 over the preset's configurations and weights."""
    precision: str = "float32"
    """Of transformer and text encoder; VAEs always compute in float32."""
    attention_backend: str | None = None
    """Of diffusers' attention dispatch; None is its default."""
    is_vae_tiled: bool = False
    lora: tuple[LoRA, ...] = ()
    boundary_ratio: float | None = None
    """Of two transformers, the first works at sigmas from here up (Wan2.2-A14B)."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; needs one of {', '.join(PRECISIONS)}")

    @property
    def tokenizer(self) -> Path | None:
        return self.components.get("tokenizer")

    def check_instruction(self, text: str) -> None:
        """Refuse an instruction this editor cannot read whole. Nothing is ever truncated.

        Raises:
            ValueError: if it is empty or has more tokens than the text encoder was trained for.
        """
        if not text.strip():
            raise ValueError("instruction is empty; needs a text that says what to change")
        count = num_tokens(text, self.tokenizer)
        if count > self.max_instruction_tokens:
            kind = "tokens" if self.tokenizer else "byte tokens"
            raise ValueError(
                f"instruction has {len(text)} characters, {count} {kind}; "
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
        folder = self.components["transformer"]
        config = read_json(folder / "config.json") if folder.is_dir() else {}
        if config.get("memory_attention", "joint") != "joint":
            raise ValueError(f"merging is {merging!r}; preset {self.name!r} has isolated memory, it needs 'off'")
        if not config.get("merging_blocks"):
            raise ValueError(
                f"merging is {merging!r}; preset {self.name!r} was trained without merging, it needs 'off'"
            )


def resolve_preset(name_or_path: str | Path) -> Preset:
    """The preset of a known name, of a folder, or of a pipeline's hub id in the local cache.

    Raises:
        ValueError: for a name that is none of them (the nearest known name is suggested), or a folder that is not whole.
    """
    name = str(name_or_path)
    if name in HUB_PRESETS:
        try:
            return pipeline_preset(hub_folder(HUB_PRESETS[name]), {"name": name}, repository=HUB_PRESETS[name])
        except ValueError as error:
            raise ValueError(f"preset {name!r}: {error}") from error
    path = PRESETS.get(name, Path(name))
    if path.is_dir():
        return folder_preset(path)
    if HUB_ID.fullmatch(name):
        return pipeline_preset(find_folder(name), {"name": name}, repository=name)
    known = [*PRESETS, *HUB_PRESETS]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    suggestion = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"preset is {name!r}; needs one of {', '.join(known)} or a preset folder{suggestion}")


def folder_preset(path: Path) -> Preset:
    """The preset of a folder, of any of the three layouts.

    Raises:
        ValueError: for a folder that is not whole.
    """
    is_pipeline = (path / PIPELINE_FILE).is_file()
    try:
        document = {} if is_pipeline and not (path / PRESET_FILE).exists() else read_json(path / PRESET_FILE)
        unknown = sorted(set(document) - set(FIELDS))
        if unknown:
            raise ValueError(f"{PRESET_FILE} has {', '.join(unknown)}; needs some of {', '.join(FIELDS)}")
        if "base" in document:
            return derived_preset(path, document)
        if is_pipeline:
            return pipeline_preset(path, document)
        preset = Preset(
            name=document["name"],
            path=path,
            components={name: path / name for name in ("transformer", "codec", "text_encoder")},
            geometry=geometry_of(document["geometry"]),
            sampler=document["sampler"],
            max_instruction_tokens=document["max_instruction_tokens"],
            weights_revision="",
        )
        return with_settings(preset, document, folder_files(path))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"preset folder {path} is not whole: {type(error).__name__}: {error}") from error


def pipeline_preset(path: Path, document: Mapping[str, Any], *, repository: str | None = None) -> Preset:
    """The preset of a diffusers pipeline folder; `document` says what the pipeline does not.

    Raises:
        ValueError: if files are missing, the network is no text-to-video or source-on-channels one, or sizes do not fit it.
    """
    components = pipeline_components(path, repository=repository)
    preset = Preset(
        name=path.name,
        path=path,
        components=components,
        geometry=WAN_GEOMETRY,
        sampler=WAN_SAMPLER,
        max_instruction_tokens=512,
        weights_revision="",
        precision="bfloat16",
        boundary_ratio=read_json(path / PIPELINE_FILE).get("boundary_ratio"),
    )
    files = {name: path / name for name in (PIPELINE_FILE, PRESET_FILE) if (path / name).exists()}
    for name, folder in components.items():
        files |= {f"{name}/{file}": found for file, found in folder_files(folder).items()}
    return with_settings(preset, document, files)


def derived_preset(path: Path, document: Mapping[str, Any]) -> Preset:
    """Another preset with changes: its `base` is a name, a hub id, or a folder relative to this one.

    Raises:
        ValueError: if the base cannot be resolved or the changes do not fit.
    """
    beside = path / document["base"]
    if beside.resolve() == path.resolve():
        raise ValueError("base is the preset itself")
    base = resolve_preset(beside if beside.is_dir() else document["base"])
    own = {name: path / name for name in base.components if (path / name).is_dir()}
    files = {PRESET_FILE: path / PRESET_FILE}
    for name, folder in own.items():
        files |= {f"{name}/{file}": found for file, found in folder_files(folder).items()}
    if "transformer" in document:
        own["transformer"] = files["transformer"] = path / document["transformer"]
    preset = replace(base, name=path.name, path=path, components={**base.components, **own})
    return with_settings(preset, document, files)


def with_settings(preset: Preset, document: Mapping[str, Any], files: Mapping[str, Path]) -> Preset:
    """The preset with what its preset.json says instead (sampler settings one by one), and its revision.

    Raises:
        ValueError: if the settings do not fit the networks, or a LoRA file is not there.
    """
    changes = {
        name: document[name]
        for name in ("name", "max_instruction_tokens", "precision", "attention_backend", "is_vae_tiled")
        if name in document
    }
    lora = tuple(LoRA(**{**item, "path": preset.path / item["path"]}) for item in document.get("lora", ()))
    files = {**files, **{f"lora {number}": item.path for number, item in enumerate(lora)}}
    gone = [str(file) for file in files.values() if not file.is_file()]
    if gone:
        raise ValueError(f"{', '.join(gone)}: no such file")
    preset = replace(
        preset,
        geometry=geometry_of(document["geometry"]) if "geometry" in document else preset.geometry,
        sampler={**preset.sampler, **document.get("sampler", {})},
        lora=(*preset.lora, *lora),
        weights_revision=revision(files, base=preset.weights_revision),
        **changes,
    )
    return fitted(preset, own_sampler=document.get("sampler", {})) if "vae" in preset.components else preset


def fitted(preset: Preset, *, own_sampler: Mapping[str, Any]) -> Preset:
    """A pipeline's preset, checked against its networks; `strength` is where the network does not see the source.

    Raises:
        ValueError: if channels, sizes, lengths or strength do not fit.
    """
    vae = read_json(preset.components["vae"] / "config.json")
    geometry, patch, sampler = preset.geometry, [1, 2, 2], dict(preset.sampler)
    if preset.components["transformer"].is_dir():
        network = read_json(preset.components["transformer"] / "config.json")
        patch = network.get("patch_size", patch)
        takes, gives = network.get("in_channels", 16), network.get("out_channels", 16)
        if takes not in (gives, 2 * gives):
            raise ValueError(
                f"the transformer takes {takes} channels; needs {gives} (text to video) or {2 * gives} (editing)"
            )
        if takes == gives:
            sampler.setdefault("strength", TEXT_TO_VIDEO_STRENGTH)
            if not 0 < sampler["strength"] < 1:
                raise ValueError(
                    f"strength is {sampler['strength']}; needs 0 to 1, as the network does not see the source"
                )
        elif "strength" not in own_sampler:
            sampler.pop("strength", None)
    temporal, spatial = vae.get("scale_factor_temporal") or 4, vae.get("scale_factor_spatial") or 8
    odd = [size for size in geometry.sizes if size[0] % (spatial * patch[1]) or size[1] % (spatial * patch[2])]
    if odd:
        raise ValueError(f"sizes {odd} do not fit; need multiples of {spatial * patch[1]}x{spatial * patch[2]} px")
    if geometry.frame_multiple % (temporal * patch[0]):
        raise ValueError(f"frame_multiple is {geometry.frame_multiple}; needs a multiple of {temporal * patch[0]}")
    return replace(preset, sampler=sampler)


def geometry_of(document: Mapping[str, Any]) -> Geometry:
    return Geometry(**{**document, "sizes": tuple((height, width) for height, width in document["sizes"])})


def write_preset_file(
    folder: Path, *, name: str, geometry: Geometry, sampler: Mapping[str, Any], max_instruction_tokens: int
) -> None:
    """`preset.json`, beside the saved components."""
    document = {
        "name": name,
        "geometry": asdict(geometry),
        "sampler": dict(sampler),
        "max_instruction_tokens": max_instruction_tokens,
    }
    (folder / PRESET_FILE).write_text(json.dumps(document, indent=2) + "\n")


def folder_files(folder: Path) -> dict[str, Path]:
    """Configurations and weights in a folder, by their place in it."""
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.suffix in REVISION_SUFFIXES}


def folder_revision(folder: Path) -> str:
    """Changes when any configuration or weight does; the same wherever the folder lies."""
    return revision(folder_files(folder))


def load_editor(name_or_path: str | Path, *, device: str = "cpu") -> "Editor":
    """The editor of a preset, ready to edit."""
    from model.editor import MemoryEditor

    return MemoryEditor.from_preset(resolve_preset(name_or_path), device=device)
