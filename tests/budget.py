"""The false-alarm budget of the statistical tests.

Every check that can fail by chance takes its significance level from here: the suite as a whole raises a
false alarm with probability at most SUITE_ALPHA, shared equally by all registered checks (Bonferroni).
Seeds are fixed where the checks live and are never retuned: a failing check is a finding.
"""

from scipy import stats

SUITE_ALPHA = 1e-3

# check -> how many comparisons it makes
CHECKS = {
    "noise_is_normal": 4,
    "noise_is_uniform": 4,
    "noise_is_uncorrelated": 10,
    "accept_uniform": 1,
    "gaussian_moments": 5,
    "gaussian_bias_without_mh": 1,
    "banana_moments": 4,
    "banana_bias_without_mh": 1,
    "stationary_moments": 5,
    "detailed_balance": 3,
    "hoffman_posterior": 6,
    "posterior_moments": 60,
    "rank_condition": 180,
    "samplers_agree": 15,
    "getting_it_right": 30,
    "options_leave_the_law": 30,
    "minibatches": 5,
    "augmentation": 31,
    "datapoint_posteriors": 180,
    "datapoint_getting_it_right": 27,
    "kept_z": 10,
    "compiled_posteriors": 30,
}


def alpha(check: str) -> float:
    """The significance level of one comparison of this check."""
    return SUITE_ALPHA / len(CHECKS) / CHECKS[check]


def z_limit(check: str) -> float:
    """|z| of a standard normal statistic beyond which one comparison of this check fails."""
    return float(stats.norm.isf(alpha(check) / 2))
