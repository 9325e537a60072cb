"""What all commands share: lines that cannot stop a run, signals that stop it well, and exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

S = TypeVar("S", bound="_Signals")

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and what schedulers send


class Terminated(KeyboardInterrupt):
    """SIGTERM came: all is as for Ctrl-C, but for the exit code."""


def say(text: str, to: TextIO | None = None) -> None:
    """Print a line, on stdout unless told otherwise. A closed pipe or a full disk silences the stream and stops nothing."""
    stream = to or sys.stdout
    try:
        print(f"{text}\n", end="", file=stream, flush=True)  # at once, also where nothing is buffered
    except UnicodeEncodeError:
        say(text.encode("ascii", "backslashreplace").decode(), stream)
    except (OSError, ValueError):
        _silence(stream)


def complain(text: str) -> None:
    """`say` on stderr."""
    if sys.stderr is not None:
        say(text, sys.stderr)


def _silence(stream: TextIO) -> None:
    """Let a stream that has failed lead nowhere; else Python tries it again at the end, and fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = stream.fileno()
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)


def typed(command: str = "COMMAND") -> list[str]:
    """What starts a command of the package, as this one was started: by torchrun, `lae-fast train`, `python -m lae_fast train`,
    else `python -m lae_fast.train`; for usage lines, records and advice."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        n_processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return ["torchrun", "--nproc-per-node", n_processes, "-m", f"lae_fast.{command}"]
    program = Path(sys.argv[0])
    if program.stem == "lae-fast":
        return ["lae-fast", command]
    if program.name == "__main__.py" and program.parent.name == "lae_fast":
        return ["python", "-m", "lae_fast", command]
    return ["python", "-m", f"lae_fast.{command}"]


def arguments(given: Sequence[str] | None) -> Sequence[str]:
    """What a command was given, by default this program's own arguments.

    Raises:
        ValueError: one is empty, as of a shell's variable that is not set; pathlib would take it for the current folder.
    """
    found = sys.argv[1:] if given is None else given
    for before, argument in zip(("an argument", *found), found, strict=False):
        if re.fullmatch(r"(--[\w-]+=)?", argument):
            raise ValueError(f"{argument.rstrip('=') or before} is empty; expected a value")
    return found


class _Signals:
    """Handlers that are in force while it is entered, but of signals that whoever started the program lets it ignore; none off the main
    thread, where Python allows none."""

    def __enter__(self: S) -> S:
        on_main = threading.current_thread() is threading.main_thread()
        taken = [s for s in SIGNALS if on_main and signal.getsignal(s) is not signal.SIG_IGN]
        self._previous = {s: signal.signal(s, self._handle) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


class Interrupt(_Signals):
    """A signal asks a loop to stop when it may: `requested` is then the signal's number. A second one stops at once."""

    requested = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        self._restore()


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Streams that escape what their encoding lacks, and at the end are empty and escape what they did before."""
    texts = [(s, s.errors) for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    for text, _ in texts:
        text.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                _silence(stream)
            except AttributeError:  # there is none
                pass
        for text, errors in texts:
            with contextlib.suppress(OSError, ValueError):
                text.reconfigure(errors=errors)


def run(body: Callable[[], int], errors: tuple[type[Exception], ...], stopped: str) -> int:
    """The body of a command; returns its exit code: 2 after one line for an error, 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        errors: what a user can mend. Others are faults of this package, and keep their traceback.
        stopped: what to say when a signal came; empty: nothing.
    """
    with _streams(), _Signals():
        try:
            return body()
        except BrokenPipeError:  # of a help text, say: who reads no further wants no more
            return 128 + 13  # as of SIGPIPE
        except errors as error:
            complain(f"error: {' '.join(str(error).splitlines()) or type(error).__name__}")
            return 2
        except KeyboardInterrupt as stop:
            if stopped:
                complain(stopped)
            return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
