#!/usr/bin/env bash
# build.sh FOLDER: the torch-free programs over the kernels of csrc/cuda, FOLDER/langevin, /energy and /dense. Each compares
# kernels with loops on the host and returns 1 where they differ; compute-sanitizer watches them run.
# NVCC_ARCH: native by default, which takes a GPU; sm_90 and the like compile without one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
# Whatever torch header csrc includes is the stand-in here.
grep -rhoE '#include <torch/[^>]+' "$here/../../csrc" | sort -u | sed 's/#include <//' | while read -r header; do
  mkdir -p "$out/include/$(dirname "$header")"
  echo '#include "stand_in.h"' >"$out/include/$header"
done
# As setup.py compiles them, but -O1 and with line numbers; -ffp-contract: the host computes what the device does.
flags="-std=c++20 -O1 -g -lineinfo --fmad=false -Xcompiler -ffp-contract=off -arch=${NVCC_ARCH:-native} -I$out/include -I$here"
for program in langevin energy dense; do
  nvcc $flags "$here/$program.cu" -o "$out/$program"
done
