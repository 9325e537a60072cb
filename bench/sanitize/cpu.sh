#!/usr/bin/env bash
# cpu.sh FOLDER [SANITIZER...] builds the CPU kernels, without torch, under each sanitizer (address, undefined and thread,
# unless others are named; "address,undefined" is one build with both), and calls every op but walk with ragged and with empty tensors, from one thread and from several, at every
# SIMD level that the processor has. The exit code is 1 as soon as one of them complains.
# CXX: g++ (the default) or clang++. LEVELS: some of "sse2 avx2 avx512". CSRC: another folder of kernels.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
csrc=$(cd "${CSRC:-$here/../../csrc}" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
"$here/stand_ins.sh" "$out/include" "$csrc"
# The flags of setup.py, but with -O1 and line numbers.
flags="-std=c++20 -O1 -g -fno-omit-frame-pointer -ffp-contract=off -fno-math-errno -fno-trapping-math -pthread"
failed=0
for sanitizer in ${*:-address undefined thread}; do
  objects=()
  for source in "$csrc"/cpu/*.cpp "$here/cpu/ops.cpp"; do
    object=$out/$sanitizer-$(basename "$source" .cpp).o
    "${CXX:-g++}" $flags -fsanitize="$sanitizer" -fno-sanitize-recover=all \
      -I"$out/include" -I"$here/cpu" -I"$csrc" -c "$source" -o "$object" &
    objects+=("$object")
  done
  for job in $(jobs -p); do wait "$job"; done
  "${CXX:-g++}" $flags -fsanitize="$sanitizer" "${objects[@]}" -o "$out/$sanitizer"
  for level in ${LEVELS:-sse2 avx2 avx512}; do # the next best where the processor has no such
    printf '%-18s %-6s ' "$sanitizer" "$level"
    if ! LAE_FAST_KERNELS=$level "$out/$sanitizer"; then failed=1 && echo "FAILED: $sanitizer, $level"; fi
  done
done
exit "$failed"
