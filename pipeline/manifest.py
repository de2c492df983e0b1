"""The list of videos to edit: a manifest (JSONL, CSV or Parquet on any fsspec URL), or the command line's own sources.

Everything that is wrong with a manifest is found and listed with its line before any work starts. Whether a source
exists and is a video is not a question for the manifest: that is a failure of one video, and the others are edited.

A relative source is relative to the manifest's folder (on the command line: to the current folder).
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from model.presets import resolve_preset
from pipeline.source import split_url
from pipeline.table import Columns, ManifestError, Problem, RawRow, absolute, is_absent, read_rows, shown, text_of

COLUMNS = Columns(required=("source", "instruction"), optional=("id", "seed", "preset"))
DEFAULT_PRESET = "tiny"
MAX_ID_CHARS = 100
MAX_SLUG_CHARS = 60
MAX_SEED = 2**63 - 1
ID_PATTERN = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{MAX_ID_CHARS - 1}}}")


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One video to edit.

    Attributes:
        line: where it stands (1-based; a Parquet file's row, a command line's position), for messages.
        source: absolute path or URL.
        id: names the video's folder in the workspace; unique in a manifest.
    """

    line: int
    source: str
    instruction: str
    id: str
    seed: int
    preset: str


def load_manifest(url: str, *, seed: int = 0, preset: str = DEFAULT_PRESET) -> list[ManifestRow]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` manifest, in its order; `seed` and `preset` where a row has none.

    Raises:
        ManifestError: with every problem of every row, if there is any.
    """
    raw, problems = read_rows(url, COLUMNS)
    folder, _ = split_url(url)
    return _checked(url, raw, problems, default_seed=seed, default_preset=preset, base=folder)


def rows_from_sources(
    sources: Sequence[str], instruction: str, *, seed: int = 0, preset: str = DEFAULT_PRESET
) -> list[ManifestRow]:
    """The rows of `memory-v2v edit SOURCE... --instruction TEXT`; `line` is a source's position.

    Raises:
        ManifestError: as `load_manifest`.
    """
    name = "command line"
    if not sources:
        raise ManifestError(name, [Problem(line=0, column="source", message="none given; needs at least one")])
    raw = [(position, {"source": source, "instruction": instruction}) for position, source in enumerate(sources, 1)]
    return _checked(name, raw, [], default_seed=seed, default_preset=preset, base=".")


def default_id(source: str) -> str:
    """Readable and unique: the file's stem in safe characters, and six digits of the hash of its address.

    Depends on nothing but `source`, so that adding or removing rows renames no other video.
    """
    path = re.sub(r"[?#].*", "", source) if source.startswith(("http://", "https://")) else source
    stem = unicodedata.normalize("NFKD", PurePosixPath(path).stem)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", stem.encode("ascii", "ignore").decode())[:MAX_SLUG_CHARS].strip(".-")
    return f"{slug or 'video'}-{hashlib.sha256(source.encode()).hexdigest()[:6]}"


def _checked(
    name: str, raw: Sequence[RawRow], problems: list[Problem], *, default_seed: int, default_preset: str, base: str
) -> list[ManifestRow]:
    """The rows, or ManifestError with `problems` and every problem found here."""
    problems = list(problems)
    rows = []
    instruction_problem = _instruction_check()
    first_line: dict[str, int] = {}
    for line, values in raw:
        found: dict[str, str] = {}
        source, instruction = (
            text_of(values, column, found) if column in values else "" for column in ("source", "instruction")
        )
        video = text_of(values, "id", found, default="")
        preset = text_of(values, "preset", found, default=default_preset)
        seed = _seed(values, found, default=default_seed)
        if source:
            source = absolute(source, base)
        if video and not ID_PATTERN.fullmatch(video):
            found["id"] = (
                f"is {shown(video)}; needs 1 to {MAX_ID_CHARS} of the letters A-Z a-z, digits and . _ -, "
                "the first a letter, a digit or _"
            )
        elif not video and source and "id" not in found:
            video = default_id(source)
        if instruction and "preset" not in found:
            column, message = instruction_problem(preset, instruction)
            if message:
                found[column] = message
        if video and "id" not in found:
            # A file system may ignore case.
            earlier = first_line.setdefault(video.casefold(), line)
            if earlier != line:
                hint = "" if values.get("id") else " (made from the source, which is the same; give each row an id)"
                found["id"] = f"{video!r} on line {line} is already the id on line {earlier}{hint}"
        problems.extend(Problem(line=line, column=column, message=message) for column, message in found.items())
        rows.append(ManifestRow(line=line, source=source, instruction=instruction, id=video, seed=seed, preset=preset))
    if problems:
        raise ManifestError(name, problems)
    return rows


def _seed(values: Mapping[str, Any], found: dict[str, str], *, default: int) -> int:
    """A whole number. 3.0 counts, because a table tool writes that where another row has no seed."""
    value = values.get("seed")
    number: int | None = None
    if is_absent(value) or (isinstance(value, str) and not value.strip()):
        number = default
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}(\.0)?\s*", value):
        number = int(value.strip().removesuffix(".0"))
    if number is None:
        found["seed"] = f"is {shown(value)}; needs a whole number"
        return default
    if not 0 <= number <= MAX_SEED:
        found["seed"] = f"is {number}; needs 0 to {MAX_SEED}"
    return number


def _instruction_check() -> Callable[[str, str], tuple[str, str]]:
    """(preset, instruction) -> (column, message) of what the preset has against it; no message if nothing."""

    @cache
    def resolved(name: str) -> Any:
        try:
            return resolve_preset(name)
        except ValueError as error:
            return error

    def check(name: str, instruction: str) -> tuple[str, str]:
        preset = resolved(name)
        if isinstance(preset, ValueError):
            return "preset", str(preset)
        try:
            preset.check_instruction(instruction)
        except ValueError as error:
            return "instruction", str(error)
        return "", ""

    return check
