"""What can be known without a GPU of what is to be measured on one: bytes, ratios, the table, the order of on_gpu.sh.

With a GPU the findings themselves run there too, at sizes that take no time and mean nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import junit
import measuring
import packages
import pytest
import table
import timing
import torch
from ceilings import ceilings
from finding import Benchmark, Finding, Setting
from graphs import captured
from loading import resident_batches
from registry import chosen
from render import render
from rivals import samplers
from subjects import (
    annealing,
    captured_samplers,
    captured_step,
    compiler,
    energy,
    epoch,
    layers,
    side_by_side,
    transition,
)
from subjects.contestants import OFFICIAL, OURS, OURS_EACH
from targets import TARGETS, Target, checked

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bench" / "on_gpu.sh"

SMALL = dict(n=8, nh=16, nz=2)
FEW = dict(rounds=2, warmup=4, loops=1)
# by the function's name: what makes it small
FINDINGS = {
    transition.long_transition: dict(d=64),
    transition.short_transition: dict(d=32, n=3),
    energy.cold_energy: dict(n=4, nx=12),
    layers.layers: dict(n=8, nz=4, nh=16, nx=12, count=3),
    captured_step.captured_step: SMALL | FEW,
    side_by_side.side_by_side: SMALL | FEW | dict(counts=(1, 2)),
    epoch.whole_epoch: SMALL | dict(n_images=32, rounds=2),
    captured_samplers.captured_chains: dict(c=64, d=8, step_size=0.6, n_steps=3, rounds=2),
    annealing.annealing: dict(n_images=3, n_chains=2, n_temperatures=4, nh=16, nz=2),
}
OF_CPU = Setting(torch.device("cpu"), copy_rate=1e9)
GPU_TARGETS = TARGETS["cuda"]


# ---- what is counted ----


def test_traffic_of_a_transition_by_hand():
    """float32, 2^26 elements: an array has 256 MiB."""
    arrays = {
        key: transition.transition_traffic(mh, accepted).total
        for mh, accepted, key in transition.LONG.values()
    }
    assert arrays == {"transition, no MH": 5, "transition, accepted": 9, "transition, rejected": 7}
    assert transition.transition_traffic(mh=False) == (2, 3)
    assert transition.transition_traffic(True, False) == (6, 1)


def test_bytes_of_an_energy_and_sets_beyond_the_cache():
    assert energy.energy_bytes(8192, 784) == 77_070_336
    for cache in (0, 40 * 2**20, 60 * 2**20, 2**30):
        n = energy.cold_sets(77_070_336, cache)
        assert (n - 1) * 77_070_336 >= 8 * cache
    assert energy.cold_sets(77_070_336, 0) == 1


@pytest.fixture
def by_table(monkeypatch):
    """Make `compare` say that each call of a name took the given milliseconds, whatever it does."""

    def install(module, milliseconds):
        def compare(calls, against, device, counts=None, rounds=20, warmup=3, loops=1):
            for call in calls.values():
                for _ in range((rounds + warmup) * loops):
                    call()
            counts = counts or {}
            names = {name: milliseconds.get(name, 7.0) / 1e3 / counts.get(name, 1) for name in calls}
            return timing.summary({name: [seconds] * 3 for name, seconds in names.items()}, against)

        monkeypatch.setattr(module, "compare", compare)

    return install


def test_fractions_of_copy_bandwidth_by_hand(by_table):
    by_table(
        transition,
        {"no MH": 2e-3, "MH, accepted": 3e-3, "MH, rejected": 4e-3, transition.FORGETFUL: 7e-3},
    )
    found = transition.long_transition(OF_CPU, d=64)  # an array has 256 bytes, a copy moves one in 256 ns
    expected = {"transition, no MH": 5 / 2, "transition, accepted": 9 / 3, "transition, rejected": 7 / 4}
    assert found.measured == pytest.approx({key: 25.6 * value for key, value in expected.items()})
    moved = "% of copy, moved"
    assert found.rows["no MH"][moved] == pytest.approx(25.6 * 6 / 2)
    assert found.rows[transition.FORGETFUL][moved] == pytest.approx(25.6 * 7 / 7)
    assert found.rows["MH, rejected"][moved] == found.rows["MH, rejected"]["% of copy"]
    by_table(energy, {"energy": 5e-3})
    found = energy.cold_energy(OF_CPU, n=4, nx=12)
    assert found.measured == pytest.approx({"energy": 100 * 3 * 4 * 48 / 5e-6 / 1e9})


def test_a_transition_that_decides_otherwise_is_no_measurement(monkeypatch):
    monkeypatch.setattr(transition, "_REJECT", -1e30)
    with pytest.raises(RuntimeError, match="MH, rejected: 0 rejections and 0 not finite; expected 110 and 0"):
        transition.long_transition(OF_CPU, d=64)


def test_a_graph_of_many_counts_one(by_table):
    by_table(transition, {"transition": 0.008})
    found = transition.short_transition(OF_CPU, d=32, n=4)
    assert found.measured == pytest.approx({"transition 2^11": 2.0})  # nobody counts launches on a CPU


def rows_of(**ms):
    return {name: {"ms": value} for name, value in ms.items()}


def test_targets_of_a_step_by_hand():
    ms = {OURS: 0.5, OURS_EACH: 0.4, "report": 5.0, OFFICIAL: 9.0, "plain VAE": 1.25}
    ms |= {captured_step.PRODUCTS: 0.4, f"{captured_step.PRODUCTS}, by our routes": 0.25}
    assert captured_step.captured_step_targets(rows_of(**ms)) == {
        "official / step": 18,
        "report / step": 10,
        "step / products": 2,  # of the faster
        "step / VAE": 0.4,
        "datapoint / joint": 0.8,
    }


def test_gains_side_by_side_by_hand(by_table):
    by_table(
        side_by_side, {f"{OURS}, alone": 1.0, f"{OURS}, 2 side by side": 1.25, "VAE, 2 side by side": 3.5}
    )
    found = side_by_side.side_by_side(OF_CPU, **SMALL, **FEW, counts=(1, 2))
    assert found.measured == pytest.approx(
        {"side by side": 1.6, "side by side, datapoint": 2, "side by side, VAE": 4}
    )
    assert found.rows[f"{OURS}, 2 side by side"]["us a model"] == pytest.approx(625)


def test_targets_of_chains_by_hand():
    rates = {captured_samplers.SAMPLE: 4326.0, captured_samplers.EAGER: 43260.0}
    rates |= {captured_samplers.COMPILED: 1e5, captured_samplers.GIVEN: 5e4}
    published = {"64 x 8 / published": 2, "64 x 8, eager / published": 20, "64 x 8, us": 10}  # of the fastest
    assert captured_samplers.chain_targets(64, 8, rates) == published
    assert captured_samplers.chain_targets(64, 8, rates | {"torchebm": 2163.0}) == published | {
        "64 x 8 / torchebm": 2
    }
    assert captured_samplers.chain_targets(1024, 128, rates)["1024 x 128 / published"] == pytest.approx(
        4326 / 2429
    )
    assert captured_samplers.chain_targets(3, 4, rates) == {}


def test_targets_say_what_they_mean():
    texts = {key: t.limit_text() for key, t in GPU_TARGETS.items()}
    assert texts["transition, no MH"] == "≥ 75 %"
    assert texts["transition 2^11"] == "≤ 3.2 us"
    assert texts["transition 2^11, launches"] == "≤ 1 launches"
    assert texts["step / products"] == "≤ 0.60"
    assert texts["official / step"] == "≥ 15.0x"
    assert texts["AIS"] == "reported"
    assert GPU_TARGETS["epoch"].text(58.25) == "58.2 ms"
    assert Target("", 20, True, "x").text(1234.5) == "1,234.50x"
    with pytest.raises(ValueError, match="no target is called speed"):
        checked({"speed": 1.0}, GPU_TARGETS)


def test_other_packages_may_fail():
    run = captured_samplers.rivals(torch.zeros(4, 2), 0.1)[0]
    assert {captured_samplers.SAMPLE, f"{captured_samplers.EAGER}, MH", "eager PyTorch"} <= run.keys()


def test_a_rival_that_does_not_fit_is_named(monkeypatch):
    def broken(*_):
        raise TypeError("wrong version\nand more")

    monkeypatch.setattr(samplers, "torchebm_langevin", broken)
    monkeypatch.setattr(samplers, "posteriors_sgld", lambda *_: None)
    run, why_not = captured_samplers.rivals(torch.zeros(4, 2), 0.1)
    assert why_not == ("torchebm failed: TypeError: wrong version.", "posteriors is not installed.")
    assert not {"torchebm", "posteriors"} & run.keys()


# ---- what runs ----


def setting(device):
    """With a cache that a small problem overflows soon."""
    return ceilings(torch.device(device), n_bytes=2**16, n_launches=4, side=16)[0]._replace(cache=0)


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda f: f.__name__)
def test_findings_run(finding, device):
    found = finding(setting(device), **FINDINGS[finding])
    assert found.as_dict()["measured"].keys() <= GPU_TARGETS.keys()
    assert found.against in found.rows
    assert all(value > 0 for value in found.measured.values())
    assert all(row["ms"] > 0 for row in found.rows.values())
    json.dumps(found.as_dict())
    found.ours()
    if device == "cuda" and finding is transition.short_transition:
        assert found.measured["transition 2^11, launches"] == 1


def test_all_findings_are_in_the_table():
    assert {b.function() for b in chosen("cuda")} == FINDINGS.keys() | {compiler.against_compiler}
    assert chosen("cuda")[-1].function() is compiler.against_compiler  # which takes longest


def test_capturing_means_so_many_calls(device):
    x = torch.zeros(1, device=device)
    run = captured(lambda: x.add_(1), torch.device(device), 5)
    x.zero_()
    run.replay()
    run.replay()
    assert x.item() == 10
    assert run[1:] == ((None, None) if device == "cpu" else (5, 0))


def test_minibatches_are_every_image_once_an_epoch():
    images = torch.arange(12, dtype=torch.uint8)[:, None].expand(12, 784)
    batches = resident_batches(images, 4)
    epochs = [[next(batches)[:, 0] * 255 for _ in range(3)] for _ in range(2)]
    for batches in epochs:
        assert sorted(torch.cat(batches).round().tolist()) == list(range(12))
    assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))


# ---- the table ----


def fake_report():
    row = {
        "ms": 0.5,
        "low": 0.4,
        "high": 0.6,
        "ratio": 1.0,
        "ratio_low": 1.0,
        "ratio_high": 1.0,
        "launches": 321,
    }
    measured = {"official / step": 15.5, "report / step": 7.5}
    finding = Finding("training step, batch 512", {OURS: row}, OURS, measured, ("warm",)).as_dict()
    where = {
        "device": "cuda",
        "name": "h200",
        "machine": "Some processor, 16 cores; NVIDIA H200, compute capability 9.0, driver 580.1",
        "versions": "Python 3.12.3, torch 2.11.0 (CUDA 13.0), lae_fast 0.1.0",
        "kernels": "compiled kernels, built for CUDA 13.0, architectures 9.0",
        "commit": "0123456",
        "date": "2026-11-26",
    }
    return {
        "where": where,
        "ceilings": {
            "copy_ of 2 GiB, GB/s read and written": 4321.0,
            "one launch in a graph of 1000, us": 1.234,
        },
        "findings": {"step": finding | {"group": "training step"}},
        "failures": {"ais": "RuntimeError: out of memory"},
        "seconds": {"step": 4.2},
        "by_hand": {"tables 1-3": 412.0},
    }


def test_the_table_says_what_was_measured():
    lines = render(fake_report(), f"{table.LOG}\n\n- one\n").splitlines()
    assert lines[0] == "# Benchmarks on a GPU: H200"
    assert lines[2].startswith("Machine: Some processor, 16 cores; NVIDIA H200, compute capability 9.0")
    assert any(
        line.startswith("Commit 0123456, 2026-11-26. Command: `bench/on_gpu.sh OUT`") for line in lines
    )
    order = ["## Ceilings", "## Targets", "## Failed", "## training step", table.LOG]
    assert [line for line in lines if line.startswith("## ")] == order
    assert "| copy_ of 2 GiB, GB/s read and written | 4,321 |" in lines
    assert "| one launch in a graph of 1000, us | 1.23 |" in lines
    of = {
        key: next(line for line in lines if line.startswith(f"| {t.what} |"))
        for key, t in GPU_TARGETS.items()
    }
    assert of["official / step"].endswith("| ≥ 15.0x | 15.50x | met |")
    assert of["report / step"].endswith("| ≥ 8.0x | 7.50x | **missed** |")
    assert of["epoch"].endswith("| ≤ 25 ms | not measured |  |")
    assert of["tables 1-3"].endswith("| reported | 412.0 s |  |")
    assert "- ais: RuntimeError: out of memory" in lines
    assert "| LAE | 0.500 (0.400 - 0.600) | 1.00 (1.00 - 1.00) | 321 |" in lines
    assert "**training step, batch 512**" in lines
    assert "warm" in lines
    assert lines[-1] == "- one"


def test_every_target_has_a_line_of_its_own():
    what = [t.what for t in GPU_TARGETS.values()]
    text = render(fake_report())
    assert all(text.count(f"| {w} |") == what.count(w) for w in what)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("Tesla T4", "t4"), ("none", "gpu")],
)
def test_files_are_named_after_the_card(name, expected):
    assert measuring.name_of(name) == expected


def test_a_finding_that_fails_is_noted_and_the_next_begun(monkeypatch, capsys):
    def broken(_):
        raise RuntimeError("no memory\nand more")

    good = Finding("good", fake_report()["findings"]["step"]["rows"], OURS, {"AIS": 2.0})
    monkeypatch.setattr(Benchmark, "function", lambda b: {"broken": broken, "good": lambda _: good}[b.name])
    benchmarks = [Benchmark("cuda", "some", name, "", {}) for name in ("broken", "good")]
    report, saved = {"findings": {}, "failures": {}, "seconds": {}}, []
    measuring.measure(report, OF_CPU, benchmarks, lambda: saved.append(json.dumps(report)))
    assert report["failures"] == {"broken": "RuntimeError: no memory"}
    assert report["findings"]["good"]["measured"] == {"AIS": 2.0}
    assert report["findings"]["good"]["group"] == "some"
    assert report["seconds"].keys() == {"broken", "good"}
    assert "good" not in json.loads(saved[0])["findings"]  # saved after each
    assert "no memory" in capsys.readouterr().err


def test_a_finding_that_measures_what_is_no_target_fails(monkeypatch):
    monkeypatch.setattr(Benchmark, "function", lambda _: lambda _: Finding("fast", {}, None, {"speed": 1.0}))
    with pytest.raises(ValueError, match="no target is called speed"):
        Benchmark("cuda", "some", "fast", "", {}).run(OF_CPU)


def test_rendering_keeps_what_people_wrote(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(fake_report()))
    output = tmp_path / "bench.md"
    output.write_text(f"# Old\n\n{table.LOG}\n\n- first: 3 us\n")
    arguments = ["--render", str(tmp_path / "bench.json"), "--output", str(output), "--measured", "AIS=3.5"]
    assert table.main(arguments) == 1  # a finding had failed
    assert output.read_text().endswith(f"\n\n{table.LOG}\n\n- first: 3 us\n")
    assert "| AIS: image-chain-steps per second | reported | 3.50 million |  |" in output.read_text()
    assert "# Old" not in output.read_text()
    assert not list(tmp_path.glob("*.part"))


def test_nothing_is_measured_where_that_would_mislead():
    assert "no GPU" in next(table.complaints("cuda", 0, "compiled kernels"))
    assert "plain PyTorch" in next(table.complaints("cuda", 1, "plain PyTorch: not installed"))
    assert not list(table.complaints("cuda", 1, "compiled kernels (here)"))
    assert not list(table.complaints("cpu", 0, "plain PyTorch: not installed"))  # the table says so


def test_numbers_measured_otherwise_belong_to_targets():
    assert table.by_hand(["tables 1-3=12.5"], "cuda") == {"tables 1-3": 12.5}
    with pytest.raises(ValueError, match="no target is called AI"):
        table.by_hand(["AI=1"], "cuda")


def test_the_commit_can_be_given(monkeypatch):
    monkeypatch.setenv("LAE_FAST_COMMIT", "abc1234")
    assert measuring.facts(torch.device("cpu"))["commit"] == "abc1234"


# ---- on_gpu.sh ----

STAGES = ("build", "tests", "benchmarks", "sanitizer")
STUBS = {
    "nvidia-smi": '[ -z "$NO_GPU" ] && echo "NVIDIA H200, 9.0"',
    # FAIL, SLOW: what, in its arguments, it fails or hangs at
    "python3": """
