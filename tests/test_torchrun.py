"""`train` and `score` under torchrun: however many processes share the work, it is one training, with one folder, one end and one
error, and the same scores."""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import SMALL_RUN
from torchrun import KILLED_AT, SPOILT_AT, STOPPED_AT

from lae_fast import checkpoint, train
from lae_fast.training import runlog, trainer
from lae_fast.training.config import TrainingError
from lae_fast.training.processes import Processes

TESTS = Path(__file__).parent
QUICK = [
    *SMALL_RUN,
    *["--batch-size", "120", "--log-every", "1", "--cooldown", "0"],
]  # 10 minibatches in an epoch
KINDS = {
    "datapoint": [],
    "joint": ["--decisions", "joint", "--step-size", "1e-4"],
    "vae": ["--model", "vae", "--binarize", "dynamic"],
}
# The same bits for any number of processes.
FIXED = {name: [*given, "--deterministic-reduce", "--epochs", 1] for name, given in KINDS.items()}
FIXED["datapoint"] = ["--deterministic-reduce"]
SIZES = {"datapoint": (1, 2, 4), "joint": (1, 4), "vae": (1, 4)}
# Of AIS 5 batches of images and 3 simulated ones; of the bound 5 batches of draws.
SCORES = [
    "--images",
    "9",
    "--simulated",
    "5",
    "--n-chains",
    "1024",
    "--n-temperatures",
    "4",
    "--n-draws",
    "1100",
]
APART = {"capture_output": True, "text": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}


def run_jobs(folder, jobs):
    """Exit codes by job."""
    (folder / "jobs").write_text(json.dumps([[n, size, [*map(str, given)]] for n, size, given in jobs]))
    command = [sys.executable, str(TESTS / "torchrun.py"), str(folder / "jobs"), str(folder)]
    done = subprocess.run(command, timeout=120, **APART)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def new_in(folder):
    """What makes a job of a new run in that folder."""

    def new(name, size, *given):
        return name, size, [*QUICK, "--epochs", 2, *given, "--output-dir", folder / f"run {name}"]

    return new


