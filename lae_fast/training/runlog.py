"""A run's records: metrics.jsonl and TensorBoard, both cut back when a run resumes."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lae_fast.checkpoint import write_atomically


def _cut_back(path: Path, last_step: int) -> None:
    """Drop the lines of a JSONL file that lie beyond `last_step`, and a line cut short by a crash."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            break
        if step > last_step:
            break
        kept.append(line)
    write_atomically(path, "".join(f"{line}\n" for line in kept).encode())


class RunLog:
    """Scalars go to both records, pictures to TensorBoard. A context manager that closes both.

    Args:
        folder: the run's folder.
        resume_step: continue after this step (-1: from the start), and drop later records. None: a new run.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        path = folder / "metrics.jsonl"
        if path.exists():
            _cut_back(path, resume_step if resume_step is not None else -1)
        self._file = path.open("a", buffering=1)
        purge = None if resume_step is None else resume_step + 1
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics.jsonl, and one TensorBoard tag for each value."""
        self._file.write(json.dumps({"step": step} | values) + "\n")
        for tag, value in values.items():
            self._board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, picture: Tensor) -> None:
        """Write a grey picture [height, width] in [0, 1] to TensorBoard."""
        self._board.add_image(tag, picture, step, dataformats="HW")

    def flush(self) -> None:
        """Write all records so far to disk."""
        self._file.flush()
        self._board.flush()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()
