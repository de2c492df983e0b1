"""How the commands speak: standard output carries the result alone, everything else goes to standard error."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


@contextmanager
def result_stream() -> Iterator[IO[str]]:
    """Standard output for the result, while everything else that writes to it (Ray, C libraries) lands on standard error."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def print_json(stream: IO[str], value: Any) -> None:
    """One object on one line: the last line of standard output."""
    print(json.dumps(value), file=stream, flush=True)


def command_error(command: str, error: Exception) -> int:
    """Say what is wrong with the command or manifest; exit status 2."""
    print(f"memory-v2v {command}: {error}", file=sys.stderr)
    return 2
