"""The table of fuzz.py: for each public function a call that it accepts. One entry adds one function:

    @entry("langevin_sample", free=("start",))
    def _():
        return lae_fast.langevin_sample, dict(potential=..., start=torch.zeros(2, 3), n_samples=3)

The decorator's options are the attributes of `Call`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fuzz import CALLABLES, Call

import lae_fast
from lae_fast import attacks, data, models, ops, view
from lae_fast.checkpoint import CheckpointError
from lae_fast.ops import layer
from lae_fast.training import OwnNumbers, SideBySide, TrainingStep, adam

CALLS: dict[str, Call] = {}


def entry(name: str, **options: Any) -> Callable:
    def add(make: Callable) -> Callable:
        CALLS[name] = Call(make, **options)
        return make

    return add


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# ---- ops ----

C, D, F64 = 3, 8, torch.float64


def halves() -> dict[str, Any]:
    """The arguments that all Langevin ops share."""
    return dict(phi=normal(C, D), grad=normal(C, D, seed=1), rng=torch.tensor([7, 5, 0]))


@entry("ops.propose", free=("phi", "grad", "step_size", "noise"))
def _():
    step_size = torch.full((C,), 0.1, dtype=F64)
    return ops.propose, halves() | dict(step_size=step_size, noise=None)


@entry("ops.propose, given noise", free=("phi", "grad", "step_size", "noise"))
def _():
    step_size = torch.full((1,), 0.1, dtype=F64)
    return ops.propose, halves() | dict(step_size=step_size, noise=normal(C, D, seed=2))


def decision() -> dict[str, Any]:
    return halves() | dict(
        proposal=normal(C, D, seed=3),
        potential=normal(C, dtype=F64),
        proposal_potential=normal(C, dtype=F64, seed=1),
        proposal_grad=normal(C, D, seed=4),
    )


VALUES = ("phi", "grad", "proposal", "potential", "proposal_potential", "proposal_grad", "noise", "uniform")


@entry("ops.decide", free=(*VALUES, "step_size"))
def _():
    own = dict(step_size=torch.full((C,), 0.1, dtype=F64), mh=True, uniform=torch.full((C,), 0.5, dtype=F64))
    return ops.decide, decision() | own


@entry("ops.transition", free=(*VALUES, "log_step_size", "log_alpha", "adaptation", "acceptance"))
def _():
    own = dict(
        log_step_size=torch.full((C,), -2.0, dtype=F64),
        counters=torch.zeros(C, 2, dtype=torch.int64),
        is_accepted=torch.zeros(C, dtype=torch.bool),
        log_alpha=torch.zeros(C, dtype=F64),
        adaptation=torch.tensor([[0.574, 0.05]] * C, dtype=F64),
        mh=True,
        noise=normal(C, D, seed=5),
        uniform=torch.full((C,), 0.5, dtype=F64),
        acceptance=torch.zeros(C, dtype=F64),
        known_finite=torch.zeros(C, dtype=torch.bool),
    )
    arguments = decision() | own

    def transition(**arguments: Any) -> list[Any]:
        ops.transition(**arguments)
        return list(arguments.values())

    return transition, arguments


TOO_LARGE = (2**31,)  # for the memory of most machines: torch's own error says so


@entry("ops.noise", without=dict(n_chains=TOO_LARGE, n_elements=TOO_LARGE))
def _():
    arguments = dict(
        rng=torch.tensor([7, 5, 0]), n_chains=3, n_elements=9, dtype=torch.float32, kind=ops.NORMALS
    )
    return ops.noise, arguments


@entry("ops.make_rng", also=dict(device=("cuda:77", "nowhere"), generator=("cpu",)))
def _():
    return ops.make_rng, dict(device="cpu", generator=torch.Generator().manual_seed(0))


def pixels() -> dict[str, Any]:
    return dict(x=normal(4, 6).sigmoid(), kind=ops.GAUSSIAN, log_scale=torch.tensor(-1.0))


PIXELS = ("output", "x", "log_scale")


@entry("ops.energy", free=PIXELS)
def _():
    return ops.energy, dict(output=normal(2, 4, 6, seed=1)) | pixels()


@entry("ops.energy, Bernoulli", free=PIXELS)
def _():
    return ops.energy, dict(output=normal(4, 6, seed=1)) | pixels() | dict(kind=ops.BERNOULLI, log_scale=None)


@entry("ops.energy_", free=PIXELS)
def _():
    return ops.energy_, dict(output=normal(8, 6, seed=1)) | pixels() | dict(kind=ops.LOGISTIC)


@entry("ops.in_unit_range")
def _():
    return ops.in_unit_range, dict(x=normal(4, 6).sigmoid())


@entry("ops.norm_relu", free=("y", "weight", "bias"))
def _():
    return ops.norm_relu, dict(y=normal(4, 6), weight=normal(6), bias=normal(6, seed=1), eps=1e-5)


ROWS = ("grad", "out", "normalized", "y_grad", "rstd", "weight")


@entry("ops.norm_relu_backward", free=ROWS)
def _():
    rows = {name: normal(4, 6, seed=i) for i, name in enumerate(ROWS[:3])}
    return ops.norm_relu_backward, rows | dict(rstd=normal(4).abs(), weight=normal(6))


@entry("ops.norm_relu_sums", free=ROWS)
def _():
    return ops.norm_relu_sums, {name: normal(4, 6, seed=i) for i, name in enumerate(ROWS[:4])}


@entry("ops.keep", says={"latest": ("previous",), "previous": ("latest",)})
def _():
    latest, previous = ([normal(4, 6, seed=s), normal(4, seed=s)] for s in (0, 1))
    return ops.keep, dict(
        latest=latest, previous=previous, is_accepted=torch.tensor([True, False, True, False])
    )


@entry("ops.layer_forward", free=("x", "weight", "bias", "moments", "norm_weight", "norm_bias"))
def _():
    x = normal(4, 36)
    return ops.layer_forward, dict(
        x=x,
        weight=normal(8, 36, seed=1),
        bias=normal(8),
        moments=layer.moments_of(x),
        norm_weight=normal(36),
        norm_bias=normal(36, seed=1),
        eps=1e-5,
    )


BACKWARD = (
    "grad",
    "weight",
    "y",
    "y_moments",
    "y_norm_weight",
    "y_sums",
    "x",
    "x_moments",
    "x_norm_weight",
    "x_norm_bias",
)


@entry("ops.layer_backward", free=BACKWARD)
def _():
    y, x, grad = normal(4, 36), normal(4, 8, seed=1), normal(4, 36, seed=2)
    return ops.layer_backward, dict(
        grad=grad,
        weight=normal(36, 8),
        y=y,
        y_moments=layer.moments_of(y),
        y_norm_weight=normal(36),
        y_sums=layer.sums_of(grad, y, normal(36)),
        y_eps=1e-5,
        x=x,
        x_moments=layer.moments_of(x),
        x_norm_weight=normal(8),
        x_norm_bias=normal(8, seed=1),
        x_eps=1e-5,
    )


@entry("ops.is_compiled")
def _():
    return ops.is_compiled, dict(device=torch.device("cpu"))


# ---- attacks ----


def classifier(x: torch.Tensor) -> torch.Tensor:
    """[n, 6] -> [n, 3]; what does not fit a model is the model's own affair, so this one names it."""
    if x.shape[1:] != (6,) or x.dtype != torch.float32:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; this model expects float32 [n, 6]")
    return x @ normal(6, 3, seed=9)


