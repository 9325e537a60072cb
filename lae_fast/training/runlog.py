"""A run's records: metrics.jsonl and TensorBoard, both cut back when a run resumes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lae_fast import checks
from lae_fast.checkpoint import CheckpointError, naming, write_atomically

MEASURES = ("validation_negative_elbo", "loss")  # that TensorBoard compares runs by


def _scalars(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl: its step, and finite numbers by name; None: it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    is_number = (type(v) in (int, float) and abs(v) < math.inf for v in found.values())
    return found if all(is_number) else None


def read(path: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to `last_step` (None: all). Damaged ones at the end are left out: a crash may cut a line.

    Raises:
        CheckpointError: the file cannot be read, or is damaged before its end.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    found, damaged = [], 0
    for number, line in enumerate(content.splitlines(), 1):
        values = _scalars(line)
        if values is None:
            damaged = damaged or number
        elif last_step is None or values["step"] <= last_step:
            if damaged:
                raise CheckpointError(
                    f"{path}: line {damaged} is damaged; expected a step and finite numbers"
                )
            found.append(values)
    return found


def why_no_board() -> str:
    """What hinders TensorBoard's record, as the end of a sentence; "": nothing, there is one."""
    try:
        importlib.import_module("torch.utils.tensorboard")
    except Exception as error:  # of an installation that is broken, any
        if isinstance(error, ModuleNotFoundError) and "tensorboard" in str(error.name):
            return 'which is not installed: pip install "lae_fast[tensorboard]"'
        return f"which cannot be imported: {checks.reason(error)}"
    return ""


class _NoBoard:
    """What takes TensorBoard's place where there is none, and keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _board(folder: Path, purge_step: int | None, options: Mapping[str, object]) -> Any:
    """TensorBoard's writer, with records of options for its page of hyperparameters in the run's own files: `add_hparams` would
    write them as a run of their own, in a folder within this one."""
    if why_no_board():
        return _NoBoard()
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    board: Any = SummaryWriter(str(folder), purge_step=purge_step)
    shown = {k: v if type(v) in (bool, int, float) else _utf8(v) for k, v in options.items()}
    for summary in hparams(shown, dict.fromkeys(MEASURES, 0)) if options else ():
        board.file_writer.add_summary(summary)
    return board


def _utf8(value: object) -> str:
    """A text for TensorBoard, in which names of files that are not UTF-8 are escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()


class RunLog:
    """Scalars go to both records, pictures to TensorBoard, if there is one. A context manager that closes both.

    Args:
        folder: the run's folder.
        resume_step: continue after this step (-1: from the start), and drop later records. None: a new run.
        options: the run's options, for TensorBoard's page of hyperparameters, beside the measures of `MEASURES`.

    Raises:
        CheckpointError: the earlier records are damaged.
    """

    def __init__(
        self, folder: Path, resume_step: int | None = None, options: Mapping[str, object] | None = None
    ) -> None:
        self._path, self._events = folder / "metrics.jsonl", folder / "tensorboard"
        kept = read(self._path, -1 if resume_step is None else resume_step) if self._path.exists() else []
        write_atomically(self._path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        purge = None if resume_step is None else resume_step + 1
        with naming(self._events):
            self._board = _board(self._events, purge, options or {})
        self._file = self._path.open("a", buffering=1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, and one TensorBoard tag for each value; without those that are not finite, which
        JSON cannot say."""
        known = {tag: value for tag, value in values.items() if math.isfinite(value)}
        with naming(self._path):
            self._file.write(json.dumps({"step": step} | known) + "\n")
        with naming(self._events):
            for tag, value in known.items():
                self._board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, picture: Tensor) -> None:
        """Write a picture [height, width] or [height, width, 3] in [0, 1] to TensorBoard."""
        with naming(self._events):
            self._board.add_image(tag, picture, step, dataformats="HW" if picture.dim() == 2 else "HWC")

    def flush(self) -> None:
        """Write all records so far to disk."""
        with naming(self._path):
            self._file.flush()
            if not self._path.exists():  # else lines would go on into a file without a name
                raise FileNotFoundError(errno.ENOENT, "removed while the run went on")
        with naming(self._events):
            self._board.flush()

    def __enter__(self) -> RunLog:
        self._closing = contextlib.ExitStack()
        self._closing.enter_context(_quiet_threads())
        self._closing.callback(self._close)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What stops the run is told, not that the records could then not be closed.
        with contextlib.suppress(*([OSError] if kind else [])):
            self._closing.close()

    def _close(self) -> None:
        try:
            with naming(self._events), contextlib.closing(self._board):
                pass
        finally:
            with naming(self._path):
                self._file.close()


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """TensorBoard writes in a thread; an error of the system there is raised again here, and is not printed twice."""
    hook = threading.excepthook
    threading.excepthook = lambda facts: None if issubclass(facts.exc_type, OSError) else hook(facts)
    try:
        yield
    finally:
        threading.excepthook = hook
