"""Installation: the kernels serve from every folder, imports stay light, and absence is explained."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from lae_fast._version import SCHEMA_VERSION, __version__
from lae_fast.ops import library

ROOT = Path(__file__).parent.parent
IS_BUILT = importlib.util.find_spec("_lae_fast_cpu") is not None


def python(code, cwd, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=120
    )


def info(cwd, **environment):
    command = [sys.executable, "-m", "lae_fast.info"]
    out = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, timeout=120
    )
    assert out.returncode == 0, out.stderr
    return {line[:15].strip(): line[16:].strip() for line in out.stdout.splitlines()}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What info says in a folder of no meaning."""
    return info(tmp_path_factory.mktemp("anywhere"))


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_the_kernels_serve_from_the_checkout_and_from_anywhere(facts):
    at_root = info(ROOT)
    for found in (at_root, facts):
        assert found["cpu"].startswith("compiled kernels, SIMD level"), found
    assert str(ROOT) in at_root["lae_fast"]  # from the checkout, python -m imports the checkout's package


def test_info_tells_what_a_bug_report_needs(facts):
    needed = {"lae_fast", "python", "torch", "numpy", "torchvision", "gpu", "schema version", "cpu", "cuda"}
    assert needed <= set(facts)
    assert facts["schema version"] == str(SCHEMA_VERSION)
    if IS_BUILT:
        assert "stable ABI of 2.11" in facts["built against"]
        assert "built for CUDA" in facts
    if not facts["cuda"].startswith("compiled"):
        assert re.search("install|reinstall|asked for", facts["cuda"])


def test_importing_the_package_imports_torch_and_numpy_only(tmp_path):
    heavy = [
        "torchvision",
        "tyro",
        "tqdm",
        "tensorboard",
        "safetensors",
        "matplotlib",
        "sklearn",
        "scipy",
        "yaml",
    ]
    code = f"import torch, sys; before = set(sys.modules); import lae_fast; print([m for m in {heavy} if m in set(sys.modules) - before])"
    assert python(code, tmp_path).stdout.strip() == "[]"


STEP = "import torch, lae_fast; torch.manual_seed(0); print(lae_fast.ald_step(lambda p: (p**2).sum(), torch.ones(3), 0.1)[0].phi)"


def test_the_reference_serves_on_request_and_agrees(tmp_path):
    code = STEP + "; from lae_fast import info; print(info.report()['cpu'])"
    reference = python(code, tmp_path, LAE_FAST_KERNELS="reference")
    assert reference.stderr == ""
    step, serving = reference.stdout.splitlines()
    assert "LAE_FAST_KERNELS=reference" in serving
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()) as out:
        exec(STEP)
    assert out.getvalue() == step + "\n"


def test_an_unknown_kernel_choice_is_an_error(tmp_path):
    assert "LAE_FAST_KERNELS='mmx'; expected one of" in python(STEP, tmp_path, LAE_FAST_KERNELS="mmx").stderr


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_a_stale_library_is_refused_and_explained_once(tmp_path):
    (tmp_path / "_lae_fast_build.py").write_text("schema_version = 0")  # found before the installed one
    result = python(STEP + "; " + STEP, tmp_path)
    assert "tensor(" in result.stdout
    assert (
        f"was built for schema 0, this package has schema {SCHEMA_VERSION}; run `pip install .` again"
        in result.stderr
    )
    assert result.stderr.count("plain PyTorch serves cpu") == 1


