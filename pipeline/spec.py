"""What an edit is: everything its latents depend on, and the ids made from it.

Same spec, same `edit_id`, nothing to do; any change gives another id and another folder. What does not change the
latents is not here: the output's size, the number of workers, where the source lies. A change of the code that changes
latents raises `SPEC_VERSION`; one that changes spans or embeddings raises `PREPARE_VERSION` as well.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from model.geometry import Geometry
from model.memory import MemorySettings

SPEC_VERSION = 6
PREPARE_VERSION = 1
REMAINDER_RULE = "pad-repeat-last"
"""A segment of illegal length is padded with its last frame and cut again (model/geometry.py)."""

ID_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One edit of the video. Later turns may carry target cameras."""

    instruction: str


@dataclass(frozen=True, kw_only=True)
class ShotDetection:
    """How cuts are found; the meaning of the numbers is the detector's (pipeline/video/shots.py)."""

    detector: str
    threshold: float
    min_content_change: float
    min_shot_frames: int
    width_px: int


@dataclass(frozen=True, kw_only=True)
class SegmentGeometry:
    """The editor's geometry with the size chosen for this video."""

    segment_frames: int
    min_frames: int
    frame_multiple: int
    height_px: int
    width_px: int
    remainder: str = REMAINDER_RULE

    @classmethod
    def of(cls, geometry: Geometry, *, size: tuple[int, int]) -> "SegmentGeometry":
        if size not in geometry.sizes:
            raise ValueError(f"size {size} (height_px, width_px) is not legal; needs one of {list(geometry.sizes)}")
        return cls(
            segment_frames=geometry.segment_frames,
            min_frames=geometry.min_frames,
            frame_multiple=geometry.frame_multiple,
            height_px=size[0],
            width_px=size[1],
        )


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Which earlier segments a segment remembers, and by what they are found."""

    method: str
    top_k: int
    slack: float
    embedder_revision: str


@dataclass(frozen=True, kw_only=True)
class EditSpec:
    """The content of `spec.json`.

    Attributes:
        preset: its name, for the reader; what it means is in `weights_revision`, `sampler` and `geometry`.
        sampler: num_inference_steps, guidance_scale, shift, … as the preset names them.
        memory: how memories are tokenized and thinned, resolved: nothing is left to the preset.
    """

    source_sha256: str
    turns: tuple[Turn, ...]
    preset: str
    weights_revision: str
    sampler: Mapping[str, float | int | str | bool | None]
    seed: int
    geometry: SegmentGeometry
    retrieval: Retrieval
    memory: MemorySettings
    shots: ShotDetection
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("turns is empty; needs at least one")
        canonical_json(self.to_json())

    @property
    def edit_id(self) -> str:
        return content_id(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "turns": [asdict(turn) for turn in self.turns], "sampler": dict(self.sampler)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "EditSpec":
        """The spec of a `spec.json`.

        Raises:
            ValueError: if another version of this software wrote it.
        """
        if value.get("version") != SPEC_VERSION:
            raise ValueError(f"spec has version {value.get('version')}; this software reads {SPEC_VERSION}")
        return cls(
            **{
                **value,
                "turns": tuple(Turn(**turn) for turn in value["turns"]),
                "geometry": SegmentGeometry(**value["geometry"]),
                "retrieval": Retrieval(**value["retrieval"]),
                "memory": MemorySettings(**value["memory"]),
                "shots": ShotDetection(**value["shots"]),
            }
        )


def prepare_id(source_sha256: str, *, geometry: Geometry, shots: ShotDetection, embedder_revision: str) -> str:
    """Names the prepared tables: the same for every edit that cuts and embeds the source in the same way."""
    return content_id(
        {
            "version": PREPARE_VERSION,
            "source_sha256": source_sha256,
            "geometry": asdict(geometry),
            "remainder": REMAINDER_RULE,
            "shots": asdict(shots),
            "embedder_revision": embedder_revision,
        }
    )


def content_id(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:ID_DIGITS]


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces, and numbers that are equal written alike (5 and 5.0).

    Raises:
        ValueError: for NaN, infinity, or what JSON cannot hold.
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError(f"keys {list(value)} are not all text")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return int(value) if value.is_integer() else value
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(f"{value!r} ({type(value).__name__}) cannot be part of an identity; needs text, numbers, lists")
