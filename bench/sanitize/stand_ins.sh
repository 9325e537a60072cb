#!/usr/bin/env bash
# stand_ins.sh FOLDER CSRC puts a stand-in into FOLDER in the place of every torch header that CSRC includes: each includes
# stand_in.h, which the includer's -I names.
set -euo pipefail
grep -rhoE '#include <torch/[^>]+' "$2" | sort -u | sed 's/#include <//' | while read -r header; do
  mkdir -p "$1/$(dirname "$header")"
  echo '#include "stand_in.h"' >"$1/$header"
done
