"""`memory-v2v` / `python -m jobs`: the command line. Dispatches; every command lives in its own file."""

import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS = {
    "edit": "edit long videos by instruction, consistently from the first segment to the last",
    "status": "what a workspace holds: every video's edit and how far it is",
    "retry-failed": "run again what failed or was quarantined in a workspace",
    "train": "train the editor of a preset (network, text encoder, codec) on rendered worlds",
    "train-embedder": "train the bundled open_clip model that compares source segments",
    "evaluate": "edit held-out rendered videos by several methods and measure them against the truth",
    "demo": "edit a real street video and a rendered long video, and say where to look",
}
"""Command -> what it does. The function is `main(argv)` of jobs/<command>.py."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "usage: memory-v2v COMMAND ...\n\ncommands:\n" + "\n".join(lines) + "\n\nmemory-v2v COMMAND --help says more."
    )


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"memory-v2v: no command {command!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    # Heavy imports happen only for the command that needs them.
    run: Callable[[list[str]], int] = import_module(f"jobs.{command.replace('-', '_')}").main
    sys.exit(run(rest))


if __name__ == "__main__":
    main()
