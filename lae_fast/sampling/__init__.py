"""Chains and samplers: one step (`ald_step`), the loop of samplers and models (`Chains`), and samples of p(z|x)."""

from lae_fast.sampling.acceptance import acceptance_rate, acceptance_warning
from lae_fast.sampling.adaptation import TARGET_ACCEPTANCE, adapt_step_size, dual_averaging, robbins_monro
from lae_fast.sampling.ald import ALDInfo, ALDState, ald_init, ald_step, evaluate_potential
from lae_fast.sampling.chains import Chains
from lae_fast.sampling.plan import Plan
from lae_fast.sampling.sample import ald_sample, langevin_sample
from lae_fast.sampling.samples import Samples, SamplingInterrupted

__all__ = [
    "TARGET_ACCEPTANCE",
    "ALDInfo",
    "ALDState",
    "Chains",
    "Plan",
    "Samples",
    "SamplingInterrupted",
    "acceptance_rate",
    "acceptance_warning",
    "adapt_step_size",
    "ald_init",
    "ald_sample",
    "ald_step",
    "dual_averaging",
    "evaluate_potential",
    "langevin_sample",
    "robbins_monro",
]