def images() -> dict[str, Any]:
    return dict(
        model=classifier, x=normal(4, 6).sigmoid(), labels=torch.tensor([0, 1, 2, 1]), bounds=(0.0, 1.0)
    )


ATTACKED = dict(
    also=dict(bounds=((0, 1, 2), (1, 0), (0, "1"), "01"), eps=(["0.1"], [0.1, -1], [[0.1], [0.2]], [True])),
    without=dict(model=CALLABLES, attack=CALLABLES, logits=CALLABLES),
)


@entry("attacks.fgsm", **ATTACKED)
def _():
    return attacks.fgsm, images() | dict(eps=0.1, targeted=True, logits=None)


@entry("attacks.pgd", **ATTACKED)
def _():
    options = dict(eps=[0.1, 0.2], norm="linf", n_steps=2, step_size=None, random_start=True, n_restarts=2)
    return attacks.pgd, images() | options | dict(targeted=False, generator=torch.Generator())


@entry("attacks.pgd, l2", **ATTACKED)
def _():
    options = dict(eps=torch.tensor([0.1, 0.2]), norm="l2", n_steps=2, step_size=0.1, generator=None)
    return attacks.pgd, images() | options | dict(loss="dlr", logits=None)


@entry("attacks.apgd", **ATTACKED)
def _():
    options = dict(eps=[0.1, 0.2], norm="l2", loss="cw", n_steps=2, random_start=True, n_restarts=2)
    return attacks.apgd, images() | options | dict(targeted=False, generator=torch.Generator(), logits=None)


