"""Tables that a user writes (JSONL, CSV or Parquet on any fsspec URL): rows with their line, and everything that is wrong with them.

Knows columns by name only; what their values mean is for who asks (`pipeline/manifest.py`, `pipeline/training_pairs.py`).
"""

import csv
import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.source import split_url, storage_errors
from retrieval.store import Store


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a table may have."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def known(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)


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


def read_rows(url: str, columns: Columns) -> tuple[list[RawRow], list[Problem]]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` table as they stand there, and what is wrong so far.

    Raises:
        ManifestError: if the file is not there, is no such table, or cannot be read at all.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    folder, name = split_url(url)
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in readers:
        message = f"suffix {suffix!r} is unknown; needs {', '.join(readers)}"
        raise ManifestError(url, [Problem(line=0, column="", message=message)])
    problems: list[Problem] = []
    try:
        raw = list(readers[suffix](Store(folder), name, columns, problems))
    except IsADirectoryError:
        raise ManifestError(url, [Problem(line=0, column="", message="is a directory; needs a file")]) from None
    except FileNotFoundError:
        raise ManifestError(url, [Problem(line=0, column="", message="does not exist")]) from None
    except storage_errors() as error:
        message = f"cannot be read: {type(error).__name__}: {error}"
        raise ManifestError(url, [Problem(line=0, column="", message=message)]) from error
    if not raw and not problems:
        problems.append(Problem(line=0, column="", message="has no rows; needs at least one"))
    return raw, problems


def _read_jsonl(store: Store, name: str, columns: Columns, problems: list[Problem]) -> Iterator[RawRow]:
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
        problems.extend(_column_problems(line, value, columns))
        yield line, value


def _read_csv(store: Store, name: str, columns: Columns, problems: list[Problem]) -> Iterator[RawRow]:
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
            problems.extend(_column_problems(line, header, columns))
            problems.extend(
                Problem(line=line, column=column, message="appears twice in the header")
                for column in sorted({column for column in header if header.count(column) > 1})
            )
            if not set(columns.required) <= set(header):
                return
        elif len(fields) != len(header):
            message = f"has {len(fields)} fields; the header has {len(header)} (text with commas needs double quotes)"
            problems.append(Problem(line=line, column="", message=message))
        else:
            yield line, dict(zip(header, fields, strict=True))


def _read_parquet(store: Store, name: str, columns: Columns, problems: list[Problem]) -> Iterator[RawRow]:
    table = store.read_table(name)
    problems.extend(_column_problems(0, table.column_names, columns))
    if set(columns.required) <= set(table.column_names):
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


def _column_problems(line: int, found: Iterable[str], columns: Columns) -> list[Problem]:
    """Unknown and missing columns of a header, or of a row that names its own."""
    found = list(found)
    unknown = [
        Problem(
            line=line,
            column=column,
            message=f"is unknown{nearest(column, columns.known)} (known: {', '.join(columns.known)})",
        )
        for column in found
        if column not in columns.known
    ]
    missing = [Problem(line=line, column=name, message="is missing") for name in columns.required if name not in found]
    return unknown + missing


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if something known is close to `name`, else nothing."""
    close = difflib.get_close_matches(name.strip().lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def text_of(values: Mapping[str, Any], column: str, found: dict[str, str], *, default: str | None = None) -> str:
    """A column's text; a problem goes into `found` and gives ''. Without `default` it may not be empty."""
    value = values.get(column)
    if is_absent(value):
        value = ""
    if not isinstance(value, str):
        found[column] = f"is {shown(value)} ({type(value).__name__}); needs text"
        return ""
    if not value.strip():
        if default is None:
            found[column] = "is empty"
        return default or ""
    if re.search("[\0\ud800-\udfff]", value):
        found[column] = f"is {shown(value)}; may not contain NUL or half a surrogate pair"
        return ""
    return value


def absolute(source: str, base: str) -> str:
    if "://" in source or Path(source).is_absolute():
        return source
    if "://" in base:
        return f"{base}/{source}"
    return str(Path(base).absolute() / source)


def is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