@pytest.mark.skipif(not IS_BUILT, reason="installed without compiled kernels")
def test_a_library_that_does_not_load_is_explained(tmp_path):
    (tmp_path / Path(library.backends["cpu"].path).name).write_bytes(b"not a library")
    result = python(STEP, tmp_path)
    assert "tensor(" in result.stdout
    assert "does not load" in result.stderr
    assert (
        "invalid ELF header" in result.stderr
        or "file too short" in result.stderr
        or "dlopen" in result.stderr
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LAE_FAST_BUILD": "fpga"}, "LAE_FAST_BUILD='fpga'; expected auto, cpu, cuda or none"),
        (
            {"LAE_FAST_BUILD": "cuda", "PATH": "", "CUDA_HOME": "/nonexistent"},
            "but the cpu kernels cannot be built: no C",
        ),
        (
            {"LAE_FAST_BUILD": "cpu", "PATH": "", "CUDA_HOME": "/nonexistent"},
            "no C++ compiler was found; install g++",
        ),
        (
            {"LAE_FAST_BUILD": "cpu", "CXX": "/nonexistent/g++ -m64"},
            "CXX='/nonexistent/g++ -m64' names no compiler that can be found; correct or unset it",
        ),
        ({"LAE_FAST_BUILD": "cpu", "CXX": 'g++ "'}, """CXX='g++ "' names no compiler that can be found"""),
        (
            {"LAE_FAST_BUILD": "cuda", "CUDA_HOME": "/nonexistent"},
            "nvcc was not found; install the CUDA toolkit",
        ),
    ],
)
def test_a_build_that_cannot_be_had_fails_loudly(environment, message):
    pytest.importorskip("setuptools")
    if sys.platform != "linux":
        pytest.skip("compilers are looked up as on Linux")
    command = [sys.executable, "setup.py", "--version"]
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "CUDA_PATH")} | environment
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert result.returncode != 0
    assert message in result.stderr


@pytest.mark.parametrize(
    ("cxx", "host", "command"),
    [
        ("g++ -m64", "g++", "g++ -m64"),
        ("clang++ -x c++", "clang++", "clang++ -x c++"),
        ("ccache g++ -isystem /usr", "g++", "ccache g++ -isystem /usr"),
        (" ", "clang++", "clang++"),
        (None, "clang++", "clang++"),
    ],
)
@pytest.mark.parametrize("own", ["", "g++-12"])
def test_nvcc_calls_the_compiler_that_was_chosen(own, cxx, host, command, tmp_path, monkeypatch):
    """As the other sources do, whatever else stands in CXX; and clang++ where there is no other."""
    pytest.importorskip("ninja")
    for name in {"nvcc", "ccache", "c++" if (cxx or "").strip() else host, host}:
        (tmp_path / name).write_text("#!/bin/sh\necho release 13.0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("CXX", cxx or "")
    if cxx is None:
        monkeypatch.delenv("CXX")
    code = (
        "import sys; from pathlib import Path; sys.argv = ['setup.py', '--name']; sys.path.insert(0, '.')\n"
        "names = {'__file__': 'setup.py', '__name__': '__main__'}; exec(open('setup.py').read(), names)\n"
        f"build = names['BuildLibraries'](names['setup'].__globals__['Distribution']()); build._write_graph(Path({str(tmp_path / 'graph')!r}))"
    )
    facts = dict(PATH=str(tmp_path), CUDA_HOME="", CUDA_PATH="", LAE_FAST_BUILD="cuda", NVCC_CCBIN=own)
    found = python(code, ROOT, **facts)
    assert found.returncode == 0, found.stderr
    rules = " ".join((tmp_path / "graph").read_text().replace("$\n", "").split())
    assert rules.count(f"nvcc -ccbin {host} -") == (0 if own else 2)  # nvcc reads NVCC_CCBIN itself
    assert f"command = {command} -std=c++20" in rules


# ---- what a build leaves out is visible ----

WITHOUT_COMPILERS = {
    "PATH": "",
    "CUDA_HOME": "/nonexistent",
    "LAE_FAST_BUILD": "auto",
    "CXX": " ",
}
NO_COMPILER = "no C++ compiler was found; install g++ or clang++ (or set CXX) and reinstall"


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """A wheel and an editable wheel, built without compilers in a terminal: folder, standard error, what the terminal shows."""
    pytest.importorskip("setuptools", minversion="77")
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    tree = tmp_path_factory.mktemp("tree")
    for name in ("csrc", "lae_fast"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "_lae_fast_cpu.so").write_text("from an earlier editable installation")
    screen, terminal = os.openpty()
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "import build_backend as b; b.build_wheel('wheel'); b.build_editable('editable')",
        ],
        cwd=tree,
        env=os.environ | WITHOUT_COMPILERS | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
        pass_fds=[terminal],
    )
    assert result.returncode == 0, result.stderr
    os.set_blocking(screen, False)
    shown = ""
    with contextlib.suppress(BlockingIOError):
        shown = os.read(screen, 2**16).decode()
    os.close(screen)
    os.close(terminal)
    return tree, result.stderr, shown


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_terminal_shows_what_is_left_out(builds, name):
    """pip shows nothing of what a build prints, but cannot hide the terminal from it."""
    _, printed, shown = builds
    sentence = f"lae_fast: the {name} kernels are left out, plain PyTorch serves instead: {NO_COMPILER}"
    assert shown.count(sentence) == 2
    assert printed.count(sentence) == 2


