"""A classifier's batch with variations of its images beside them (the report's Algorithm 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lae_fast import checks, ops
from lae_fast.isolation import isolated
from lae_fast.models.autoencoder import Autoencoder, asks, images_for
from lae_fast.models.lae import LAE
from lae_fast.models.precision import products_in
from lae_fast.sampling.ald import evaluate_potential
from lae_fast.sampling.chains import Chains
from lae_fast.sampling.sample import langevin_sample

Source = Literal["encoder", "isotropic", "residual", "chain", "posterior"]
SOURCES = ("encoder", "isotropic", "residual", "chain", "posterior")
SCALES = {"isotropic": 0.05, "residual": 0.5}  # sources with a scale, and its default
POSTERIOR_STEPS = 20


@asks
def augment(
    model: Autoencoder,
    x: Tensor,
    labels: Tensor,
    n: int,
    *,
    source: Source | None = None,
    scale: float | None = None,
    n_steps: int | None = None,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """The batch and n variations of each image, for one step of any classifier: B of Algorithm 3, lines 8 to 12.

        B[0] = x,    B[k] = decode(z_k),  z_k ~ D(x),  k = 1..n

    The blocks follow one another: image k m + i is a variation of image i and has the same label. `source` selects D:

        encoder     q(z|x), from `model.posterior`; the default for a VAE and for Hoffman.
        isotropic   N(f(x), scale^2 I), where f(x) is the mean of q, as in the report's code; the default for an LAE.
        residual    N(f(x), scale^2 diag(s^2)), where s [nz] is the standard deviation of the codes f(x) of all images of the
                    call. What a step in the latent space changes is added to the image itself, which keeps what the model
                    does not know of it: B[k] = clip(x + decode(z_k) - decode(f(x))).
        chain       for an LAE only: its own chain takes `n_steps` steps from `model.phi` on this minibatch's
                    potential, n times, with MH if the model has MH. With joint decisions the n x m latents of one call
                    are n joint draws, not n m separate draws: one phi' makes a whole block.
        posterior   p(z|x), for any model: a MALA chain for each variation, `n_steps` steps from a draw of q(z|x).
                    All chains share one step size, which adapts in all steps except the last.

    The model is only read: its chain (phi, random stream, counters, step size) and its gradients do not change, and no
    gradient flows to the model or to x. It runs in eval mode and is in its own mode afterwards. The call does not wait for the
    device, except with "posterior", which reads values from the device before and after its steps.

    Args:
        model: an LAE, a VAE or a Hoffman.
        x: images [m, ...] as all functions of a model take them (`images_for`): [m, *model.shape] or flat [m, nx].
        labels: [m, ...], of any type.
        n: variations of each image. 0: x and labels themselves are returned.
        source: one of the sources above.
        scale: of "isotropic" the standard deviation, default 0.05; of "residual" in units of the codes' own, default 0.5.
        n_steps: steps of each chain. "chain": default `model.n_steps`; "posterior": default 20, at least 2 if the step
            size adapts.
        step_size: "chain": as the model's `step_size`; default: the model's current one, which is
            part of its `state_dict`. "posterior": eta for z, not adapted; default: adapted.
        generator: source of all randomness, on x's device; default: the generator that `torch.manual_seed` sets.

    Returns:
        Images [(n + 1) m, ...] of x's type and labels [(n + 1) m, ...]. Variations under a Gaussian likelihood can leave
        [0, 1], as its means can. Equivalent PyTorch for "isotropic":
        `torch.cat([x] + [model.decode(model.encode(x) + scale * torch.randn(m, nz)) for _ in range(n)])`, and
        `labels.repeat(n + 1)`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: images have another form (values are checked on a CPU only), there is not one label for each image,
            n < 0, the source is unknown, "chain" for a model that is not an LAE, a scale or step size is not finite and
            >= 0, too few steps, "residual" for fewer than two images, an option that the source does not have, or the energy or its gradient is not
            finite at a start of "posterior".

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> x, labels = torch.rand(16, 64), torch.arange(16)
        >>> images, classes = lae_fast.augment(model, x, labels, n=3)
        >>> images.shape, torch.equal(images[:16], x), classes.tolist()[16:20]
        (torch.Size([64, 64]), True, [0, 1, 2, 3])
    """
    variations, _ = _variations(
        model,
        x,
        labels,
        n,
        source=source,
        scale=scale,
        n_steps=n_steps,
        step_size=step_size,
        generator=generator,
    )  # [n, m, nx]
    if n == 0:
        return x, labels
    return torch.cat((x, _as_images(variations, x))), labels.repeat(n + 1, *[1] * (labels.dim() - 1))


def _as_images(variations: Tensor, x: Tensor) -> Tensor:
    """Variations [n, m, nx] in [0, 1] in the form of the images x [m, ...]: [n m, ...], of their type."""
    if x.dtype == torch.uint8:
        variations = (variations.clamp(0, 1) * 255).round()
    return variations.reshape(-1, *x.shape[1:]).to(x.dtype)


class VariationReport(NamedTuple):
    """What can be known of variations before a classifier is trained on them: whether they differ, and keep their labels.

    Attributes:
        diversity: root of the variance between an image's variations, a mean over pixels and images, [].
        real_diversity: the same between the images of a label, a mean over images, [].
        label_agreement: the share of variations to which the classifier gives their image's label, [], or None without one.
        acceptance_rate: of the source's chain, over its steps, of "posterior" in the last one, which does not adapt; [], or None
            without a chain.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> report = lae_fast.diagnose_variations(model, torch.rand(40, 64), torch.arange(40) % 4)
        >>> bool(report.diversity < 0.1 * report.real_diversity)  # as the report's variations: they cannot help
        True
    """

    diversity: Tensor
    real_diversity: Tensor
    label_agreement: Tensor | None
    acceptance_rate: Tensor | None


@asks
def diagnose_variations(
    model: Autoencoder,
    x: Tensor,
    labels: Tensor,
    n: int = 8,
    *,
    classifier: Callable[[Tensor], Tensor] | None = None,
    source: Source | None = None,
    scale: float | None = None,
    n_steps: int | None = None,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> VariationReport:
    """How much the variations that `augment` would draw differ, beside real images of one label; and whether a classifier still
    sees the label.

    Args:
        model, x, source, scale, n_steps, step_size, generator: as for `augment`.
        labels: [m], integers; with a classifier its classes, from 0.
        n: variations of each image, at least 2.
        classifier: images as x -> scores [., classes]; one that was trained on real images. In eval mode, if it has one.

    Raises:
        TypeError, ValueError: as for `augment`; n < 2; labels are no integers [m]; no two images have the same label; or the
            classifier's scores are of another form, fewer than the labels, or not numbers.

    Example:
        >>> from lae_fast import models
        >>> model = models.build(models.Architecture(nx=64, nz=2, nh=16, depth=1))
        >>> x, labels = torch.rand(40, 64), torch.arange(40) % 4
        >>> report = lae_fast.diagnose_variations(model, x, labels, source="posterior", n_steps=5)
        >>> bool(0 <= report.acceptance_rate <= 1), report.label_agreement
        (True, None)
    """
    checks.count("n", n, 2)
    if classifier is not None:
        checks.function("classifier", classifier)
    checks.tensor("labels", labels, "m", dtypes=None)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels are {checks.describe(labels)}; expected integers")
    if classifier is not None and len(labels) and labels.amin() < 0:
        raise ValueError(
            f"labels are from {int(labels.amin())} on; expected classes of the classifier, from 0"
        )
    flat = images_for(model, x)
    if len(labels) != len(flat):
        raise ValueError(f"labels are {list(labels.shape)}; expected [{len(x)}], one for each image")
    of_labels = [those for label in labels.unique() if len(those := flat[labels == label]) > 1]
    if not of_labels:
        raise ValueError(f"no two of {len(x)} images have the same label; expected some, to compare with")
    options: dict[str, Any] = dict(source=source, scale=scale, n_steps=n_steps, step_size=step_size)
    draws, acceptance = _variations(model, x, labels, n, generator=generator, **options)
    variances = [len(those) * those.var(0).mean() for those in of_labels]
    n_compared = sum(map(len, of_labels))
    agreement = None
    if classifier is not None:
        with isolated(classifier):
            scores = classifier(_as_images(draws, x))
        most = int(labels.amax())
        expected = (
            f"expected scores [{n * len(x)}, classes], with classes >= {max(most + 1, 2)} for these labels"
        )
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != n * len(x):
            raise TypeError(f"classifier returned {checks.describe(scores)}; {expected}")
        if scores.shape[1] <= max(most, 1):
            raise ValueError(
                f"labels are up to {most}, and the classifier returned {checks.describe(scores)}; {expected}"
            )
        if scores.isnan().any():
            raise ValueError("the classifier returned scores that are no numbers (NaN); expected numbers")
        agreement = (scores.argmax(1) == labels.repeat(n)).double().mean()
    return VariationReport(
        draws.var(0).mean().sqrt(), (torch.stack(variances).sum() / n_compared).sqrt(), agreement, acceptance
    )


def _variations(
    model: Autoencoder,
    x: Tensor,
    labels: Tensor,
    n: int,
    *,
    source: Source | None,
    scale: float | None = None,
    n_steps: int | None = None,
    step_size: float | None = None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """n variations of each image [n, m, nx], and the acceptance rate [] of a source with chains."""
    if source is None:
        source = "isotropic" if isinstance(model, LAE) else "encoder"
    _check(model, n, source, scale, n_steps, step_size)
    checks.tensor("images", x, dtypes=None)
    flat = images_for(model, x.detach()).contiguous()  # [m, nx]
    checks.generator("generator", generator, x.device)
    checks.tensor("labels", labels, dtypes=None)
    if labels.shape[:1] != x.shape[:1]:
        raise ValueError(f"labels are {list(labels.shape)}; expected [{len(x)}, ...], one for each image")
    if n == 0:
        return flat.new_empty(0, *flat.shape), None
    scale, acceptance = SCALES.get(source, 1.0) if scale is None else scale, None
    if isinstance(model, LAE) and source == "chain":
        z, acceptance = _chain(model, flat, n, n_steps or model.n_steps, step_size, generator)
        return model.decode(z).flatten(2), acceptance
    mean, std = (t.to(flat.dtype) for t in model.posterior(flat))  # [m, nz]
    if source == "isotropic":
        std = torch.full_like(std, scale)
    elif source == "residual":
        if len(flat) < 2:
            raise ValueError("source is 'residual' for one image; expected two or more, whose codes spread")
        std = scale * mean.std(0).expand_as(mean)
    z = mean + std * torch.randn((n, *mean.shape), generator=generator, device=x.device, dtype=mean.dtype)
    if source == "posterior":
        z, acceptance = _mala(model, flat, z, n_steps or POSTERIOR_STEPS, step_size, generator)
    variations = model.decode(z).flatten(2)
    if source == "residual":
        variations = flat + variations - model.decode(mean).flatten(1)
        bounds = model.likelihood.bounds
        variations = variations if bounds is None else variations.clamp(*bounds)
    return variations, acceptance


def _check(
    model: Autoencoder,
    n: int,
    source: str,
    scale: float | None,
    n_steps: int | None,
    step_size: float | None,
) -> None:
    checks.choice("source", source, SOURCES)
    if source == "chain" and not isinstance(model, LAE):
        raise ValueError(
            f"source is 'chain' for a {type(model).__name__}; expected an LAE, which has a phi to move"
        )
    checks.count("n", n, 0)
    if scale is not None:
        checks.number("scale", scale, least=0, below=1e6)
        if source not in SCALES:
            raise ValueError(
                f"scale is {scale} with source {source!r}; expected None: only {' and '.join(SCALES)} have one"
            )
    if step_size is not None:
        checks.number("step_size", step_size, least=0)
    # Adaptation takes one step to find the size, and one to use it.
    least = 2 if source == "posterior" and step_size is None else 1
    if n_steps is not None:
        checks.count("n_steps", n_steps, least)
    for name, value in (("n_steps", n_steps), ("step_size", step_size)):
        if value is not None and source not in ("chain", "posterior"):
            raise ValueError(f"{name} is {value} with source {source!r}; expected None: it runs no chain")


def _chain(
    model: LAE, x: Tensor, n: int, n_steps: int, step_size: float | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """z [n, m, nz], from n runs of the model's own chain for images x [m, nx], and its acceptance rate []."""
    h = model.features(x)  # [m, d]
    coordinates = model.coordinates(h, model.log_std(h) if model.spread else None)
    start = coordinates.start(
        n, lambda like: torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    )

    def energy(rows: Tensor) -> Tensor:
        with products_in(model.chain_precision, x.device):
            potential = model.potential(x, coordinates.many(rows, n))  # [n, m]
        return potential if model.is_joint else potential.flatten()

    log_step_size = model.log_step_size
    if step_size is not None:
        log_step_size = torch.full_like(log_step_size, float(step_size)).log()
    chains = Chains(
        lambda rows: evaluate_potential(energy, rows, len(start), model.mh),
        start,
        log_step_size - coordinates.log_n,
        ops.make_rng(x.device, generator),
        mh=model.mh,
    )
    for _ in range(n_steps):
        chains.step()
    return coordinates.many(chains.phi, n), chains.acceptance.mean() / n_steps


def _mala(
    model: Autoencoder,
    x: Tensor,
    z: Tensor,
    n_steps: int,
    step_size: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """z [n, m, nz], each moved by its own chain towards p(z|x) of images x [m, nx]; the last step does not adapt. And the acceptance
    rate [] of that one."""
    samples = langevin_sample(
        lambda z: model.potential(x, z),
        z,
        n_draws=1,
        n_warmup=n_steps - 1,
        step_size=step_size,
        share_step_size=True,
        generator=generator,
        progress=False,
    )
    return samples.z[:, 0], samples.acceptance_rate.mean()
