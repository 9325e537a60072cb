"""A classifier's batch with variations of its images beside them (the report's Algorithm 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lae_fast import ops
from lae_fast.models.autoencoder import Autoencoder, check_images
from lae_fast.models.lae import LAE, whitening_root
from lae_fast.models.precision import check_float32, products_in
from lae_fast.sampling.ald import evaluate_potential
from lae_fast.sampling.chains import Chains
from lae_fast.sampling.sample import langevin_sample

SOURCES = ("encoder", "isotropic", "chain", "posterior")
POSTERIOR_STEPS = 20


@torch.no_grad()
def augment(
    model: Autoencoder,
    x: Tensor,
    labels: Tensor,
    n: int,
    *,
    source: str | None = None,
    scale: float = 0.05,
    n_steps: int | None = None,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch and n variations of each image, for one step of any classifier: B of Algorithm 3, lines 8 to 12.

        B[0] = x,    B[k] = decode(z_k),  z_k ~ D(x),  k = 1..n

    Block follows block, so that image k m + i varies image i and bears its label. What D is, `source` says:

        encoder     q(z|x), as `model.posterior` has it; the default of VAE and Hoffman. Of an LAE: N(f(x), s^2 I)
                    with `model.posterior_scale` as s.
        isotropic   N(f(x), scale^2 I), f(x) the mean of q; as the report's code has it; the default of an LAE.
        chain       an LAE's own way: n chains take `n_steps` steps of ALD from `model.phi` on this minibatch's
                    potential, with or without MH as the model; z = phi' g(x). The n x m latents of one call are
                    n joint draws, not n m separate ones: one phi' makes a whole block.
        posterior   p(z|x), for any model: a MALA chain for each variation, `n_steps` steps from a draw of q(z|x).
                    All share one step size, which adapts in all steps but the last.

    The model is only read: neither its chain (phi, random stream, counters, step size) nor its gradients change, and
    no gradient flows to it or to x. It stays in the mode it is in, train or eval: no network of this package tells
    the two apart. Nothing waits for the device, but for "posterior", which looks at it before and after its steps.

    Args:
        x: images [m, ...], floating point in [0, 1], `model.nx` elements each: [m, 1, 28, 28] or [m, 784].
        labels: [m, ...], of any type.
        n: variations of each image. 0: x and labels themselves are returned.
        source: one of the above.
        scale: of "isotropic", per latent dimension.
        n_steps: of the chains. "chain": default `model.n_steps`; "posterior": default 20, and two at least if the step
            size adapts.
        step_size: "chain": per example, eta = step_size / m for phi (whitened if the model whitens); default: the
            model's own, which weights alone do not bring back (`load_chain_state` does). "posterior": eta for z, not
            adapted; default: adapted.
        generator: decides all that is random, on x's device; default: the one `torch.manual_seed` sets.

    Returns:
        Images [(n + 1) m, ...] of x's type and labels [(n + 1) m, ...]. Variations under a Gaussian likelihood can leave
        [0, 1], as its means can. Equivalent PyTorch for "isotropic":
        `torch.cat([x] + [model.decode(model.encode(x) + scale * torch.randn(m, nz)) for _ in range(n)])`, and
        `labels.repeat(n + 1)`.

    Raises:
        ValueError: images are not of that form (values are looked at on a CPU only), labels not one for each, n < 0, an
            unknown source, "chain" for a model that is no LAE, a scale or step size that is not finite and >= 0, too
            few steps, n_steps or step_size for a source without chains, a start for "posterior" whose energy is not
            finite, or PyTorch rounds products behind the back of a chain's decisions (precision.py).
    """
    source = source or ("isotropic" if isinstance(model, LAE) else "encoder")
    _check(model, n, source, scale, n_steps, step_size)
    flat = x.flatten(1) if x.dim() > 2 else x  # [m, nx]
    check_images(flat, model.nx)
    m = len(x)
    if labels.shape[:1] != (m,):
        raise ValueError(f"labels are {list(labels.shape)}; expected [{m}, ...], one for each image")
    if n == 0:
        return x, labels
    flat = flat.detach().to(next(model.parameters()).dtype).contiguous()
    if source == "chain":
        z = _chain(model, flat, n, n_steps or model.n_steps, step_size, generator)
    else:
        mean, std = (t.to(flat.dtype) for t in model.posterior(flat))  # [m, nz]
        std = torch.full_like(std, scale) if source == "isotropic" else std
        z = mean + std * torch.randn((n, *mean.shape), generator=generator, device=x.device, dtype=mean.dtype)
        if source == "posterior":
            z = _mala(model, flat, z, n_steps or POSTERIOR_STEPS, step_size, generator)
    variations = model.decode(z.flatten(0, 1)).view(n * m, *x.shape[1:])
    return torch.cat((x, variations.to(x.dtype))), labels.repeat(n + 1, *[1] * (labels.dim() - 1))