@pytest.fixture(scope="module")
def runs_in_parts(tmp_path_factory):
    """As `runs`, of minibatches that are computed in parts."""
    folder = tmp_path_factory.mktemp("parts")
    new, run = new_in(folder), folder / "run 4 then 1 in parts"
    jobs = [new(f"{kind} in parts {n}", n, *given) for kind, given in FIXED.items() for n in SIZES[kind]]
    jobs += [("4 in parts", 4, [*QUICK, "--deterministic-reduce", "--epochs", 1, "--output-dir", run])]
    jobs += [("4 then 1 in parts", 1, ["--resume", run, "--epochs", 2])]
    return folder, run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs of all jobs, and their exit codes."""
    folder = tmp_path_factory.mktemp("torchrun")
    new = new_in(folder)
    jobs = [new(f"{kind} 1", 1, *given) for kind, given in KINDS.items()]
    jobs += [new(f"{kind} 2", 2, *given) for kind, given in KINDS.items()]
    for first, then in ((1, 2), (2, 1)):  # stopped after an epoch, and resumed by others
        run = folder / f"run {first} then {then}"
        jobs += [(f"{first} then", first, [*QUICK, *KINDS["vae"], "--epochs", 1, "--output-dir", run])]
        jobs += [(f"{first} then {then}", then, ["--resume", run, "--epochs", 2])]
    jobs += [new("three", 3, "--model", "vae", "--epochs", 1)]
    jobs += [new("three in parts", 3, "--deterministic-reduce")]
    jobs += [new("odd in parts", 2, "--deterministic-reduce", "--batch-size", 124)]
    jobs += [new("odd", 2, "--batch-size", 121), new("other data", 2), new("no option", 2, "--nonsense")]
    jobs += [
        new("slow", 2, "--epochs", 1),
        new("killed", 2),
        new("stopped", 2),
        new("diverged", 2),
        new("apart", 2),
    ]
    scored = [folder / "run datapoint 1", folder / "nothing", folder / "run vae 1"]
    of_one = scored[:1]
    for name, size, given in (
        *(("1", 1, scored), ("2", 2, scored), ("3", 3, scored)),
        *(("half", 2, of_one), ("killed", 2, of_one)),
    ):
        jobs += [(f"score, {name}", size, [*given, *SCORES, "--output", folder / f"table {name}"])]
    return folder, run_jobs(folder, jobs)


def steps(runs, name, rank=0):
    return torch.load(runs[0] / f"{name}-{rank}.pt")


def said(runs, name, rank=0):
    return (runs[0] / f"{name}-{rank}.txt").read_text()


def saved(runs, name):
    return checkpoint.load_latest(runs[0] / f"run {name}" / "checkpoints")


def assert_close(found, expected, tolerance):
    for name, value in expected.items():
        if name not in ("rng", "counters"):
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_have_the_same_model_after_every_step(runs, kind):
    assert runs[1][f"{kind} 2"] == [0, 0]
    first, second = (steps(runs, f"{kind} 2", rank) for rank in range(2))
    assert len(first) == len(second) == 20
    for (_, state, moments), (_, other, others) in zip(first, second, strict=True):
        assert all(torch.equal(t, other[name]) for name, t in state.items())
        assert all(torch.equal(*pair) for pair in zip(moments, others, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_training_of_one_process(runs, kind):
    """As far as float32 lets sums in another order be the same: its rounding grows from step to step."""
    one, two = steps(runs, f"{kind} 1"), steps(runs, f"{kind} 2")
    for t, ((loss, state, _), (found, shared, _)) in enumerate(zip(one, two, strict=True)):
        assert found == pytest.approx(loss, rel=1e-5 if t < 10 else 1e-3)
        assert_close(shared, state, 1e-4 if t < 5 else 1e-2)
        if kind != "vae" and t < 5:
            assert torch.equal(shared["counters"], state["counters"])  # the same decisions
            assert torch.equal(shared["rng"], state["rng"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_parts_it_is_the_training_of_one_process_bit_for_bit(runs_in_parts, kind):
    runs = runs_in_parts
    one = steps(runs, f"{kind} in parts 1")
    assert len(one) == (20 if kind == "datapoint" else 10)
    for size in SIZES[kind][1:]:
        assert runs[1][f"{kind} in parts {size}"] == [0] * size
        for rank in range(size):
            found = steps(runs, f"{kind} in parts {size}", rank)
            for (loss, state, moments), (other, shared, others) in zip(one, found, strict=True):
                assert all(torch.equal(t, shared[name]) for name, t in state.items())
                assert all(torch.equal(*pair) for pair in zip(moments, others, strict=True))
                assert rank > 0 or other == loss  # also of validation, at the end of an epoch
    logs = [(runs[0] / f"run {kind} in parts {n}" / "metrics.jsonl").read_text() for n in SIZES[kind]]
    validated = [
        [json.loads(line).get("validation_negative_elbo") for line in log.splitlines()] for log in logs
    ]
    assert all(v == validated[0] for v in validated)


@pytest.mark.slow
def test_a_run_in_parts_goes_on_with_another_number_of_processes_bit_for_bit(runs_in_parts):
    runs = runs_in_parts
    assert "parts     8 of each minibatch, whose sums have one order" in said(runs, "datapoint in parts 2")
    assert set(runs[1]["4 then 1 in parts"]) == {0}
    expected = saved(runs, "datapoint in parts 1").weights
    assert all(torch.equal(t, expected[n]) for n, t in saved(runs, "4 then 1 in parts").weights.items())


def test_parts_need_processes_and_images_that_divide(runs):
    assert "--deterministic-reduce with 3 processes; expected 1, 2, 4 or 8" in said(runs, "three in parts")
    assert "--batch-size is 124 with --deterministic-reduce; expected a multiple of 8" in said(
        runs, "odd in parts"
    )


def test_a_folder_is_that_of_one_process(runs):
    def content(name):
        run = runs[0] / f"run {name}"
        return {re.sub(r"events\.\S+", "events", str(p.relative_to(run))) for p in run.rglob("*")}

    for kind in KINDS:
        assert content(f"{kind} 1") == content(f"{kind} 2")
        lines = [(runs[0] / f"run {kind} {n}" / "metrics.jsonl").read_text().splitlines() for n in (1, 2)]
        assert [json.loads(a).keys() for a in lines[0]] == [json.loads(a).keys() for a in lines[1]]


def test_the_first_process_speaks_and_says_how_many_share_the_work(runs):
    text = said(runs, "datapoint 2")
    assert "processes 2 share the work: of each minibatch of 120 images a process has 60" in text
    assert "processes" not in said(runs, "datapoint 1")
    assert said(runs, "datapoint 2", 1) == ""


@pytest.mark.parametrize("name", ["1 then 2", "2 then 1"])
def test_a_run_goes_on_with_another_number_of_processes(runs, name):
    assert set(runs[1][name]) == {0}
    assert "resume    from" in said(runs, name)
    assert saved(runs, name).path.name == "step-000000020"
    assert_close(saved(runs, name).weights, saved(runs, "vae 1").weights, 1e-3)
    records = (runs[0] / f"run {name}" / "metrics.jsonl").read_text().splitlines()
    assert [s for s in map(json.loads, records) if "loss" in s][-1]["step"] == 20


def test_three_processes(runs):
    assert runs[1]["three"] == [0, 0, 0]
    assert all(
        torch.equal(t, steps(runs, "three", rank)[-1][1][name])
        for rank in (1, 2)
        for name, t in steps(runs, "three")[-1][1].items()
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd", "error: --batch-size is 121; expected a multiple of 2, the number of processes\n"),
        ("other data", "error: process 1 has other data than process 0; expected the same on all\n"),
        ("no option", None),
    ],
)
def test_what_cannot_be_is_refused_once_before_work_starts(runs, name, message):
    assert runs[1][name] == [2, 2]
    assert said(runs, name, 1) == ""
    assert message is None or said(runs, name) == message
    assert not (runs[0] / f"run {name}").exists()


def test_a_process_that_dies_ends_all_and_leaves_a_good_checkpoint(runs):
    assert runs[1]["killed"] == [2, -9]
    (error,) = [line for line in said(runs, "killed").splitlines() if line.startswith("error")]
    assert error.startswith("error: process 0 of 2 has lost another one")
    assert "--resume continues from the last checkpoint" in error
    assert len(steps(runs, "killed")) == KILLED_AT
    assert saved(runs, "killed").path.name == "step-000000010"
    again = steps(runs, "datapoint 2")[9][1]
    assert all(torch.equal(t, again[name]) for name, t in saved(runs, "killed").weights.items())


def test_a_slow_process_is_waited_for(runs):
    assert runs[1]["slow"] == [0, 0]
    expected, found = steps(runs, "datapoint 2"), steps(runs, "slow")
    assert len(found) == 10
    for (_, state, _), (_, other, _) in zip(expected[:10], found, strict=True):
        assert all(torch.equal(t, other[name]) for name, t in state.items())


def test_a_signal_to_one_process_stops_all_of_them_with_a_checkpoint(runs):
    assert runs[1]["stopped"] == [143, 143]
    step = STOPPED_AT + 1
    assert f"stopped at step {step}; continue with: torchrun --nproc-per-node 2 -m" in said(runs, "stopped")
    assert said(runs, "stopped", 1) == ""
    assert saved(runs, "stopped").state["progress"]["step"] == step
    for rank in range(2):
        assert len(steps(runs, "stopped", rank)) == step


def test_training_that_diverges_ends_all_with_one_error(runs):
    assert runs[1]["diverged"] == [2, 2]
    assert f"not finite at step {SPOILT_AT + 1}" in said(runs, "diverged")
    assert said(runs, "diverged", 1) == ""


def test_processes_that_drift_apart_are_not_saved(runs):
    assert runs[1]["apart"] == [2, 2]
    assert "error: process 1 has other weights or random numbers than process 0" in said(runs, "apart")
    assert saved(runs, "apart") is None


# ---- scores ----


@pytest.mark.parametrize("n", [2, 3])
def test_scores_are_those_of_one_process(runs, n):
    """Also where the batches do not divide, and beside a folder that holds no run."""
    assert runs[1]["score, 1"] == [2]
    assert runs[1][f"score, {n}"] == [2] * n
    expected, found = (
        list(csv.DictReader((runs[0] / f"table {k}").read_text().splitlines())) for k in (1, n)
    )
    assert [row["run"] for row in found] == ["run datapoint 1", "run vae 1"]
    for row in (*expected, *found):
        assert float(row.pop("image_chain_steps_per_second")) > 0
    assert found == expected


def test_the_first_process_alone_tells_scores_and_errors(runs):
    text = said(runs, "score, 2")
    assert re.findall(r"^(run .*?|error): ", text, flags=re.MULTILINE) == [
        "run datapoint 1",
        "error",
        "run vae 1",
    ]
    assert "nothing is not the folder of a run" in text
    assert said(runs, "score, 2", 1) == ""


def test_a_process_that_cannot_do_its_part_says_so_and_no_score_is_told(runs):
    assert runs[1]["score, half"] == [2, 2]
    assert said(runs, "score, half", 1) == "error: there is no memory for this\n"
    assert "run datapoint" not in said(runs, "score, half")
    assert not (runs[0] / "table half").exists()


def test_a_process_that_dies_while_it_scores_ends_all(runs):
    assert runs[1]["score, killed"] == [2, -9]
    (error,) = said(runs, "score, killed").splitlines()
    assert error.startswith("error: process 0 of 2 has lost another one")
    assert error.endswith("; the runs scored so far are above, and in the file of --output")


@pytest.mark.slow
def test_a_process_that_says_nothing_is_not_waited_for_forever(tmp_path):
    run = tmp_path / "run frozen"
    codes = run_jobs(tmp_path, [("frozen", 2, [*QUICK, "--epochs", 2, "--output-dir", run])])
    assert codes["frozen"][0] == 2
    assert "error: process 0 of 2 has lost another one" in (tmp_path / "frozen-0.txt").read_text()
    assert checkpoint.load_latest(run / "checkpoints").path.name == "step-000000010"


# ---- torchrun itself ----

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

DIES_TWICE = """
import os, signal, sys
from lae_fast import train
step = train.Trainer._step

