#!/usr/bin/env bash
# bench/on_gpu.sh OUT [WHEELS]: all that takes a GPU, in less than eight minutes. The results lie in OUT.
#
#   build        this package, for this card              OUT/build.log     also what is missing, and lae_fast.info
#   tests        pytest -m gpu                            OUT/tests.log, OUT/tests.xml
#   benchmarks   bench/table.py                           OUT/bench.log, OUT/bench.json, OUT/bench.md
#   sanitizer    compute-sanitizer on bench/sanitize      OUT/sanitizer.log
#
# OUT/summary.txt has a line for each. A stage that fails makes the exit code 1, and the next begins all the same; one that
# cannot run here (the sanitizer, where the machine refuses it) is skipped, with its reason. No network is used.
#
# WHEELS           a folder of wheels that this machine lacks; they are unpacked beside its packages, not into them
# PYTHON           the interpreter (python3)
# DATA             where MNIST lies, for the epoch; without, random images
# BUDGET           seconds for all stages together (455)
# STAGES           some of the four ("build tests benchmarks sanitizer")
# LAE_FAST_COMMIT  the commit's name, where the checkout came without its history
set -uo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
wheels=${2:-${WHEELS:-}}
if [ -n "$wheels" ]; then wheels=$(cd "$wheels" && pwd) || exit 2; fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
data=${DATA:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

card=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
capability=${card##*, }
if ! [[ $capability =~ ^[0-9]+\.[0-9]+$ ]]; then
  echo "error: nvidia-smi shows no GPU here" >&2
  exit 2
fi
if [ -d "${CUDA_HOME:-/usr/local/cuda}/bin" ]; then PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin; fi
export out wheels python data work capability PATH
export PYTHONUNBUFFERED=1 PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}

# ---- the stages: 0 is well, 77 skipped (the last line says why), anything else a failure ----

build() {
  if [ -n "$wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
  fi
  "$python" bench/packages.py
  LAE_FAST_BUILD=cuda TORCH_CUDA_ARCH_LIST=$capability \
    "$python" -m pip install -v --no-index --no-build-isolation --no-deps --force-reinstall .
  "$python" -m lae_fast.info | tee "$work/info"
  grep -q '^cuda  *compiled kernels' "$work/info"
}

tests() {
  rm -f "$out/tests.xml"
  # Without other packages' plugins: their warnings would count as errors here.
  local code=0
  local parallel=()
  if "$python" -c "import execnet, xdist" 2>/dev/null; then parallel=(-p xdist -n 6 --dist loadgroup); fi
  PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" -m pytest -m gpu -v --durations=10 -p no:cacheprovider "${parallel[@]}" \
    --continue-on-collection-errors --junitxml="$out/tests.xml" || code=$?
  echo "pytest's exit code: $code"
  "$python" bench/junit.py "$out/tests.xml"
}

benchmarks() {
  "$python" bench/table.py --device cuda --json "$out/bench.json" --output "$out/bench.md" ${data:+--data-dir "$data"}
}

sanitizer() {
  local tool program log code failed=0 ran=0 refusal=
  if ! command -v compute-sanitizer >/dev/null; then echo "no compute-sanitizer on the PATH"; return 77; fi
  if ! ls bench/sanitize/*.cu >/dev/null 2>&1; then echo "no programs in bench/sanitize"; return 77; fi
  NVCC_ARCH=sm_${capability/./} bash bench/sanitize/build.sh "$work/sanitize"
  for program in bench/sanitize/*.cu; do
    program=$(basename "$program" .cu)
    echo "== $program by itself"
    "$work/sanitize/$program" || failed=1
  done
  # Eight at once: each takes a processor, and the GPU hardly; a tool finds its program by one of ten ports of the machine.
  for tool in memcheck racecheck initcheck synccheck; do
    for program in bench/sanitize/*.cu; do
      program=$(basename "$program" .cu) log=$work/$tool-$program.log
      if [ "$(jobs -pr | wc -l)" -ge 8 ]; then wait -n || true; fi
      {
        code=0
        compute-sanitizer --tool "$tool" --error-exitcode 86 "$work/sanitize/$program" >"$log" 2>&1 || code=$?
        echo $code >"$log.code"
      } &
    done
  done
  wait
  for tool in memcheck racecheck initcheck synccheck; do
    for program in bench/sanitize/*.cu; do
      program=$(basename "$program" .cu) log=$work/$tool-$program.log
      code=$(cat "$log.code")
      echo "== $tool $program"
      cat "$log"
      if ! grep -q 'SUMMARY: ' "$log" && grep -qiE 'not supported|not permitted|permission|unable to|failed to init' "$log"; then
        refusal="$tool: $(grep -iE -m 1 'not supported|not permitted|permission|unable to|failed to init' "$log")"
        echo "refused"
      else
        ran=$((ran + 1))
        if [ "$code" != 0 ]; then failed=1 && echo "FAILED: $tool $program, exit code $code"; fi
      fi
    done
  done
  if [ "$failed" = 1 ]; then return 1; fi
  if [ "$ran" = 0 ]; then echo "$refusal"; return 77; fi
  echo "$ran runs without complaint${refusal:+; refused: $refusal}"
}
export -f build tests benchmarks sanitizer

# ---- their order and their time: what one leaves, the next ones may use ----

all=(build tests benchmarks sanitizer)
chosen=${STAGES:-${all[*]}}
declare -A percent=([build]=22 [tests]=28 [benchmarks]=30 [sanitizer]=20)
budget=${BUDGET:-455}
failures=0

say() { echo "$*" | tee -a "$out/summary.txt"; }

later=0
for name in $chosen; do
  if [ -z "${percent[$name]:-}" ]; then echo "error: no stage is called $name; expected some of: ${all[*]}" >&2 && exit 2; fi
  later=$((later + percent[$name]))
done
: >"$out/summary.txt"
say "$card, $(date -u +%Y-%m-%dT%H:%MZ)"
for name in "${all[@]}"; do
  if [[ " $chosen " != *" $name "* ]]; then continue; fi
  later=$((later - percent[$name]))
  limit=$((budget - SECONDS - budget * later / 100))
  if [ "$limit" -lt 1 ]; then limit=1; fi
  begun=$SECONDS code=0 log=$out/${name/benchmarks/bench}.log
  timeout --kill-after=5 "$limit" bash -c "set -euo pipefail; $name" >"$log" 2>&1 || code=$?
  case $code in
    0) verdict=ok && [[ $name =~ ^(tests|sanitizer)$ ]] && verdict="ok: $(tail -n 1 "$log")" ;;
    77) verdict="skipped: $(tail -n 1 "$log")" ;;
    124 | 137) verdict="FAILED: stopped after its $limit s" ;;
    *) verdict="FAILED: exit code $code" ;;
  esac
  if [[ $verdict == FAILED* ]]; then
    failures=$((failures + 1))
  fi
  if [ "$code" != 77 ]; then tail -n 30 "$log"; fi
  say "$(printf '%-11s %4d s  %s' "$name" $((SECONDS - begun)) "$verdict")"
done
say "all         $(printf '%4d' "$SECONDS") s  $([ "$failures" = 0 ] && echo ok || echo "$failures of the stages failed")"
[ "$failures" = 0 ]
