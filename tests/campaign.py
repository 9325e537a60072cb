"""Small trainings that are killed, stopped or robbed of their disk at random moments, and then resumed.

`python campaign.py FOLDER SECONDS TRIALS` prints what went wrong, as JSON: a list of sentences, and how often each disturbance
struck. Whatever happens to a run, resuming ends in the weights of an undisturbed one, bit for bit, or is refused in one line.
Each training is a child of this process, which has imported what takes longer than a training; it trains nothing itself.
"""

import collections
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from commands import SMALL_RUN

from lae_fast import checkpoint, train
from lae_fast.training import trainer

OPTIONS = [*SMALL_RUN, *["--batch-size", "100", "--epochs", "2", "--log-every", "5"]]
VARIANTS = (
    "--model lae --checkpoint-every 3",
    "--model lae --decisions joint --binarize dynamic",
    "--model vae --checkpoint-every 1 --nz 2",
    "--model hoffman --checkpoint-every 7 --binarize fixed",
)
STOPS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130}}


def strike_at(tick, strike):
    """Call `strike` at the n-th of the moments that matter: a step, a flush to disk, a file that gets its name."""
    left = [tick]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                strike()
            return function(*arguments, **options)

        return call

    os.fsync, os.replace, os.rename = map(counted, (os.fsync, os.replace, os.rename))
    trainer.Trainer._step = counted(trainer.Trainer._step)


def fill_disk(n_bytes):
    """No file can become larger than this; what is written beyond is refused, as by a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))


def started(arguments, log, prepare=lambda: None):
    """The process of a training; what it prints goes to the file `log`."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        prepare()
        code = train.main([*map(str, arguments)])
    except KeyboardInterrupt:  # before the command could see to it
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def disturbed(draw, arguments, log, seconds, strikes):
    """Run a training that something happens to; says what is wrong with how it ended."""
    kind = draw.choice(("signal at a moment", "signal at a tick", "full disk"))
    number = draw.choice(list(STOPS))
    allowed = STOPS[number] | {0}
    if kind == "signal at a moment":
        child = started(arguments, log)
        time.sleep(draw.uniform(0, 1.1 * seconds))
        os.kill(child, number)
    elif kind == "signal at a tick":
        tick = draw.randrange(1, 60)
        child = started(arguments, log, lambda: strike_at(tick, lambda: os.kill(os.getpid(), number)))
    else:
        allowed, n_bytes, tick = {0, 2}, draw.choice((0, 100, 3000, 20_000, 60_000)), draw.randrange(1, 60)
        child = started(arguments, log, lambda: strike_at(tick, lambda: fill_disk(n_bytes)))
    code, text = ended(child), log.read_text()
    name = kind if kind == "full disk" else number.name
    strikes[name] += code != 0
    if code not in allowed or "Traceback" in text:
        return f"{name}: code {code}, expected one of {sorted(allowed)}: {text}"
    if code == 2 and len([line for line in text.splitlines() if line.startswith("error: ")]) > 1:
        return f"{name}: more than one line: {text}"
    return None


def records(folder):
    """What a finished run has found, without wall-clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    saved = checkpoint.load_latest(folder / "checkpoints")
    best = checkpoint.load_weights(folder / "best.safetensors")[0]
    return {
        "results": json.loads((folder / "results.json").read_text()),
        "metrics": [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines],
        "last": {k: v.tolist() for k, v in saved.weights.items()},
        "best": {k: v.tolist() for k, v in best.items()},
    }


def resumed(folder, options, log):
    """Let a run end; where it never came to a record, begin it, for nothing is in the way. What went wrong, or None."""
    code, text = ended(started(["--resume", folder], log)), log.read_text()
    if code == 2 and not (folder / "config.json").exists():
        if not text.startswith("error: ") or len(text.splitlines()) != 1:
            return f"refused with more than a line: {text}"
        code, text = ended(started([*options, "--output-dir", folder], log)), log.read_text()
    return None if code == 0 else f"does not resume, code {code}: {text}"


def trial(folder, draw, variant, whole, seconds, strikes):
    """Disturb a run once or more and let it end; a sentence on what went wrong, or None."""
    options, log, run = [*OPTIONS, *variant.split()], folder / "log", folder / "run"
    arguments = [*options, "--output-dir", run]
    for _ in range(draw.randrange(1, 4)):
        if wrong := disturbed(draw, arguments, log, seconds, strikes):
            return wrong
        if (run / "config.json").exists():
            arguments = ["--resume", run]
    if wrong := resumed(run, options, log):
        return wrong
    if records(run) != whole:
        return f"{run} differs from an undisturbed run"
    left = [str(p) for p in run.rglob(".*") if p.name != ".lock"]
    return f"left over: {left}" if left else None


def main(folder, seconds, n_trials, seed=0):
    torch.set_num_threads(1)
    trainer.N_BOUND = 10  # what comes after the training need not be as good
    for slow in ("sklearn.datasets", "torch._dynamo"):
        importlib.import_module(slow)
    draw, strikes, wrong, end = random.Random(seed), collections.Counter(), [], time.monotonic() + seconds
    whole, took = {}, {}
    for i, variant in enumerate(VARIANTS):
        start, run = time.monotonic(), folder / f"whole-{i}"
        arguments = [*OPTIONS, *variant.split(), "--output-dir", run]
        assert ended(started(arguments, folder / "log")) == 0, (folder / "log").read_text()
        whole[variant], took[variant] = records(run), time.monotonic() - start
    done = 0
    while done < n_trials or time.monotonic() < end:
        variant, place = draw.choice(VARIANTS), folder / f"trial-{done}"
        place.mkdir()
        if found := trial(place, draw, variant, whole[variant], took[variant], strikes):
            wrong.append(f"trial {done}, {variant}: {found}")
        else:
            shutil.rmtree(place)
        done += 1
    print(json.dumps([wrong, strikes, done]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
