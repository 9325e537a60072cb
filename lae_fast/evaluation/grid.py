"""log p(x) by numerical integration over z: to rounding, for models with one or two latent dimensions."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from lae_fast import checks
from lae_fast.evaluation.elbo import batches
from lae_fast.models.autoencoder import Autoencoder, asks, like_of
from lae_fast.models.likelihood import negative_log_prior

N_CELLS = {1: 4096, 2: 512}  # along each axis
LEAK = 1e-3  # share of p(x) near the edge of the box, beyond which the box is too small for an image
COARSE = 0.1  # nats between the rule and a rule with half of the cells, beyond which cells are too large


@asks
def quadrature(
    model: Autoencoder, images: Tensor, *, half_width: float = 8.0, n_cells: int | None = None
) -> Tensor:
    """log p(x) = log of the integral of p(x, z) over the box |z_j| <= half_width: float64 [N], nats per image.

    The midpoint rule, whose error falls faster than any power of the cells' size once a cell is smaller than a posterior's
    standard deviation; 512 x 512 cells (nz 1: 4,096) of a box of half-width 8 resolve deviations of 0.02 to 1e-2 nats. Rules
    with half of the cells (every other one, as on a chessboard; every other row; every other column) show whether the cells
    are small enough, but where a posterior narrower than a cell has its mean just where four cells meet.

    Args:
        images: [N, *shape] or [N, nx], float in [0, 1] or uint8 in 0..255.
        n_cells: along each axis.

    Raises:
        TypeError, ValueError: nz is above 2, images have another form, or half_width or n_cells is not a positive number.

    Warns:
        UserWarning: p(x, z) of some image is not small at the edge of the box, or sharper than the cells.

    Example:
        >>> from torch import nn
        >>> model = lae_fast.VAE(nn.Linear(1, 4), nn.Identity(), lae_fast.Gaussian(1.0), nx=1, nz=1)  # p(x) = N(0, 2)
        >>> round(lae_fast.quadrature(model, torch.zeros(1, 1)).item(), 4)  # -log(4 pi) / 2
        -1.2655
    """
    if model.nz not in N_CELLS:
        raise ValueError(f"nz is {model.nz}; expected 1 or 2: cells grow with their number of dimensions")
    n_cells = N_CELLS[model.nz] if n_cells is None else checks.count("n_cells", n_cells, most=2**16)
    half_width = checks.number("half_width", half_width, above=0, below=1e6)
    all_batches = batches(model, images, 1000)
    width = 2 * half_width / n_cells
    like = like_of(model)
    axis = (
        torch.arange(n_cells, dtype=torch.float64, device=like.device) * width + (width - 2 * half_width) / 2
    )
    z = torch.cartesian_prod(*[axis] * model.nz).view(-1, model.nz).to(like)  # [cells, nz]
    is_edge = (z.abs() > half_width - max(width, half_width / 64)).any(1)
    numbers = torch.cartesian_prod(*[torch.arange(n_cells, device=like.device)] * model.nz).view(-1, model.nz)
    is_even, is_white = numbers % 2 == 0, numbers.sum(1) % 2 == 0
    halves = {"white": is_white} | (
        {"rows": is_even[:, 0], "columns": is_even[:, 1]} if model.nz == 2 else {}
    )
    parts = halves | {"black": ~is_white, "edge": is_edge}
    found: dict[str, list[Tensor]] = {name: [] for name in parts}
    for x in all_batches:
        sums = {name: x.new_full((len(x),), -math.inf, dtype=torch.float64) for name in parts}
        for index in torch.arange(len(z), device=z.device).split(1024):
            pairs = model.likelihood.all_pairs(model.output(z[index]), x)
            log_joint = -pairs - negative_log_prior(z[index])[:, None]  # [1024, n]
            for name, is_in in parts.items():
                sums[name] = torch.logaddexp(sums[name], log_joint[is_in[index]].logsumexp(0))
        for name, value in sums.items():
            found[name].append(value.cpu())
    log_sum = {name: torch.cat(sums) for name, sums in found.items()}  # [N] each
    total = torch.logaddexp(log_sum["white"], log_sum["black"])
    by_halves = torch.stack([log_sum[name] for name in halves]) + math.log(2)  # [1 or 3, N]
    faults = {
        "reaches the edge of the box: take a larger half_width": log_sum["edge"] - total > math.log(LEAK),
        "is sharper than the cells: take more of them": ((by_halves - total).abs() > COARSE).any(0),
    }
    for fault, is_at_fault in faults.items():
        if is_at_fault.any():
            warnings.warn(
                f"p(x, z) of {int(is_at_fault.sum())} of {len(total)} images {fault} (half_width {half_width:g}, n_cells "
                f"{n_cells})",
                stacklevel=3,
            )
    return total + model.nz * math.log(width)