@entry("attacks.robustness", **ATTACKED)
def _():
    return attacks.robustness, images() | dict(eps=[0.0, 0.1], attack=attacks.fgsm, batch_size=3, logits=None)


# ---- one step, and samplers ----


def bowl(z: torch.Tensor) -> torch.Tensor:
    """[C, n, nz] -> [C, n]."""
    return 0.5 * z.square().sum(-1)


def whole_bowl(phi: torch.Tensor) -> torch.Tensor:
    """[C, ...] -> [C]."""
    return 0.5 * phi.square().flatten(1).sum(1)


STEPPED = dict(
    without=dict(potential=CALLABLES, energy=CALLABLES),
    says=dict(
        phi=("generator", "energy"),
        n_chains=("step_size", "phi", "potential", "noise", "uniform"),
        state=("phi", "generator", "noise", "energy", "grad", "potential", "rng", "step_size"),
    ),
)


@entry("ald_init", **STEPPED)
def _():
    own = dict(step_size=torch.full((C,), 0.1), mh=True, n_chains=C, generator=torch.Generator())
    return lae_fast.ald_init, dict(potential=whole_bowl, phi=normal(C, 2, 3)) | own


@entry("ald_step", **STEPPED, free=("noise", "step_size"))
def _():
    own = dict(step_size=0.1, mh=True, n_chains=C, generator=torch.Generator())
    drawn = dict(noise=normal(C, 2, 3, seed=1), uniform=torch.full((C,), 0.5, dtype=F64))
    return lae_fast.ald_step, dict(potential=whole_bowl, state=normal(C, 2, 3)) | own | drawn


@entry("ald_step, a state", **STEPPED, free=("noise", "step_size", "state"))
def _():
    state = lae_fast.ald_init(whole_bowl, normal(C, 2, 3), 0.1, n_chains=C)
    own = dict(step_size=None, mh=False, n_chains=None, generator=None, noise=None, uniform=None)
    return lae_fast.ald_step, dict(potential=whole_bowl, state=state) | own


@entry("adapt_step_size", free=("state", "info"))
def _():
    state, info = lae_fast.ald_step(whole_bowl, normal(C, 2, 3), 0.1, n_chains=C)
    return lae_fast.adapt_step_size, dict(state=state, info=info, rate=0.05, target=0.6)


def plan() -> dict[str, Any]:
    return dict(
        n_draws=2,
        n_warmup=2,
        thin=1,
        step_size=None,
        initial_step_size=1e-2,
        mh=True,
        target_acceptance=0.6,
        share_step_size=False,
        chains=range(1, 2),
        generator=torch.Generator(),
        progress=False,
        capture=False,
        compile=None,
    )


