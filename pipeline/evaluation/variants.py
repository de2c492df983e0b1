"""What an evaluation compares: how the rows of its tables are written, and what each of them edits by.

    METHOD[@PRESET][:kernels=anchored|dynamic|fine|coarse][:merging=off|merge-low|…][:share=0.5][:source=on|off]

`memory:merging=discard-low:share=0.3` is the method "memory" with the lower 30 % of its memory frames discarded;
`memory@FOLDER` is edited by other weights than the rest. Knows nothing of how edits are made or measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from model.memory import MemorySettings
from pipeline.plan import Method

REFERENCE = "memory"
"""The row that the others are compared with; also what further presets edit by."""

NAMED = {"memory-edited-only": "memory:source=off"}
"""Rows with a name of their own: the network sees the edited latents of a memory and not its source."""

TABLES: dict[str, tuple[str, ...]] = {
    "table-a": ("independent", "previous", "recent", "random", "memory", "memory-edited-only"),
    "table-b": (
        "memory",
        "memory:kernels=dynamic",
        "memory:kernels=fine",
        "memory:kernels=coarse",
        "memory:merging=off",
        "memory:merging=merge-low:share=0.3",
        "memory:merging=merge-low:share=0.5",
        "memory:merging=merge-low:share=0.7",
        "memory:merging=merge-high:share=0.5",
        "memory:merging=discard-low:share=0.5",
        "memory:merging=discard-high:share=0.5",
    ),
}
"""Lists of rows that have a name: what is remembered, and how it is tokenized."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row: `name` as it was written."""

    name: str
    method: Method
    preset: str
    settings: MemorySettings


def read_variants(methods: Sequence[str], presets: Sequence[str]) -> tuple[Variant, ...]:
    """The rows of `methods`, edited by the first preset where they name none, and "memory" by each further preset.

    Raises:
        ValueError: for what is not written as above, or rows that are there twice.
    """
    names = [name for method in methods for name in TABLES.get(method, (method,))]
    names += [f"{REFERENCE}@{preset}" for preset in presets[1:]]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--methods is {','.join(names)!r}; needs each method once, and at least one")
    return tuple(read_variant(name, preset=presets[0]) for name in names)


def read_variant(name: str, *, preset: str) -> Variant:
    head, *options = NAMED.get(name, name).split(":")
    method, _, own_preset = head.partition("@")
    if method not in get_args(Method):
        allowed = (*get_args(Method), *NAMED, *TABLES)
        raise ValueError(f"--methods has {name!r}; needs some of {', '.join(allowed)}")
    settings: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key in ("kernels", "merging"):
            settings[key] = value
        elif key == "share" and is_number(value):
            settings["merging_share"] = float(value)
        elif key == "source" and value in ("on", "off"):
            settings["has_source"] = value == "on"
        else:
            raise ValueError(
                f"--methods has {option!r} in {name!r}; needs kernels=…, merging=…, share=NUMBER, source=on or source=off"
            )
    try:
        found = MemorySettings(**settings)
    except ValueError as error:
        raise ValueError(f"--methods has {name!r}: {error}") from error
    return Variant(name=name, method=method, preset=own_preset or preset, settings=found)  # type: ignore[arg-type]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