def fatal(self, index):
    fatal_step = {"0": 14, "1": 17}.get(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if self.progress.step == fatal_step and os.environ["RANK"] == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, index)

train.Trainer._step = fatal
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_job_again_that_has_lost_a_process(runs, tmp_path, rank):
    (tmp_path / "script.py").write_text(DIES_TWICE)
    given = [*QUICK, "--epochs", "2", "--output-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*TORCHRUN, "--max-restarts", "2", str(tmp_path / "script.py"), str(rank), *given],
        timeout=120,
        **APART,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step-000000010") == 2  # from which it went on
    found = checkpoint.load_latest(tmp_path / "run" / "checkpoints").weights
    assert all(torch.equal(t, found[name]) for name, t in saved(runs, "datapoint 2").weights.items())


@pytest.mark.slow
def test_hosts_have_a_torchrun_each_and_all_start_once_more(runs, tmp_path):
    (tmp_path / "script.py").write_text(DIES_TWICE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meets = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free.getsockname()[1]}"]
    torchrun = [*TORCHRUN[:3], "--nnodes", "2", *meets, "--rdzv-id", "job", "--max-restarts", "2"]
    given = [*QUICK, "--epochs", "2", "--output-dir", str(tmp_path / "run")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = APART["env"] | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    hosts = [subprocess.Popen([*torchrun, str(tmp_path / "script.py"), "1", *given], **options) for _ in "ab"]
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert "resume    from" in said[0][0] + said[1][0]
    found = checkpoint.load_latest(tmp_path / "run" / "checkpoints").weights
    assert all(torch.equal(t, found[name]) for name, t in saved(runs, "datapoint 2").weights.items())


IN_A_HOST = """
until ip link set dev veth0 up 2> /dev/null; do sleep 0.1; done
ip link set dev lo up
ip address add 10.77.0.$1/24 dev veth0
hostname host$1
mount --bind "$2" /etc/hosts
shift 2
exec "$@"
"""


def own_network(process):
    return os.readlink(f"/proc/{process}/ns/net")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(shutil.which, ("ip", "unshare")))
    or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0,
    reason="no network namespaces are permitted",
)
def test_hosts_have_networks_and_names_of_their_own(runs, tmp_path):
    """Two network namespaces with one cable between them."""
    (tmp_path / "script").write_text(IN_A_HOST)
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 host1\n10.77.0.2 host2\n")
    meets = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "host1:29500", "--rdzv-id", "job"]
    command = [*TORCHRUN[:3], "--nnodes", "2", *meets, "-m", "lae_fast.train", *QUICK, "--epochs", "2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": APART["env"]}
    apart = ["unshare", "--net", "--uts", "--mount", "sh", str(tmp_path / "script")]
    command = [str(tmp_path / "hosts"), *command, "--output-dir", str(tmp_path / "run")]
    hosts = [subprocess.Popen([*apart, str(k), *command], **options) for k in (1, 2)]
    while any(own_network(host.pid) == own_network("self") for host in hosts):
        time.sleep(0.05)
    first, second = (["veth0", "netns", str(host.pid)] for host in hosts)
    subprocess.run(["ip", "link", "add", *first, "type", "veth", "peer", "name", *second], check=True)
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert sum("processes 2 share the work" in out for out, _ in said) == 1
    found = checkpoint.load_latest(tmp_path / "run" / "checkpoints").weights
    assert all(torch.equal(t, found[name]) for name, t in saved(runs, "datapoint 2").weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_leaves_a_checkpoint(tmp_path, number):
    run = tmp_path / "run"
    given = [*QUICK, "--epochs", "99999", "--patience", "99999", "--output-dir", str(run)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": APART["env"]}
    process = subprocess.Popen([*TORCHRUN, "-m", "lae_fast.train", *given], **options)
    while not (run / "checkpoints").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    step = int(re.search(r"stopped at step (\d+)", out)[1])
    assert checkpoint.load_latest(run / "checkpoints").state["progress"]["step"] == step, err


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each process")
@pytest.mark.parametrize("kind", KINDS)
def test_two_gpus_train_as_one(tmp_path, kind):
    """A run of two, which one resumes, is a run of one that two resume."""
    found = []
    for first, then in ((2, 1), (1, 2)):
        run = tmp_path / str(first)
        given = [*QUICK, *KINDS[kind], "--epochs", "1", "--output-dir", str(run)]
        given[given.index("cpu")] = "cuda"
        for n, options in ((first, given), (then, ["--resume", str(run), "--epochs", "2"])):
            command = [*TORCHRUN[:-1], str(n), "-m", "lae_fast.train", *options]
            done = subprocess.run(command, timeout=300, **APART)
            assert done.returncode == 0, done.stderr
        found.append(checkpoint.load_latest(run / "checkpoints"))
    assert [s.path.name for s in found] == ["step-000000020"] * 2
    assert_close(found[0].weights, found[1].weights, 2e-2)


# ---- its environment ----


def launched(monkeypatch, job="job", **values):
    given = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "GROUP_WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": job}
    given |= {"TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_MAX_RESTARTS": 0}
    for name, value in (given | values).items():
        monkeypatch.setenv(name, str(value))


JOINED = """
import os, sys, time, torch
from pathlib import Path
from lae_fast.training.processes import Processes
rank = 0 if os.fork() else 1
os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
with Processes(rank, 2).joined("a run"):
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    torch.distributed.barrier()
def is_of_gloo(task):
    try:
        return "gloo" in (task / "comm").read_text()
    except OSError:  # it has ended
        return False
until = time.monotonic() + 5
while (n := sum(map(is_of_gloo, Path("/proc/self/task").iterdir()))) and time.monotonic() < until:
    time.sleep(0.05)
os.write(1, f"{rank} gloo threads: {n}\\n".encode())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_nothing_of_the_process_group_outlives_it():
    """What an optimizer imports would keep it otherwise; its threads then ended with the interpreter, now and then by an abort."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, "-c", JOINED, str(port)], timeout=120, **APART)
    assert sorted(done.stdout.splitlines()) == ["0 gloo threads: 0", "1 gloo threads: 0"], done.stderr


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")  # of somebody else
    assert Processes.started() == Processes()


def test_what_torchrun_says_is_understood(monkeypatch):
    launched(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, TORCHELASTIC_MAX_RESTARTS=3)
    assert Processes.started() == Processes(5, 8, 1, "job", 3, "0")
    launched(monkeypatch, "none", RANK=5, WORLD_SIZE=8, GROUP_WORLD_SIZE=2)
    assert Processes.started() == Processes(5, 8, 0, None, 0, None)


def test_a_job_that_torchrun_starts_once_more_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trainer, "N_BOUND", 10)
    monkeypatch.setattr(train.view, "write", lambda *_, **__: "no page")
    monkeypatch.setattr(runlog, "why_no_board", lambda: "not here")
    run = [*QUICK, "--epochs", "1", "--model", "vae", "--output-dir", str(tmp_path / "run")]
    launched(monkeypatch, TORCHELASTIC_MAX_RESTARTS=3)
    assert train.main(run) == 0
    assert train.main(run) == 0
    assert "resume    from" in capsys.readouterr().out
    launched(monkeypatch, "another job", TORCHELASTIC_MAX_RESTARTS=3, TORCHELASTIC_RESTART_COUNT=1)
    assert train.main(run) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_restarts_that_could_not_go_on_are_refused(monkeypatch, tmp_path):
    several = Processes(0, 2, 0, "job", 3)
    with pytest.raises(
        TrainingError, match=r"--max-restarts 3 .*expected --output-dir, and --standalone or --rdzv-id"
    ):
        several.check_restarts(None)
    several.check_restarts(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(TrainingError, match="expected TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        several.check_restarts(tmp_path)
    Processes(0, 2, 0, "job", 3, start="0").check_restarts(tmp_path)
    Processes(0, 2, 0, "job").check_restarts(None)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second, third = (Processes(rank, 4, local_rank=rank) for rank in (1, 2))
    assert [second.device(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert Processes().device("cuda:1") == "cuda:1"
    with pytest.raises(TrainingError, match="--device is cuda:1 for 4 processes; expected auto, cuda or cpu"):
        second.device("cuda:1")
    with pytest.raises(TrainingError, match="process 2 of a host with 2 GPUs; expected a GPU for each"):
        third.device("auto")
