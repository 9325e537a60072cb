#!/usr/bin/env bash
# emulate.sh FOLDER [PROGRAM.cu...] builds programs for the emulated device, which needs no GPU and no nvcc: of this folder
# all, unless others are named. FOLDER/langevin, say, then compares kernels with loops on the host, as build.sh's does, and
# watches them as compute-sanitizer does; with the word `quick`, in seconds. emulator/device.h says what it takes.
# CXX: g++ (the default) or clang++. Linux only.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
if [ $# = 0 ]; then set -- "$here"/*.cu; fi
"$here/stand_ins.sh" "$out/include" "$here/../../csrc"
cxx=${CXX:-g++}
# The kernels of setup.py contract nothing. Without -pie, an address in a report is one that addr2line knows.
flags="-std=c++20 -g1 -ffp-contract=off -fno-pie -Wall -Wextra -Wno-unknown-pragmas"
jobs=()
for source in threads memory order tensor_cores; do
  "$cxx" $flags -O2 -c "$here/emulator/$source.cpp" -o "$out/$source.o" &
  jobs+=($!)
done
for program in "$@"; do
  # -fsanitize=thread: the compiler calls emulator/memory.cpp before every access. Its own library is not linked.
  "$cxx" $flags -O1 -fsanitize=thread -I"$here/emulator" -I"$out/include" -I"$here" -x c++ -c "$program" \
    -o "$out/$(basename "$program" .cu).o" &
  jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
for program in "$@"; do
  name=$(basename "$program" .cu)
  # The emulator comes first: what it shares with a program of the standard library's templates is then its own copy, whose
  # accesses nobody watches.
  "$cxx" -no-pie "$out/threads.o" "$out/memory.o" "$out/order.o" "$out/tensor_cores.o" \
    "$out/$name.o" -o "$out/$name"
done