@pytest.mark.parametrize(("kind", "tag"), [("wheel", "0.no_kernels"), ("editable", "0.no_kernels.editable")])
def test_an_installation_knows_what_it_lacks(builds, kind, tag):
    tree, _, _ = builds
    (wheel,) = (tree / kind).glob("*.whl")
    assert wheel.name == f"lae_fast-{__version__}-{tag}-py3-none-any.whl"  # pip always shows this name
    names = {}
    with zipfile.ZipFile(wheel) as file:
        exec(file.read("_lae_fast_left_out.py"), names)
        assert not [n for n in file.namelist() if n.endswith(".so")]
    assert names["LEFT_OUT"] == {"cpu": NO_COMPILER, "cuda": NO_COMPILER}
    assert not (tree / "_lae_fast_cpu.so").exists()


# ---- the torch that is there ----


@pytest.fixture
def backend():
    pytest.importorskip("setuptools", minversion="77")
    spec = importlib.util.spec_from_file_location("build_backend", ROOT / "build_backend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("version", "serves"),
    [("2.10.1", False), ("2.11.0", True), ("2.14.1+cpu", True), ("3.0.0a0+git12", True), (None, False)],
)
def test_a_build_takes_the_headers_of_the_torch_that_is_there(
    version, serves, backend, tmp_path, monkeypatch
):
    """pip hides it from the build, which must not download another one for that."""
    if version:
        headers = tmp_path / "torch" / "include" / "torch" / "csrc" / "stable"
        headers.mkdir(parents=True)
        (headers / "library.h").touch()
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '{version}'\ndebug = False\n")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend.site, "getsitepackages", lambda: [str(tmp_path)])
    monkeypatch.setattr(backend.site, "getusersitepackages", lambda: "/nonexistent")
    assert backend.find_torch() == (tmp_path / "torch" if serves else None)
    for name in ("wheel", "editable"):
        monkeypatch.setattr(backend.build_meta, f"get_requires_for_build_{name}", lambda settings: ["x"])
        requires = getattr(backend, f"get_requires_for_build_{name}")
        monkeypatch.setenv("LAE_FAST_BUILD", "auto")
        monkeypatch.setenv("CXX", sys.executable)  # something to compile with
        assert requires() == (["x"] if serves else ["x", "torch>=2.11"])
        monkeypatch.setenv("LAE_FAST_BUILD", "none")
        assert requires() == ["x"]


@pytest.mark.parametrize(("jobs", "flags"), [("2 ", ["-j", "2"]), ("auto", []), ("-1", []), ("", [])])
def test_a_number_of_jobs_reaches_ninja_and_nothing_else(jobs, flags, backend, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", jobs)
    assert backend.job_flags() == flags


def test_an_installation_asks_for_no_certain_torch():
    """torchvision does, each version for one: it is left to the extra `data`."""
    listed = re.search(r"\ndependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    assert '"torch>=2.11"' in listed
    assert "torchvision" not in listed


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_a_source_distribution_holds_what_the_repository_holds(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    for name in tracked:  # a copy, as setuptools leaves a folder beside what it packs
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    made = python(
        "import build_backend; build_backend.build_sdist('dist')", tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert made.returncode == 0, made.stderr
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as packed:
        held = {member.name.partition("/")[2] for member in packed.getmembers()}
    assert tracked - held == {".gitignore"}


def test_the_citation_is_of_this_version():
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == __version__


def test_plugins_of_setuptools_may_append_sub_commands(tmp_path):
    """As scikit-build-core does wherever it is installed: without isolation it takes part in the build of every package."""
    (tmp_path / "plugin.py").write_text(
        "def finalize(distribution):\n    distribution.get_command_class('build').sub_commands.append(('plugin', None))\n"
    )
    facts = tmp_path / "plugin-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[setuptools.finalize_distribution_options]\nplugin = plugin:finalize\n"
    )
    code = "import sys; sys.argv = ['setup.py', '--name']; sys.path.insert(0, '.'); exec(open('setup.py').read(), {'__file__': 'setup.py', '__name__': '__main__'})"
    found = python(code, ROOT, PYTHONPATH=str(tmp_path), LAE_FAST_BUILD="none")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "lae_fast"