echo "python3 $*, PYTHONPATH $PYTHONPATH, $TORCH_CUDA_ARCH_LIST $LAE_FAST_BUILD"
if [[ "$*" == *lae_fast.info* ]]; then echo "cuda            compiled kernels (here)"; fi
for word in $SLOW; do if [[ "$*" == *$word* ]]; then sleep 60; fi; done
for word in $FAIL; do if [[ "$*" == *$word* ]]; then exit 3; fi; done
exit 0""",
    "nvcc": """
for word in "$@"; do program=$word; done
echo "nvcc $*"
echo "#!/bin/sh" >"$program"
chmod +x "$program" """,
    "compute-sanitizer": """
echo "sanitizer $*"
if [ -n "$REFUSE" ]; then echo "========= Error: Device not supported." && exit 1; fi
echo "========= ERROR SUMMARY: 0 errors"
for word in $FAIL; do if [[ "$*" == *$word* ]]; then exit 86; fi; done""",
}


@pytest.fixture
def on_gpu(tmp_path):
    """What runs the script with stubs for all that takes a GPU: its exit code, its summary by stage, its folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)

    def run(*arguments, without=None, **variables):
        if without:
            (folder / without).unlink()
        out = tmp_path / "out"
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "CUDA_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        finished = subprocess.run(
            ["bash", SCRIPT, *(arguments or [out])],
            env=environment | variables,
            capture_output=True,
            text=True,
        )
        summary = (out / "summary.txt").read_text() if (out / "summary.txt").exists() else ""
        lines = {line.split()[0]: line.split(" s  ")[-1] for line in summary.splitlines()[1:]}
        lines = {name: "ok" if line.startswith("ok: ") else line for name, line in lines.items()}
        return finished.returncode, lines, out, finished.stderr

    return run


