"""`lae-fast COMMAND ...`, also `python -m lae_fast COMMAND ...`: all commands of the package under one name.

Each is a module of its own, which `python -m lae_fast.COMMAND` runs as well.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from lae_fast import console
from lae_fast._version import __version__

COMMANDS = {  # the module whose `main` takes the arguments, and what it does
    "train": ("lae_fast.train", "train a model, watch it, stop and resume it"),
    "score": ("lae_fast.score", "how likely trained models find test images"),
    "view": ("lae_fast.view", "a run as one HTML page to look at"),
    "info": ("lae_fast.info", "versions, and the kernels that serve each device"),
    "experiments": ("lae_fast.experiments.__main__", "the report's tables and figures, measured here"),
}


def _usage() -> str:
    typed = " ".join(console.typed())
    lines = [f"  {name:<13}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [f"usage: {typed} [OPTIONS]", "", *lines, "", f"{typed} --help lists a command's options."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if command in COMMANDS:
        code: int = importlib.import_module(COMMANDS[command][0]).main(arguments)
        return code
    if command in ("-h", "--help", "--version"):
        console.say(f"lae_fast {__version__}" if command == "--version" else _usage())
        return 0
    if command:
        console.complain(f"error: {command!r} is no command; expected one of {', '.join(COMMANDS)}")
    else:
        console.complain(_usage())
    return 2


if __name__ == "__main__":
    sys.exit(main())
