"""Builds the compiled kernels, as far as the machine allows (`build_backend.py`), and says what it leaves out and why.

The kernel libraries use LibTorch's stable ABI, so the torch they are built against need not be the torch they run with. They
are installed as top-level modules beside the package: whoever runs from the repository root imports `./lae_fast`, and it still
finds them.

LAE_FAST_BUILD   auto (default): what the machine can build; cpu, cuda: that or an error; none: no kernels
CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS   as for any torch extension, but architectures by numbers alone
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

from build_backend import (
    TORCH_TARGET,
    Plan,
    architectures,
    compiler_of,
    find_torch,
    gencode_flags,
    job_flags,
    nvcc_version,
    torch_version,
)

ROOT = Path(__file__).parent.resolve()
SCHEMA_VERSION = re.search(r"SCHEMA_VERSION = (\d+)", (ROOT / "lae_fast/_version.py").read_text())[1]

SOURCES = {
    "_lae_fast_cpu": ["csrc/cpu/langevin.cpp", "csrc/cpu/energy.cpp", "csrc/cpu/dense.cpp"],
    "_lae_fast_cuda": [
        "csrc/cuda/langevin.cu",
        "csrc/cuda/energy.cu",
        "csrc/cuda/dense.cu",
        "csrc/cuda/layer.cu",
        "csrc/cuda/layer_gradients.cu",
        "csrc/cuda/adam.cu",
    ],
    "_lae_fast_build": ["csrc/build_info.cpp"],
}
HEADERS = [str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")]

# No contraction and no fast-math: the same bits at every SIMD level and on every device.
CXX_FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden"
CPU_FLAGS = f"{CXX_FLAGS} -ffp-contract=off -fno-math-errno -fno-trapping-math"
NVCC_FLAGS = "-std=c++20 -O3 --fmad=false --threads 2 -Xcompiler -fPIC,-fvisibility=hidden -DUSE_CUDA"
TARGET_FLAG = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*map(int, TORCH_TARGET.split(".")))


PLAN = Plan()


def torch_folder() -> Path:
    folder = find_torch()
    if folder is None:
        raise SystemExit(
            f"lae_fast: the build needs the headers of a torch >= {TORCH_TARGET} but finds none; "
            "install without --no-build-isolation, or torch first"
        )
    return folder


class BuildLibraries(build_ext):
    """One ninja graph for all libraries."""

    def build_extensions(self) -> None:
        for name in PLAN.libraries.copy():
            error = self._ninja(f"_lae_fast_{name}")
            if error:
                PLAN.libraries.remove(name)
                PLAN.leave_out(name, f"it did not compile; `pip install -v .` shows the whole log: {error}")
        error = self._ninja("_lae_fast_build") if PLAN.libraries else None
        if error:  # most likely Python.h is missing
            for name in PLAN.libraries:
                PLAN.leave_out(
                    name, f"their pybind11 module did not compile; install Python's headers: {error}"
                )
            PLAN.libraries.clear()
        self.extensions = [e for e in self.extensions if e.name in PLAN.modules()]

    def _ninja(self, name: str) -> str | None:
        """Build one library. Returns the first line of the compiler's complaint, or None."""
        import ninja

        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._write_graph(folder / "build.ninja")
        command = [os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder), *job_flags(), name]
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

        torch = torch_folder()
        torch_flags = f"{TARGET_FLAG} -isystem {shlex.quote(str(torch / 'include'))}"
        # libtorch.so brings the CPU symbols and, if there are any, the CUDA symbols of the torch that is already
        # loaded. It defines none of them itself, hence --no-as-needed. No path is recorded.
        libtorch = f"-L{shlex.quote(str(torch / 'lib'))} -Wl,--no-as-needed -ltorch"
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
                # NVCC_CCBIN is nvcc's own way to name another one, and -ccbin would win over it.
                ccbin = "" if os.environ.get("NVCC_CCBIN") else f"-ccbin {shlex.quote(compiler_of(PLAN.cxx))}"
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

        has_cuda = "cuda" in PLAN.libraries
        facts = {
            "TORCH_TARGET": TORCH_TARGET,
            "TORCH_HEADERS": torch_version(torch_folder()),
            "CUDA_VERSION": "{}.{}".format(*nvcc_version(PLAN.nvcc)) if has_cuda else "",
            "CUDA_ARCHITECTURES": architectures() if has_cuda else "",
        }
        defines = [f"-DLAE_FAST_SCHEMA_VERSION={SCHEMA_VERSION}"]
        defines += [shlex.quote(f'-DLAE_FAST_{key}="{value}"') for key, value in facts.items()]
        folders = [pybind11.get_include(), sysconfig.get_path("include")]
        return " ".join(defines + [f"-isystem {shlex.quote(folder)}" for folder in folders])


class CleanBuild(build):
    """Without files that an earlier build has left, and the package has no longer; at the end it says what is left out."""

    # A list: plugins of other packages append to it.
    sub_commands: ClassVar = [*build.sub_commands, ("left_out", None)]

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "lae_fast"), ignore_errors=True)
        super().run()


class LeftOut(Command):
    """The last step of a build, editable or not: say what was left out, and leave a note of it beside the installed package, for
    `python -m lae_fast.info`."""

    user_options = ()
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        libraries = ROOT if self.editable_mode else Path(self.build_lib)
        libraries.mkdir(parents=True, exist_ok=True)
        for path in libraries.glob("_lae_fast_*"):  # from an earlier build that left out less
            if path.name.split(".")[0] not in PLAN.modules():
                path.unlink()
        # An editable wheel holds what the folder of `install` holds, and not what lies in build_lib.
        place = self.get_finalized_command("install").install_lib if self.editable_mode else libraries
        note = f'"""Written by setup.py: kernels this installation lacks, and why."""\n\nLEFT_OUT = {PLAN.left_out!a}\n'
        Path(place, "_lae_fast_left_out.py").write_text(note)
        if PLAN.left_out:
            tell(PLAN.sentence())

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def tell(text: str) -> None:
    """Print to the terminal as well: pip shows nothing of what a build prints, unless it fails or has -v."""
    print(text, file=sys.stderr)
    with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:  # there is none in a log
        terminal.write(f"\n{text}\n")


class TellingWheel(bdist_wheel):
    """A wheel whose name says which kernels it has: pip always shows that name."""

    def run(self) -> None:
        self.run_command("build")  # what does not compile is known only then
        self.build_number = self.build_number or PLAN.build_tag()
        super().run()


class TellingEditable(editable_wheel):
    """The same for an editable installation."""

    def run(self) -> None:
        super().run()
        for path in self.dist_dir.glob("*-0.editable-*.whl"):
            path.rename(path.with_name(path.name.replace("0.editable", f"{PLAN.build_tag()}.editable")))


setup(
    ext_modules=[Extension(name, SOURCES[name], depends=HEADERS) for name in PLAN.modules()],
    cmdclass={
        "bdist_wheel": TellingWheel,
        "build": CleanBuild,
        "build_ext": BuildLibraries,
        "editable_wheel": TellingEditable,
        "left_out": LeftOut,
    },
)