def test_on_gpu_is_a_script():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert os.access(SCRIPT, os.X_OK)


def test_on_gpu_does_all_for_the_card_it_finds(on_gpu, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some-1.0-py3-none-any.whl").touch()
    code, summary, out, error = on_gpu(tmp_path / "out", wheels, DATA="/data")
    assert (code, error) == (0, "")
    n_runs = 4 * len(list((ROOT / "bench/sanitize").glob("*.cu")))  # tools, programs
    assert f"s  ok: {n_runs} runs without complaint" in (out / "summary.txt").read_text()
    assert summary == dict.fromkeys((*STAGES, "all"), "ok")
    files = {"summary.txt", "build.log", "tests.log", "bench.log", "sanitizer.log"}
    assert {path.name for path in out.iterdir()} == files
    build, bench = (out / "build.log").read_text(), (out / "bench.log").read_text()
    assert f"--no-index --no-deps --no-compile --target {tmp_path}" in build
    assert str(wheels / "some-1.0-py3-none-any.whl") in build
    assert "--force-reinstall ., PYTHONPATH" in build
    assert ", 9.0 cuda\n" in build
    assert (
        f"bench/table.py --device cuda --json {out}/bench.json --output {out}/bench.md --data-dir /data"
        in bench
    )
    sanitizer = (out / "sanitizer.log").read_text()
    assert "-arch=sm_90" in sanitizer
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert sanitizer.count(f"sanitizer --tool {tool} ") == len(
            list((ROOT / "bench" / "sanitize").glob("*.cu"))
        )
    assert not list(tmp_path.glob("tmp.*"))  # nothing stays behind


@pytest.mark.parametrize(
    ("word", "stage"),
    [
        ("pip", "build"),
        ("lae_fast.info", "build"),
        ("junit.py", "tests"),
        ("bench/table.py", "benchmarks"),
        ("racecheck", "sanitizer"),
    ],
)
def test_a_stage_that_fails_does_not_stop_the_next(on_gpu, word, stage):
    code, summary, out, _ = on_gpu(FAIL=word)
    assert code == 1
    assert summary.pop("all") == "1 of the stages failed"
    assert summary.pop(stage).startswith("FAILED: exit code ")
    assert summary == dict.fromkeys((s for s in STAGES if s != stage), "ok")
    assert all((out / f"{name}.log").read_text() for name in ("build", "tests", "bench", "sanitizer"))


def test_a_stage_that_hangs_is_stopped(on_gpu):
    code, summary, _, _ = on_gpu(SLOW="junit.py", BUDGET="2", STAGES="tests benchmarks")
    assert code == 1
    assert summary["tests"].startswith("FAILED: stopped after its ")
    assert summary["benchmarks"] == "ok"


@pytest.mark.parametrize(
    ("variables", "without", "reason"),
    [
        ({"REFUSE": "1"}, None, "skipped: synccheck: ========= Error: Device not supported."),
        ({}, "compute-sanitizer", "skipped: no compute-sanitizer on the PATH"),
    ],
)
def test_a_sanitizer_that_cannot_run_is_no_failure(on_gpu, variables, without, reason):
    code, summary, _, _ = on_gpu(without=without, STAGES="sanitizer", **variables)
    assert code == 0
    assert summary == {"sanitizer": reason, "all": "ok"}


def test_on_gpu_takes_a_gpu_and_a_folder(on_gpu, tmp_path):
    code, summary, _, error = on_gpu(NO_GPU="1")
    assert (code, summary) == (2, {})
    assert error == "error: nvidia-smi shows no GPU here\n"
    code, _, _, error = on_gpu("a", "b", "c")
    assert code == 2
    assert error.startswith("bench/on_gpu.sh OUT [WHEELS]: all that takes a GPU")
    code, _, _, error = on_gpu(STAGES="tests tea")
    assert code == 2
    assert "no stage is called tea" in error


# ---- what a test run without some packages says ----


def test_files_that_lack_a_package_are_left_out(tmp_path):
    lines = {
        "test_good.py": "import pytest\ndef test_a(): pass\n@pytest.mark.skip\ndef test_b(): pass\n",
        "test_lacking.py": "raise ModuleNotFoundError(\"No module named 'tyro'\")\n",
        "test_broken.py": "raise ModuleNotFoundError(\"No module named 'lae_fast'\")\n",
        "test_bad.py": "def test_c(): raise ModuleNotFoundError(\"No module named 'tyro'\")\n",
    }
    for name, text in lines.items():
        (tmp_path / name).write_text(text)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
    ]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run([*command, "--junitxml=tests.xml"], cwd=tmp_path, env=environment, capture_output=True)
    found = junit.verdict((tmp_path / "tests.xml").read_text())
    assert (found.passed, found.skipped) == (1, 1)
    assert found.left_out == {"test_lacking": "tyro"}
    assert sorted(found.failed) == ["test_bad::test_c", "test_broken"]
    assert not found.is_good
    assert junit.Verdict(1, 0, {"test_lacking": "tyro"}, []).is_good
    assert not junit.Verdict(0, 9, {}, []).is_good


def test_missing_packages_are_named(monkeypatch, capsys):
    assert packages.missing({"json": "x", "no_such_package": "y"}) == {"no_such_package": "y"}
    monkeypatch.setattr(packages, "BUILD", {"no_such_package": "the build"})
    assert packages.main() == 1
    assert "missing: no_such_package (the build)" in capsys.readouterr().out
