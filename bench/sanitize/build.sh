#!/usr/bin/env bash
# build.sh FOLDER builds programs without torch over the kernels of csrc/cuda: FOLDER/langevin, FOLDER/energy,
# FOLDER/dense, FOLDER/adam, FOLDER/layer and FOLDER/layer_gradients. Each compares kernels with loops on the host and
# returns 1 if they differ, while compute-sanitizer watches.
# NVCC_ARCH: native (the default) needs a GPU; sm_90 and the like compile without one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
"$here/stand_ins.sh" "$out/include" "$here/../../csrc"
# The flags of setup.py, but with -O1 and line numbers; -ffp-contract=off: the host computes what the device computes.
flags="-std=c++20 -O1 -g -lineinfo --fmad=false -Xcompiler -ffp-contract=off -arch=${NVCC_ARCH:-native} -I$out/include -I$here"
jobs=()
for program in langevin energy dense adam layer layer_gradients; do
  nvcc $flags "$here/$program.cu" -o "$out/$program" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
