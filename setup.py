"""Builds the compiled kernels, as far as the machine allows, and says what it leaves out and why.

The kernel libraries use LibTorch's stable ABI, so the torch they are built against (pip's isolated build
environment brings one) need not be the torch they run with. They are installed as top-level modules beside
the package: whoever runs from the repository root imports `./lae_fast`, and it still finds them.

LAE_FAST_BUILD   auto (default): what the machine can build; cpu, cuda: that or an error; none: no kernels
CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS   as for any torch extension
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
SCHEMA_VERSION = re.search(r"SCHEMA_VERSION = (\d+)", (ROOT / "lae_fast/_version.py").read_text())[1]
TORCH_TARGET = "2.11"
# Turing (T4), Ampere (runs on Ada too), Hopper, and PTX for all that come after.
CUDA_ARCHITECTURES = "7.5;8.0;9.0+PTX"
MINIMUM_NVCC = (12, 0)

SOURCES = {
    "_lae_fast_cpu": ["csrc/cpu/langevin.cpp", "csrc/cpu/energy.cpp", "csrc/cpu/dense.cpp"],
    "_lae_fast_cuda": ["csrc/cuda/langevin.cu", "csrc/cuda/energy.cu", "csrc/cuda/dense.cu"],
    "_lae_fast_build": ["csrc/build_info.cpp"],
}
HEADERS = [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")]

# No contraction and no fast-math: the same bits at every SIMD level and on every device.
CXX_FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden"
CPU_FLAGS = f"{CXX_FLAGS} -ffp-contract=off -fno-math-errno -fno-trapping-math"
NVCC_FLAGS = "-std=c++20 -O3 --fmad=false --threads 2 -Xcompiler -fPIC,-fvisibility=hidden -DUSE_CUDA"
TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, TORCH_TARGET.split(".")))


def find_cxx() -> str | None:
    if sys.platform == "win32":
        return None
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((c for c in candidates if c and shutil.which(shlex.split(c)[0])), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next(filter(None, map(shutil.which, candidates)), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    out = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", out)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures() -> str:
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES


def gencode_flags() -> str:
    """nvcc's flags for the architectures. A ValueError names an entry that it does not know."""
    flags = []
    for arch in filter(None, re.split(r"[;\s]+", architectures())):
        number = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", arch)
        if not number:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST holds {arch!r}; expected entries like 8.0 or 9.0+PTX")
        n = number[1] + number[2] + number[3]
        code = f"[sm_{n},compute_{n}]" if number[4] else f"sm_{n}"
        flags.append(f"-gencode arch=compute_{n},code={code}")
    return " ".join(flags)


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")  # its headers and libtorch.so: torch itself is never imported
    if spec is None:
        raise SystemExit(
            "lae_fast: the build needs torch's headers but finds no torch; "
            "install without --no-build-isolation, or torch first"
        )
    return Path(spec.origin).parent


class Plan:
    """What LAE_FAST_BUILD and the machine's compilers allow: `libraries`; and `left_out`, with the reasons."""

    def __init__(self) -> None:
        self.request = os.environ.get("LAE_FAST_BUILD", "auto")
        if self.request not in ("auto", "cpu", "cuda", "none"):
            raise SystemExit(f"lae_fast: LAE_FAST_BUILD={self.request!r}; expected auto, cpu, cuda or none")
        self.cxx, self.nvcc = find_cxx(), find_nvcc()
        self.left_out: dict[str, str] = {}
        self.libraries = [name for name in ("cpu", "cuda") if self._wants(name)]

    def _wants(self, name: str) -> bool:
        if self.request == "none" or (self.request == "cpu" and name == "cuda"):
            reason = f"LAE_FAST_BUILD={self.request} asked for none; reinstall without it"
        elif not self.cxx:
            reason = "no C++ compiler was found; install g++ or clang++ (or set CXX) and reinstall"
        elif name == "cuda" and not self.nvcc:
            reason = "nvcc was not found; install the CUDA toolkit (or set CUDA_HOME) and reinstall"
        elif name == "cuda" and nvcc_version(self.nvcc) < MINIMUM_NVCC:
            found = ".".join(map(str, nvcc_version(self.nvcc)))
            reason = f"nvcc {found} is older than {MINIMUM_NVCC[0]}.{MINIMUM_NVCC[1]}; install a newer CUDA toolkit and reinstall"
        else:
            try:
                gencode_flags()
                return True
            except ValueError as error:
                if name != "cuda":
                    return True
                reason = str(error)
        self.leave_out(name, reason)
        return False

    def leave_out(self, name: str, reason: str) -> None:
        """Say so, or stop when this very library was asked for."""
        if self.request == name or (self.request == "cuda" and name == "cpu"):
            raise SystemExit(
                f"lae_fast: LAE_FAST_BUILD={self.request}, but the {name} kernels cannot be built: {reason}"
            )
        print(
            f"lae_fast: the {name} kernels are left out, plain PyTorch serves instead: {reason}",
            file=sys.stderr,
        )
        self.left_out[name] = reason


PLAN = Plan()