def _check(
    model: Autoencoder, n: int, source: str, scale: float, n_steps: int | None, step_size: float | None
) -> None:
    if source not in SOURCES:
        raise ValueError(f"source is {source!r}; expected one of {', '.join(SOURCES)}")
    if source == "chain" and not isinstance(model, LAE):
        raise ValueError(
            f"source is 'chain' for a {type(model).__name__}; expected an LAE, which has a phi to move"
        )
    if n < 0:
        raise ValueError(f"n is {n}; expected at least 0")
    for name, value in (("scale", scale), ("step_size", step_size)):
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; expected a finite number >= 0")
    least = 2 if source == "posterior" and step_size is None else 1  # one to find it by, one to use it
    if n_steps is not None and n_steps < least:
        raise ValueError(f"n_steps is {n_steps}; expected at least {least}")
    for name, value in (("n_steps", n_steps), ("step_size", step_size)):
        if value is not None and source not in ("chain", "posterior"):
            raise ValueError(f"{name} is {value} with source {source!r}; expected None: it runs no chain")


def _chain(
    model: LAE, x: Tensor, n: int, n_steps: int, step_size: float | None, generator: torch.Generator | None
) -> Tensor:
    """z [n, m, nz], read off n chains of phi that start where the model's own is, on the potential of x [m, nx]."""
    check_float32(model.mh)
    m, phi = len(x), model.phi
    h = model.encoder(x).to(x.dtype)  # [m, d]
    with torch.autocast(x.device.type, enabled=False):
        if model.whiten:  # phi h = (phi L) (L^-1 h), as in LAE.loss
            root = whitening_root(model.next_gram(h))
            h, phi = torch.linalg.solve_triangular(root, h.T, upper=False).T, phi @ root

        def read(rows: Tensor) -> Tensor:
            return (rows.view(-1, model.d) @ h.T).view(n, model.nz, m).mT  # [n, m, nz]

        def energy(rows: Tensor) -> Tensor:
            with products_in(model.chain_precision, x.device):
                return model.potential(x, read(rows))

        log_step_size = model.log_step_size
        if step_size is not None:
            log_step_size = torch.full_like(log_step_size, step_size).log()
        chains = Chains(
            lambda rows: evaluate_potential(energy, rows, n), phi.reshape(1, -1).expand(n, -1),
            log_step_size - math.log(m), ops.make_rng(x.device, generator), mh=model.mh,
        )  # fmt: skip
        for _ in range(n_steps):
            chains.step()
        return read(chains.phi)


def _mala(
    model: Autoencoder, x: Tensor, z: Tensor, n_steps: int, step_size: float | None,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """z [n, m, nz], moved by a chain each towards p(z|x) of images x [m, nx]; the last step's size no longer adapts."""
    check_float32(mh=True)
    with torch.autocast(x.device.type, enabled=False):
        samples = langevin_sample(
            lambda z: model.potential(x, z), z, n_draws=1, n_warmup=n_steps - 1, step_size=step_size,
            share_step_size=True, generator=generator, progress=False,
        )  # fmt: skip
    return samples.z[:, 0]
