"""The commands `train` and `score` in several processes, as torchrun starts them, at the price of one import: each job's processes
are children of this one. What happens to them is a job's own.

`python torchrun.py FILE FOLDER`: FILE holds jobs, a list of (name, number of processes, arguments); the name of a job that scores
begins with "score". Each process leaves in FOLDER its exit code, its output, and of a training the model after every step.
"""

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch

from lae_fast import score, train
from lae_fast.evaluation import ais
from lae_fast.training import processes, runlog, trainer

KILLED_AT, STOPPED_AT, SPOILT_AT = 14, 5, 7  # steps


def disturb(name, made):
    """What a job's name promises."""
    step, second = made.progress.step, made.processes.rank == 1
    if name == "killed" and second and step == KILLED_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "slow" and second and step % 3 == 1:
        time.sleep(0.3)
    if name == "frozen" and second and step == KILLED_AT:
        os.kill(os.getpid(), signal.SIGSTOP)
    if name == "stopped" and second and step == STOPPED_AT:
        os.kill(os.getpid(), signal.SIGTERM)
    if name in ("apart", "diverged") and step == SPOILT_AT and (second or name == "diverged"):
        with torch.no_grad():
            made.model.decoder[0].weight[0, 0] = 0.5 if name == "apart" else float("nan")


def recorded(name, steps):
    """A step of the trainer that is disturbed, and leaves its traces: the loss, the model and Adam's moments after it."""
    step = trainer.Trainer._step

    def call(self, index):
        disturb(name, self)
        metrics = step(self, index)
        state = {k: t.clone() for k, t in self.model.state_dict().items()}
        moments = [s["exp_avg"].clone() for s in self.optimizer.state.values()]
        steps.append((metrics.get("loss"), state, moments))
        return metrics

    return call


def work(name, rank, size, port, arguments, folder):
    """What each process does; its exit code."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": f"job-{name}"}
    file = os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if name.startswith("score"):
        if rank == 1 and name in FATES:
            ais._Descent.start = FATES[name]
        return score.main(arguments)
    steps = []
    trainer.Trainer._step = recorded(name, steps)
    if name == "frozen":
        processes.TIMEOUT = timedelta(seconds=4)
    if name == "other data" and rank == 1:
        load = train.data.load
        train.data.load = lambda *a, **o: load(*a, **(o | {"validation": 100}))
    try:
        return train.main(arguments)
    finally:
        torch.save(steps, folder / f"{name}-{rank}.pt")


def out_of_memory(_):
    raise torch.OutOfMemoryError("there is no memory for this")


FATES = {"score, half": out_of_memory, "score, killed": lambda _: os.kill(os.getpid(), signal.SIGKILL)}


def started(*arguments):
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        code = work(*arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(children):
    """Their exit codes. A process that has been stopped goes when the others have gone."""
    codes = {}
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
        stopped = set(children) - codes.keys()
        if codes and all(
            Path(f"/proc/{c}/stat").read_text().rpartition(")")[2].split()[0] == "T" for c in stopped
        ):
            for child in stopped:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main(jobs, folder):
    torch.set_num_threads(1)
    trainer.N_BOUND = 10  # what comes after the training need not be as good
    train.view.write = lambda *_, **__: "no page"
    runlog.why_no_board = lambda: "not here"
    for slow in ("sklearn.datasets", "torch._dynamo", "matplotlib.figure"):
        importlib.import_module(slow)
    codes = {}
    for name, size, arguments in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        codes[name] = ended([started(name, rank, size, port, arguments, folder) for rank in range(size)])
    print(json.dumps(codes))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