class BuildLibraries(build_ext):
    """One ninja graph for all libraries."""

    def build_extensions(self) -> None:
        for name in PLAN.libraries.copy():
            error = self._ninja(f"_lae_fast_{name}")
            if error:
                PLAN.libraries.remove(name)
                PLAN.leave_out(name, f"it did not compile (full log above): {error}")
        error = self._ninja("_lae_fast_build") if PLAN.libraries else None
        if error:  # most likely Python.h is missing
            for name in PLAN.libraries:
                PLAN.leave_out(
                    name, f"their pybind11 module did not compile; install Python's headers: {error}"
                )
            PLAN.libraries.clear()
        kept = {f"_lae_fast_{name}" for name in PLAN.libraries} | {"_lae_fast_build"}
        self.extensions = [e for e in self.extensions if PLAN.libraries and e.name in kept]

    def _ninja(self, name: str) -> str | None:
        """Build one library. Returns the first line of the compiler's complaint, or None."""
        import ninja

        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._write_graph(folder / "build.ninja")
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder), *jobs, name]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(result.stdout, flush=True)
        if result.returncode == 0:
            target = Path(self.get_ext_fullpath(name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / f"{name}.so", target)
            return None
        complaints = [line for line in result.stdout.splitlines() if "error" in line.lower()]
        return (complaints or ["the compiler failed"])[0]

    def _write_graph(self, path: Path) -> None:
        from ninja.ninja_syntax import Writer

        torch_flags = f"{TARGET_FLAG} -isystem {shlex.quote(str(torch_folder() / 'include'))}"
        # libtorch.so brings the CPU symbols and, if there are any, the CUDA symbols of the torch that is already
        # loaded. It defines none of them itself, hence --no-as-needed. No path is recorded.
        libtorch = f"-L{shlex.quote(str(torch_folder() / 'lib'))} -Wl,--no-as-needed -ltorch"
        is_mac = sys.platform == "darwin"
        link = f"{PLAN.cxx} " + (
            "-bundle -undefined dynamic_lookup $in" if is_mac else f"-shared $in {libtorch}"
        )
        with path.open("w") as file:
            graph = Writer(file)
            graph.rule(
                "cpu", f"{PLAN.cxx} {CPU_FLAGS} {torch_flags} -MD -MF $out.d -c $in -o $out", depfile="$out.d"
            )
            graph.rule("build", f"{PLAN.cxx} {CXX_FLAGS} {self._build_info_flags()} -c $in -o $out")
            graph.rule("link", f"{link} -o $out")
            if "cuda" in PLAN.libraries:
                ccbin = f"-ccbin {shlex.split(os.environ['CXX'])[-1]}" if "CXX" in os.environ else ""
                nvcc = f"{shlex.quote(PLAN.nvcc)} {ccbin} {NVCC_FLAGS} {gencode_flags()}"
                nvcc_libtorch = libtorch.replace("-Wl,", "-Xlinker ")
                graph.rule("cuda", f"{nvcc} {torch_flags} -MD -MF $out.d -c $in -o $out", depfile="$out.d")
                # cudart is linked statically: the CUDA version of torch does not matter.
                graph.rule(
                    "link_cuda",
                    f"{shlex.quote(PLAN.nvcc)} {ccbin} -shared -cudart static $in {nvcc_libtorch} -o $out",
                )
            for name, sources in SOURCES.items():
                kind = name.removeprefix("_lae_fast_")
                if kind == "cuda" and "cuda" not in PLAN.libraries:
                    continue
                objects = [graph.build(f"{source}.o", kind, str(ROOT / source))[0] for source in sources]
                graph.build(f"{name}.so", "link_cuda" if kind == "cuda" else "link", objects)
                graph.build(name, "phony", f"{name}.so")

    def _build_info_flags(self) -> str:
        import pybind11

        version = (torch_folder() / "version.py").read_text()
        headers = re.search(r"__version__ = '([^']+)'", version)
        has_cuda = "cuda" in PLAN.libraries
        facts = {
            "TORCH_TARGET": TORCH_TARGET,
            "TORCH_HEADERS": headers[1] if headers else "unknown",
            "CUDA_VERSION": "{}.{}".format(*nvcc_version(PLAN.nvcc)) if has_cuda else "",
            "CUDA_ARCHITECTURES": architectures() if has_cuda else "",
        }
        defines = [f"-DLAE_FAST_SCHEMA_VERSION={SCHEMA_VERSION}"]
        defines += [shlex.quote(f'-DLAE_FAST_{key}="{value}"') for key, value in facts.items()]
        folders = [pybind11.get_include(), sysconfig.get_path("include")]
        return " ".join(defines + [f"-isystem {shlex.quote(folder)}" for folder in folders])


class BuildAndTell(build):
    """Leave a note of what was left out beside the package, for `python -m lae_fast.info`."""

    def run(self) -> None:
        Path(self.build_lib).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(Path(self.build_lib, "lae_fast"), ignore_errors=True)  # files that have moved since
        for stale in Path(self.build_lib).glob("_lae_fast_*"):  # from an earlier build that left out less
            stale.unlink()
        super().run()
        note = f'"""Written by setup.py: kernels this installation lacks, and why."""\n\nLEFT_OUT = {PLAN.left_out!r}\n'
        Path(self.build_lib, "_lae_fast_left_out.py").write_text(note)


names = [f"_lae_fast_{name}" for name in [*PLAN.libraries, "build"]] if PLAN.libraries else []
setup(
    ext_modules=[Extension(name, SOURCES[name], depends=HEADERS) for name in names],
    cmdclass={"build_ext": BuildLibraries, "build": BuildAndTell},
)
