"""Names for the columns of the small state tensors. csrc/langevin_math.h has the same names, for the kernels."""

from __future__ import annotations

SEED, STEP, TICKET = range(3)  # rng int64 [3]
REJECTED, NONFINITE = range(2)  # counters int64 [C, 2]
RNG, COUNTERS = 3, 2  # how many columns these have
TARGET, RATE, COUNT, ERROR, AVERAGE, CENTRE = range(6)  # adaptation float64 [S, K]
ROBBINS_MONRO, DUAL_AVERAGING = 2, 6  # K: the number of columns selects the rule by which a step size adapts
