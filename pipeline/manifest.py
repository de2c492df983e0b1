"""The list of videos to edit: a manifest (JSONL, CSV or Parquet on any fsspec URL), or the command line's own sources.

Everything that is wrong with a manifest is found and listed with its line before any work starts. Whether a source
exists and is a video is not a question for the manifest: that is a failure of one video, and the others are edited.

A relative source is relative to the manifest's folder (on the command line: to the current folder).
"""

import csv
import difflib
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from model.presets import resolve_preset
from pipeline.source import split_url, storage_errors
from retrieval.store import Store

REQUIRED = ("source", "instruction")
COLUMNS = (*REQUIRED, "id", "seed", "preset")
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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong; `line` 0 is the manifest as a whole, `column` empty where it is not about one."""

    line: int
    column: str
    message: str


class ManifestError(ValueError):
    """Everything wrong with a manifest, in `.problems`; as text, one line each."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = sorted(problems, key=lambda problem: problem.line)
        super().__init__(name, problems)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.problems)} problem{'s' * (len(self.problems) != 1)}, nothing was started"]
        for problem in self.problems:
            line = f"line {problem.line}: " if problem.line else ""
            column = f"column {problem.column!r}: " if problem.column else ""
            lines.append(f"  {line}{column}{problem.message}")
        return "\n".join(lines)


RawRow = tuple[int, Mapping[str, Any]]
"""(line, column -> value as the file has it)."""


def load_manifest(url: str, *, seed: int = 0, preset: str = DEFAULT_PRESET) -> list[ManifestRow]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` manifest, in its order; `seed` and `preset` where a row has none.

    Raises:
        ManifestError: with every problem of every row, if there is any.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    folder, name = split_url(url)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in readers:
        message = f"suffix {suffix!r} is unknown; needs {', '.join(readers)}"
        raise ManifestError(url, [Problem(line=0, column="", message=message)])
    problems: list[Problem] = []
    try:
        raw = list(readers[suffix](Store(folder), name, problems))
    except IsADirectoryError:
        raise ManifestError(url, [Problem(line=0, column="", message="is a directory; needs a file")]) from None
    except FileNotFoundError:
        raise ManifestError(url, [Problem(line=0, column="", message="does not exist")]) from None
    except storage_errors() as error:
        message = f"cannot be read: {type(error).__name__}: {error}"
        raise ManifestError(url, [Problem(line=0, column="", message=message)]) from error
    if not raw and not problems:
        problems.append(Problem(line=0, column="", message="has no rows; needs at least one"))
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


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if something known is close to `name`, else nothing."""
    close = difflib.get_close_matches(name.strip().lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_jsonl(store: Store, name: str, problems: list[Problem]) -> Iterator[RawRow]:
    for line, text, is_readable in _text_lines(store.read_bytes(name), problems):
        if not text.strip() or not is_readable:
            continue
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(line=line, column="", message=f"is not JSON: {error}"))
            continue
        if not isinstance(value, dict):
            message = f"is a JSON {type(value).__name__}; needs an object {{…}}"
            problems.append(Problem(line=line, column="", message=message))
            continue
        problems.extend(_column_problems(line, value))
        yield line, value


def _read_csv(store: Store, name: str, problems: list[Problem]) -> Iterator[RawRow]:
    lines = list(_text_lines(store.read_bytes(name), problems))
    unreadable = {line for line, _, is_readable in lines if not is_readable}
    reader = csv.reader((text for _, text, _ in lines), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(Problem(line=line, column="", message=f"is not CSV: {error}"))
            continue
        if not fields or unreadable.intersection(range(line, reader.line_num + 1)):
            continue
        if header is None:
            header = fields
            problems.extend(_column_problems(line, header))
            problems.extend(
                Problem(line=line, column=column, message="appears twice in the header")
                for column in sorted({column for column in header if header.count(column) > 1})
            )
            if not set(REQUIRED) <= set(header):
                return
        elif len(fields) != len(header):
            message = f"has {len(fields)} fields; the header has {len(header)} (text with commas needs double quotes)"
            problems.append(Problem(line=line, column="", message=message))
        else:
            yield line, dict(zip(header, fields, strict=True))


def _read_parquet(store: Store, name: str, problems: list[Problem]) -> Iterator[RawRow]:
    table = store.read_table(name)
    problems.extend(_column_problems(0, table.column_names))
    if set(REQUIRED) <= set(table.column_names):
        yield from enumerate(table.to_pylist(), 1)


def _text_lines(data: bytes, problems: list[Problem]) -> Iterator[tuple[int, str, bool]]:
    """(line, text, is_readable) of a UTF-8 file; a line that is not UTF-8 is a problem and comes with marks in it."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.append(Problem(line=1, column="", message="is UTF-16; save the file as UTF-8"))
        return
    for line, encoded in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), 1):
        try:
            yield line, encoded.decode(), True
        except UnicodeDecodeError as error:
            message = f"is not UTF-8: byte 0x{encoded[error.start]:02x} at position {error.start + 1}"
            problems.append(Problem(line=line, column="", message=message))
            yield line, encoded.decode(errors="replace"), False


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{repeated!r} appears twice")
    return dict(pairs)


def _column_problems(line: int, columns: Iterable[str]) -> list[Problem]:
    """Unknown and missing columns of a header, or of a row that names its own."""
    columns = list(columns)
    unknown = [
        Problem(
            line=line,
            column=column,
            message=f"is unknown{nearest(column, COLUMNS)} (known: {', '.join(COLUMNS)})",
        )
        for column in columns
        if column not in COLUMNS
    ]
    missing = [Problem(line=line, column=name, message="is missing") for name in REQUIRED if name not in columns]
    return unknown + missing


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
            _text(values, column, found) if column in values else "" for column in ("source", "instruction")
        )
        video = _text(values, "id", found, default="")
        preset = _text(values, "preset", found, default=default_preset)
        seed = _seed(values, found, default=default_seed)
        if source:
            source = _absolute(source, base)
        if video and not ID_PATTERN.fullmatch(video):
            found["id"] = (
                f"is {_shown(video)}; needs 1 to {MAX_ID_CHARS} of the letters A-Z a-z, digits and . _ -, "
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


def _text(values: Mapping[str, Any], column: str, found: dict[str, str], *, default: str | None = None) -> str:
    """A column's text; a problem goes into `found` and gives ''. Without `default` it may not be empty."""
    value = values.get(column)
    if _is_absent(value):
        value = ""
    if not isinstance(value, str):
        found[column] = f"is {_shown(value)} ({type(value).__name__}); needs text"
        return ""
    if not value.strip():
        if default is None:
            found[column] = "is empty"
        return default or ""
    if re.search("[\0\ud800-\udfff]", value):
        found[column] = f"is {_shown(value)}; may not contain NUL or half a surrogate pair"
        return ""
    return value


def _seed(values: Mapping[str, Any], found: dict[str, str], *, default: int) -> int:
    """A whole number. 3.0 counts, because a table tool writes that where another row has no seed."""
    value = values.get("seed")
    number: int | None = None
    if _is_absent(value) or (isinstance(value, str) and not value.strip()):
        number = default
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        number = int(value)
    elif isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,30}(\.0)?\s*", value):
        number = int(value.strip().removesuffix(".0"))
    if number is None:
        found["seed"] = f"is {_shown(value)}; needs a whole number"
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


def _absolute(source: str, base: str) -> str:
    if "://" in source or Path(source).is_absolute():
        return source
    if "://" in base:
        return f"{base}/{source}"
    return str(Path(base).absolute() / source)


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