LONG = dict.fromkeys(
    ("n_draws", "n_warmup", "thin", "n_chains", "nz"), (2**31, 2**63)
)  # right, and too long to wait for


def drawn(sampler: Callable) -> Callable:
    def draw(**arguments: Any) -> list[Any]:
        samples = sampler(**arguments)
        return [samples.z, samples.potential, samples.acceptance_rate, samples.step_size]

    return draw


@entry("ald_sample", without=LONG | STEPPED["without"])
def _():
    own = dict(phi=None, nz=2, n_chains=2, whiten=True, batch_size=None, value_and_grad=None)
    return drawn(lae_fast.ald_sample), dict(energy=bowl, features=normal(3, 4)) | own | plan()


@entry("ald_sample, given phi", without=LONG | STEPPED["without"], says=dict(phi=("energy",)))
def _():
    own = dict(phi=normal(2, 2, 4), nz=None, n_chains=None, whiten=False, batch_size=2)
    given = dict(mh=False, step_size=0.1)
    return drawn(lae_fast.ald_sample), dict(energy=batch_bowl, features=normal(3, 4)) | own | plan() | given


def batch_bowl(z: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    return bowl(z)


@entry("langevin_sample", without=LONG | STEPPED["without"] | dict(compile=(True,)), says=dict(z=("energy",)))
def _():
    return drawn(lae_fast.langevin_sample), dict(energy=bowl, z=normal(2, 3, 2)) | plan()


@entry(
    "langevin_sample, a gradient given",
    without=LONG | STEPPED["without"] | dict(value_and_grad=CALLABLES, compile=(True,)),
    says=dict(z=("energy",)),
)
def _():
    own = dict(energy=bowl, z=normal(2, 3, 2), value_and_grad=lambda z: (bowl(z), z))
    return drawn(lae_fast.langevin_sample), own | plan()


# ---- models ----

KINDS = {"LAE": lae_fast.LAE, "VAE": lae_fast.VAE, "Hoffman": lae_fast.Hoffman}


def parts() -> dict[str, Any]:
    encoder, decoder = torch.nn.Linear(6, 5), torch.nn.Linear(2, 6)
    return dict(encoder=encoder, decoder=decoder, likelihood=lae_fast.Bernoulli(), nx=6, nz=2, d=5)


def model(kind: str = "LAE", **options: Any) -> Any:
    torch.manual_seed(0)
    return KINDS[kind](**parts(), **options)


def unit(*shape: int) -> torch.Tensor:
    return normal(*shape).sigmoid()


SIZES = dict.fromkeys(("nx", "nz", "d"), (2**31, 2**63))  # for the memory


def constructed(cls: type) -> Callable:
    def construct(**arguments: Any) -> list[Any]:
        return [*cls(**arguments).state_dict().values()][:1]

    return construct


@entry("LAE", without=SIZES)
def _():
    own = dict(
        decisions="joint",
        decoder_window=None,
        feature_window="after",
        spread=True,
        memory=3,
        ridge=0.1,
        whiten=True,
        n_steps=2,
        mh=True,
        step_size=0.1,
        adaptation_rate=0.1,
        chain_precision="float32",
        precision="float32",
    )
    return constructed(lae_fast.LAE), parts() | own


@entry("VAE", without=SIZES)
def _():
    return constructed(lae_fast.VAE), parts() | dict(precision="bf16")


@entry("Hoffman", without=SIZES)
def _():
    return constructed(lae_fast.Hoffman), parts() | dict(gradient="last", start="prior", n_steps=1, mh=False)


@entry("Gaussian")
def _():
    return constructed(lae_fast.Gaussian), dict(scale=0.5)


@entry("DiscretizedLogistic")
def _():
    return constructed(lae_fast.DiscretizedLogistic), dict(scale=0.5)


def method(name: str, kind: str, **arguments: Any) -> Callable:
    return lambda: (lambda **given: getattr(model(kind), name)(**given), dict(arguments))


for _kind in KINDS:
    entry(f"{_kind}.loss", says=dict(x=("images",)))(method("loss", _kind, x=unit(4, 6)))
entry("sample")(method("sample", "LAE", n=3, generator=torch.Generator()))
entry("simulate", without=dict(n=(2**31,)))(method("simulate", "VAE", n=3, generator=torch.Generator()))
CALLS["sample"] = CALLS["sample"]._replace(without=dict(n=(2**31,)))


# ---- evaluation and augmentation ----

ASKED = dict(without=dict.fromkeys(("n_draws", "n_temperatures", "n_chains", "n_pilot", "n"), (2**31, 2**63)))


@entry("evaluate", **ASKED)
def _():
    return lae_fast.evaluate, dict(model=model(), images=unit(4, 6), n_draws=2, seed=0, batch_size=3)


@entry("importance_bound", **ASKED)
def _():
    return lae_fast.importance_bound, dict(
        model=model(), images=unit(4, 6), n_draws=2, seed=0, rows=3, share=None
    )


@entry("fit_posterior_scale", **ASKED)
def _():
    arguments = dict(model=model(decisions="joint"), images=unit(4, 6), seed=0, n_images=3)
    return lae_fast.fit_posterior_scale, arguments


@entry("quadrature", **ASKED)
def _():
    return lae_fast.quadrature, dict(model=model(), images=unit(4, 6), half_width=4.0, n_cells=8)


@entry("fit_schedule", **ASKED)
def _():
    own = dict(base="prior", n_temperatures=3, n_chains=2, seed=5, n_pilot=2, capture=None)
    return lae_fast.fit_schedule, dict(model=model(), images=unit(4, 6)) | own


@entry("annealed_log_likelihood", **ASKED, free=("exact",), says=dict(images=("exact",)))
def _():
    made = model()
    schedule = lae_fast.fit_schedule(made, unit(4, 6), n_temperatures=3, n_chains=2, n_pilot=2)
    own = dict(n_chains=2, seed=5, exact=normal(4, 2), progress=False, capture=None)
    return lae_fast.annealed_log_likelihood, dict(model=made, images=unit(4, 6), schedule=schedule) | own


@entry("augment", **ASKED, says=dict(x=("images", "labels")))
def _():
    own = dict(n=2, source="isotropic", scale=0.1, n_steps=None, step_size=None, generator=None)
    return lae_fast.augment, dict(model=model(), x=unit(4, 6), labels=torch.arange(4)) | own


@entry(
    "diagnose_variations",
    without=ASKED["without"] | dict(classifier=CALLABLES),
    says=dict(x=("images", "labels")),
)
def _():
    own = dict(
        n=2, classifier=None, source="isotropic", scale=0.1, n_steps=None, step_size=None, generator=None
    )
    return lae_fast.diagnose_variations, dict(model=model(), x=unit(4, 6), labels=torch.arange(4) % 2) | own


@entry(
    "augment, chain",
    without=ASKED["without"] | dict(n_steps=(2**31, 2**63)),
    says=dict(x=("images", "labels")),
)
def _():
    own = dict(n=2, source="chain", n_steps=2, step_size=0.1, generator=torch.Generator())
    return lae_fast.augment, dict(model=model(), x=unit(4, 6), labels=torch.arange(4)) | own


@entry(
    "fit_classes", says=dict(z=("codes", "unlabelled", "labels"), labels=("codes",), unlabelled=("codes",))
)
def _():
    own = dict(labels=torch.arange(6) % 2, unlabelled=normal(5, 2))
    return lae_fast.fit_classes, dict(z=normal(6, 2)) | own


@entry("data.binarize", says=dict(images=("generator",)))
def _():
    return data.binarize, dict(
        images=torch.arange(24, dtype=torch.uint8).view(4, 6), generator=torch.Generator()
    )


@entry("data.shuffled", without=dict(n=(2**31,)))
def _():
    return lambda **given: list(data.shuffled(**given)), dict(n=7, size=3, seed=2, device="cpu")


@entry("TrainingStep", says=dict(x=("images",)))
def _():
    def step(model: Any, lr: float, x: torch.Tensor) -> torch.Tensor:
        return TrainingStep(model, adam(model, lr))(x)

    return step, dict(model=model(), lr=1e-3, x=unit(4, 6))


@entry("training.SideBySide", says=dict(x=("images", "minibatches"), capture=("images",)))
def _():
    def step(model: Any, capture: bool, x: torch.Tensor) -> torch.Tensor:
        alone = TrainingStep(model, adam(model, 1e-3), capture=False)
        return SideBySide([alone], capture=capture)(x)

    return step, dict(model=model(), capture=False, x=unit(1, 4, 6))


@entry("training.OwnNumbers")
def _():
    def draw(**given: Any) -> torch.Tensor:
        with OwnNumbers(**given)():
            return torch.rand(2)

    return draw, dict(seed=3, device="cpu")


@entry(
    "fit",
    says=dict(images=("image ", "batch_size"), model=("images",)),
    without=dict(epochs=(2**31, 2**63), on_epoch=CALLABLES),
)
def _():
    own = dict(epochs=1, batch_size=2, lr=1e-3, cooldown=0.2, seed=0, progress=False, on_epoch=None)
    return lae_fast.fit, dict(model=model(), images=unit(4, 6)) | own


# ---- by name, and from files ----


HERE = Path("the folder in which a model has been saved")


@entry("load", says=dict(likelihood=("parts",)), without=dict(path=(".", "")))
def _():
    own = dict(encoder=torch.nn.Linear(6, 5), decoder=torch.nn.Linear(2, 6), likelihood=None)

    def saved(path: Any, **parts: Any) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            model().save(folder)
            try:
                return lae_fast.load(folder if path is HERE else path, **parts).phi
            except CheckpointError as error:
                raise ValueError(f"path, encoder or decoder: {error}") from error

    return saved, dict(path=HERE) | own


@entry("view.write", says=dict(model=("test", "images"), test=("images",)))
def _():
    def written(**given: Any) -> int:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return view.write(folder, **given).stat().st_size
            except CheckpointError as error:
                raise ValueError(f"table: {error}") from error

    return written, dict(model=model(), test=unit(4, 6), table=None, classes=None)


@entry("models.Architecture", without=dict.fromkeys(("nx", "nz", "nh", "depth"), (2**31, 2**63)))
def _():
    own = dict(model="lae", network="mlp", likelihood="gaussian", nx=6, nz=2, nh=5, depth=1)
    return lambda **given: models.build(models.Architecture(**given)).phi, own


@entry("models.build")
def _():
    architecture = models.Architecture(nx=6, nz=2, nh=5, depth=1)
    return lambda **given: models.build(**given).phi, dict(architecture=architecture, n_steps=3, ridge=0.1)


@entry(
    "data.from_images",
    says=dict(
        images=("image ",),
        test=("image", "labels"),  # one of them is of another number
        test_labels=("labels", "whole numbers"),
    ),
)
def _():
    own = dict(
        validation=3,
        binarization="fixed",
        labels=torch.arange(30),
        test=unit(4, 3, 2),
        test_labels=torch.arange(4),
    )
    return data.from_images, dict(images=unit(30, 3, 2)) | own


@entry("data.pixels", free=("images",))
def _():
    return data.pixels, dict(images=unit(4, 6))


@entry("data.load", says=dict(root=("path",)))
def _():
    return data.load, dict(name="digits", root="nowhere", validation=3, binarization="fixed")
