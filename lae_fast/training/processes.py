"""The processes that torchrun has started for one training, or for one table of scores, and how they act as one.

All run the same program in lockstep, each on its rows of every minibatch, or its part of the batches to be scored (sharing.py):
whatever decides how it goes on is the same on all of them. The first has the folders, and speaks to people. An error is told once,
by the process that has it, and ends all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from lae_fast.training.config import TrainingError

T = TypeVar("T")

# How long the others wait for a process that says nothing, as the first one while it validates. One that has died is
# missed at once.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclasses.dataclass(frozen=True)
class Processes:
    """By default one process, which does everything alone, and to which nothing here does anything."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this host
    job: str | None = None  # torchrun's name of the job, which stays when it starts its processes once more
    n_restarts: int = 0  # that torchrun would make
    start: str | None = None  # the number of this start, where torchrun of one host counts them

    @classmethod
    def started(cls) -> Processes:
        """Those that torchrun has started; without torchrun one."""
        if not distributed.is_available() or not distributed.is_torchelastic_launched():
            return cls()
        given = os.environ
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_MAX_RESTARTS")
        rank, size, local_rank, n_restarts = (int(given.get(name, "0")) for name in numbers)
        job = given["TORCHELASTIC_RUN_ID"]
        start = given.get("TORCHELASTIC_RESTART_COUNT") if given.get("GROUP_WORLD_SIZE") == "1" else None
        return cls(rank, size, local_rank, None if job == "none" else job, n_restarts, start)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def joined(self, stays: str) -> Iterator[None]:
        """The default process group: NCCL between GPUs, Gloo between CPUs, and for what hosts have to say to each other.

        Args:
            stays: what there is when a process is lost, for people.

        Raises:
            TrainingError: the processes do not come together, or one of them is lost.
        """
        if self.size == 1:
            yield
            return
        # Its functions have the process group of their import as a default. Imported after this group, as by an optimizer, they would
        # keep it, and Gloo's threads, until the interpreter ends, where a thread that needs it aborts the process.
        importlib.import_module("torch.distributed.nn")
        on_gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        public: Any = distributed  # also what it does not tell type checkers
        try:
            store, _, _ = next(public.rendezvous("env://"))
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
                store=public.PrefixStore(self.start or "", store),
                rank=self.rank,
                world_size=self.size,
                timeout=TIMEOUT,
            )
            yield
        except RuntimeError as error:
            if not _is_of_connections(error):
                raise
            raise TrainingError(
                f"process {self.rank} of {self.size} has lost another one, which has ended or is silent ({_reason(error)}); "
                f"{stays}"
            ) from error
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def check_restarts(self, folder: Path | None) -> None:
        """Raise a TrainingError if processes that torchrun would start once more could not go on.

        Args:
            folder: where they would find the run; None: nowhere.
        """
        if self.n_restarts == 0:
            return
        if folder is None:
            raise TrainingError(
                f"torchrun --max-restarts {self.n_restarts} for a run that could not be found again; expected --output-dir, and "
                "--standalone or --rdzv-id before -m"
            )
        # It keeps what processes write down for each other, also where those of an earlier start have listened.
        if self.start is None and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            raise TrainingError(
                f"torchrun --max-restarts {self.n_restarts} on several hosts keeps addresses of processes that have ended; "
                "expected TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment"
            )

    def device(self, name: str) -> str:
        """The device that this process computes on, where the command's --device is `name`: each has a GPU of its own.

        Raises:
            TrainingError: there are too few GPUs, or the name is that of one.
        """
        if self.size == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
            return name
        if name not in ("auto", "cuda"):
            raise TrainingError(f"--device is {name} for {self.size} processes; expected auto, cuda or cpu")
        if self.local_rank >= (n := torch.cuda.device_count()):
            raise TrainingError(
                f"process {self.local_rank} of a host with {n} GPUs; expected a GPU for each process, or --device cpu"
            )
        return f"cuda:{self.local_rank}"

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(int(number))
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def together(self, function: Callable[[], T]) -> T:
        """What the function returns, once it has returned on all processes; it does not talk to the others.

        Raises:
            Exception: what it raises, on the first process where it fails. SystemExit: on all others.
        """
        if self.size == 1:
            return function()
        result, failure = None, None
        try:
            result = function()
        except (Exception, SystemExit) as error:
            failure = error
        codes = self._of_all(_exit_code(failure))
        failed = next((rank for rank, code in enumerate(codes) if code is not None), None)
        if failed is not None:
            raise failure if failure and failed == self.rank else SystemExit(codes[failed])
        return result  # type: ignore[return-value]  # as there was no failure

    def of_first(self, function: Callable[[], T]) -> T:
        """What the function returns on the first process, which alone calls it; on all of them. Errors as in `together`."""
        result = self.together(function if self.is_first else _nothing)
        if self.size > 1:
            found = [result]
            distributed.broadcast_object_list(found, 0)
            (result,) = found
        return result  # type: ignore[return-value]  # of the first one's function

    def by_host(self, function: Callable[[], T]) -> T:
        """What the function returns. One process of each host calls it before the others do, and downloads what they then find.
        Errors as in `together`."""
        if self.size == 1:
            return function()
        first = self.together(_nothing if self.local_rank else function)
        other = self.together(function if self.local_rank else _nothing)
        return other if self.local_rank else first  # type: ignore[return-value]  # each has called it once

    def check_alike(self, name: str, value: object) -> None:
        """Raise a TrainingError, as in `together`, unless the value is the same on all processes."""
        values = self._of_all(value)
        other = next((rank for rank, v in enumerate(values) if v != values[0]), None)
        if other is not None:
            text = f"process {other} has other {name} than process 0; expected the same on all"
            raise TrainingError(text) if self.is_first else SystemExit(2)

    def _of_all(self, value: object) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


ALONE = Processes()


def _nothing() -> None:
    pass


def _exit_code(failure: Exception | SystemExit | None) -> Any:
    """Of a process that ends by this; None: it goes on."""
    if isinstance(failure, SystemExit):  # after a text of help, say
        return failure.code or 0
    return None if failure is None else 2


def _is_of_connections(error: RuntimeError) -> bool:
    """Whether an error is of what connects the processes. Gloo raises no class of its own."""
    return isinstance(error, distributed.DistError) or (type(error) is RuntimeError and "gloo" in str(error))


def _reason(error: RuntimeError) -> str:
    """The part of Gloo's and NCCL's messages that says what happened."""
    return re.sub(r"\[\S+\.cc:\d+\] ", "", str(error).splitlines()[0]).split(". ")[0]
