"""The fused ops. Each file holds complete ops: schema, reference, fake kernel, and the function that checks and calls.

langevin   propose, decide, transition: one step of a chain
walk       walk_unchecked: many steps of a chain whose potential is compiled
philox     noise, make_rng: the random stream of a chain
energies   energy, energy_, in_unit_range: -log p(x|z) and its derivatives
dense      norm_relu, norm_relu_backward, norm_relu_sums, keep: the work between a network's matrix products
layer      layer_forward, layer_backward, layer_gradients_unchecked: a layer as one op, with the norm and ReLU before its
           product; and the gradients of a network's parameters as one
adam       adam_unchecked_: one step of Adam for all parameters, on GPUs
library    the implementation that serves a device, a compiled kernel or the reference, and the reason
"""

from lae_fast.ops import library
from lae_fast.ops.adam import adam_unchecked_
from lae_fast.ops.dense import (
    keep,
    keep_unchecked,
    norm_relu,
    norm_relu_backward,
    norm_relu_backward_unchecked,
    norm_relu_sums,
    norm_relu_sums_unchecked,
    norm_relu_unchecked,
)
from lae_fast.ops.energies import (
    BERNOULLI,
    GAUSSIAN,
    LOGISTIC,
    energy,
    energy_,
    energy_unchecked_,
    in_unit_range,
)
from lae_fast.ops.langevin import decide, propose, transition, transition_unchecked
from lae_fast.ops.layer import (
    layer_backward,
    layer_backward_unchecked,
    layer_forward,
    layer_forward_unchecked,
    layer_gradients_unchecked,
)
from lae_fast.ops.library import is_compiled
from lae_fast.ops.philox import ACCEPT, INTEGERS, NORMALS, UNIFORMS, make_rng, noise
from lae_fast.ops.walk import walk_unchecked

library.load_kernels()

__all__ = [
    "ACCEPT",
    "BERNOULLI",
    "GAUSSIAN",
    "INTEGERS",
    "LOGISTIC",
    "NORMALS",
    "UNIFORMS",
    "adam_unchecked_",
    "decide",
    "energy",
    "energy_",
    "energy_unchecked_",
    "in_unit_range",
    "is_compiled",
    "keep",
    "keep_unchecked",
    "layer_backward",
    "layer_backward_unchecked",
    "layer_forward",
    "layer_forward_unchecked",
    "layer_gradients_unchecked",
    "library",
    "make_rng",
    "noise",
    "norm_relu",
    "norm_relu_backward",
    "norm_relu_backward_unchecked",
    "norm_relu_sums",
    "norm_relu_sums_unchecked",
    "norm_relu_unchecked",
    "propose",
    "transition",
    "transition_unchecked",
    "walk_unchecked",
]
