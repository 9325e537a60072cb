"""The Langevin autoencoder (Taniguchi et al., 2022, Algorithm 2), and its chain with a decision for each datapoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lae_fast import checks
from lae_fast.beside import Beside
from lae_fast.models.autoencoder import add_gradient, check_whole, images_for, like_of
from lae_fast.models.coordinates import DatapointCoordinates, JointCoordinates, Memory
from lae_fast.models.decoder_pass import DecoderPass, decoder_pass, is_dense
from lae_fast.models.known_gradients import KnownGradients
from lae_fast.models.likelihood import Likelihood
from lae_fast.models.precision import Precision, chain_context, products_in
from lae_fast.models.with_chain import AutoencoderWithChain
from lae_fast.ops.torch_private import has_hooks, on_each
from lae_fast.sampling.chains import Chains

Window = Literal["after", "before", "first", "last"]


class LAE(AutoencoderWithChain):
    """An encoder z = phi g(x) whose last layer phi learns from Langevin chains instead of an optimizer.

    In train mode every call of `loss` runs `n_steps` steps of chains with the minibatch's potentials U(x_i, z_i), and returns
    their average over `decoder_window`: by default U after the last step. In eval mode no chain runs, and `loss` is the
    negative ELBO. The optimizer moves decoder, likelihood and features, never phi [nz, d], which is a buffer, part of the
    `state_dict`. There are two kinds of decisions:

    - "datapoint", the default: n chains move the codes z_i, each with its own decisions, so that every kernel leaves its
      p(z_i|x_i) invariant, whatever d and n are, as in `langevin_sample`. After T steps the codes are written back into phi by
      least squares: rank, memory and ridge decide how well phi remembers them, not what the chains target.
    - "joint": Algorithm 2 to the letter. One chain moves phi itself, its target is exp(-V(phi)),
      V(phi) = sum_i U(x_i, phi g(x_i)), and one decision accepts or rejects all codes. If the features of the minibatch
      have rank n (so d >= n), the codes then follow the product of the posteriors p(z_i|x_i); otherwise they cannot.

    Both have the same law where the features have rank n; but joint steps are shorter, as all of n nz elements share one
    decision. For one datapoint and one feature they are the same chain. Between two visits of an image phi moves on, and
    its chain starts anew. After T steps z has exactly the law p(z|x) only if it had it before. Otherwise T steps bring it closer.

    q(z|x) for evaluation is N(phi g(x), diag(s^2)). With `spread` log s is affine in the features, and the optimizer trains it
    by the negative ELBO at the start of the chains; else s [nz] is the same for all images, 0.05 until `fit_posterior_scale`.

    Args (beyond those of `AutoencoderWithChain`):
        decisions: "datapoint" or "joint".
        decoder_window: the states that decoder and likelihood learn from, on average: "after" takes the state after each
            step, t = 1..T, as published; "before" the state before each step, t = 0..T-1; "first" t = 0; "last" t = T.
            None: "last" for datapoint decisions, "after" for joint ones.
        feature_window: the same for the features. None: "first" for datapoint decisions, as z_0 is what the encoder itself
            predicted; "after" for joint ones.
        spread: start the chains at draws of q(z|x) and move z in units of s(x); else start at the codes, and move z itself
            (datapoint decisions).
        memory: minibatches over which phi averages the codes that are written back (datapoint decisions), and `whiten` the
            features' second moments.
        ridge: added to the features' mean second moments, in units of their mean diagonal, in the write-back and in `whiten`.
            Where there are fewer images than features, a ridge near 0 lets `whiten` move phi far.
        whiten: move phi L instead of phi, where L L^T is a running average of H^T H / n plus the ridge: all directions then
            mix equally fast. L is fixed during the T steps of a minibatch (joint decisions).
        step_size: as in the base class. Joint decisions: per example, as in the published code, eta = step_size / n for a
            batch of n; with `whiten` a step size of phi L. Datapoint decisions: of z, with `spread` of z / s.

    Raises:
        ValueError: as for `AutoencoderWithChain`; decisions or a window are unknown, memory < 1, ridge is negative, or whiten
            is asked for beside datapoint decisions.

    Example:
        >>> from torch import nn
        >>> encoder = nn.Sequential(nn.Linear(784, 64), nn.ReLU())  # images -> features g(x)
        >>> model = lae_fast.LAE(encoder, nn.Linear(8, 784), lae_fast.Bernoulli(), nx=784, nz=8)
        >>> model.loss(torch.rand(16, 784).round()).backward()  # the chains of 16 images move, and phi with them
        >>> model.phi.shape, model.phi.requires_grad  # no optimizer trains phi
        (torch.Size([8, 64]), False)
        >>> model.sample(4).shape  # mean images of z drawn from the prior
        torch.Size([4, 784])
    """

    name: ClassVar[str | None] = "lae"
    kinds = ("datapoint", "joint")
    windows: ClassVar[
        dict[Window, Callable[[int, int], bool]]
    ] = {  # name -> whether it holds the state after t of T steps
        "after": lambda t, n_steps: t > 0,
        "before": lambda t, n_steps: t < n_steps,
        "first": lambda t, n_steps: t == 0,
        "last": lambda t, n_steps: t == n_steps,
    }

    decoder_window: Window
    feature_window: Window
    phi: Tensor  # [nz, d]
    posterior_scale: Tensor  # s [nz], without `spread`
    log_std: nn.Linear  # features -> log s, with `spread`
    gram: Tensor  # [d, d], and
    n_batches: Tensor  # int64 []: with a memory

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        nx: int | None = None,
        nz: int,
        d: int | None = None,
        shape: Sequence[int] | None = None,
        decisions: Literal["datapoint", "joint"] = "datapoint",
        decoder_window: Window | None = None,
        feature_window: Window | None = None,
        spread: bool = True,
        memory: int = 100,
        ridge: float = 0.04,
        whiten: bool = False,
        n_steps: int = 2,
        mh: bool = True,
        step_size: float | None = None,
        adaptation_rate: float = 0.05,
        chain_precision: Precision | None = None,
        precision: Precision = "float32",
    ) -> None:
        checks.choice("decisions", decisions, self.kinds)
        self.decisions, self.is_joint = decisions, decisions == "joint"
        self.spread = checks.flag("spread", spread) and not self.is_joint
        super().__init__(
            encoder,
            decoder,
            likelihood,
            nx=nx,
            nz=nz,
            d=d,
            shape=shape,
            n_steps=n_steps,
            mh=mh,
            step_size=step_size,
            adaptation_rate=adaptation_rate,
            chain_precision=chain_precision,
            precision=precision,
        )
        own = {"decoder_window": "last", "feature_window": "first"}
        for name, window in (("decoder_window", decoder_window), ("feature_window", feature_window)):
            if window is None:
                window = "after" if self.is_joint else own[name]
            setattr(self, name, checks.choice(name, window, self.windows))
        if checks.flag("whiten", whiten) and not self.is_joint:
            raise ValueError(
                "whiten is True with datapoint decisions, which do not move phi; expected joint ones"
            )
        self.whiten, self.memory = whiten, checks.count("memory", memory)
        self.ridge = checks.number("ridge", ridge, least=0)
        self.register_buffer("phi", nn.init.orthogonal_(torch.empty(self.nz, self.d)).to(like_of(self)))
        if self.spread:
            self.log_std = nn.utils.skip_init(nn.Linear, self.d, self.nz, device=self.phi.device).to(self.phi)
            self.set_constant_std(0.05)
        else:
            self.register_buffer("posterior_scale", self.phi.new_full((self.nz,), 0.05))
        if whiten or not self.is_joint:
            # H^T H / n, averaged over minibatches
            self.register_buffer("gram", self.phi.new_zeros(self.d, self.d))
            self.register_buffer("n_batches", self.phi.new_zeros((), dtype=torch.int64))

    @property
    def first_step_size(self) -> float:
        return 1e-4 if self.is_joint else 0.5 if self.spread else 1e-2

    @property
    def unadjusted_step_size(self) -> float:
        return 0.1 if self.spread else 1e-3

    @property
    def beta1(self) -> float:
        """Adam's momentum, 0.5 for features that learn from V after each step, as the chain undoes part of what it remembers."""
        return 0.5 if self.feature_window == "after" else 0.9

    @property
    def lr(self) -> float:
        """Adam's learning rate that did best on validation images, 2e-3 with datapoint decisions and 1e-3 with joint ones."""
        return 1e-3 if self.is_joint else 2e-3

    def chain_state(self) -> dict[str, Tensor]:
        own = ("gram", "n_batches") if hasattr(self, "gram") else ()
        return super().chain_state() | {name: getattr(self, name).clone() for name in own}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = images_for(self, x)
        h = self.features(x)
        mean = h @ self.phi.T
        std = self.log_std(h).exp() if self.spread else self.posterior_scale.to(mean.dtype).expand_as(mean)
        return mean.to(x.dtype), std.to(x.dtype)  # also under autocast, as `output` expects

    @torch.no_grad()
    def set_constant_std(self, s: float | Tensor) -> None:
        """Make s of q(z|x) = N(phi g(x), diag(s^2)) the same for all images: a number or [nz].

        Raises:
            TypeError, ValueError: s is not positive and finite, or of another shape.
        """
        if not isinstance(s, Tensor):
            s = torch.tensor(checks.number("s", s, above=0), device=self.phi.device)
        if s.shape not in ((), (self.nz,)) or not (s.is_meta or ((s > 0) & s.isfinite()).all()):
            raise ValueError(f"s is {s.tolist()}; expected positive finite numbers, [] or [{self.nz}]")
        if self.spread:
            self.log_std.weight.zero_()
            self.log_std.bias.copy_(s.log())
        else:
            self.posterior_scale.copy_(s)

    def training_loss(self, x: Tensor) -> Tensor:
        """U [] of images x [n, nx], averaged over images and the decoder's window: nats per image. Advances the chain by T
        steps.

        U is evaluated T + 1 times for each image. The gradients of every state are *selected*, so that a rejected evaluation
        leaves no trace, not even a NaN; with an `MLP` as decoder, weight gradients are computed for states, not for
        proposals.

        Raises:
            ValueError: with `mh`, the potential is not a function (a decoder with Dropout); with datapoint decisions, also without
                `mh`, an image's potential depends on other images (BatchNorm in train mode); the decoder or the likelihood uses a
                trained tensor that is no parameter of theirs; or the decoder is sharded by itself.
        """
        value, inputs, known, kept = self._run(x)
        kept()
        return KnownGradients.apply(value, 1 / len(x), *inputs, *known)

    def add_gradients(self, x: Tensor) -> Tensor:
        if not self.training or not self._is_known():
            return super().add_gradients(x)
        x = self._constant_images(x)
        value, inputs, known, kept = self._run(x)
        with torch.no_grad():
            value, known = value * (1 / len(x)), _scaled(known, 1 / len(x))
        pairs = [(t, g) for t, g in zip(inputs, known, strict=True) if t.requires_grad]
        of_encoder = [(t, g) for t, g in pairs if not t.is_leaf]
        try:
            if of_encoder:
                torch.autograd.backward(*zip(*of_encoder, strict=True))
        finally:
            kept()
        for p, g in pairs:
            if p.is_leaf:
                add_gradient(p, g)  # the encoder may share it
        return value

    def _is_known(self) -> bool:
        """Whether `_run` tells all gradients of `loss`, and nobody waits for autograd to find those of the decoder."""
        own = all(
            getattr(type(self), name) is function and name not in vars(self)
            for name, function in _LOSSES.items()
        )
        parts = (self.decoder, self.likelihood)
        return (
            own
            and not torch.compiler.is_compiling()
            and not any(has_hooks(p) for part in parts for p in part.parameters())
        )

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], Beside]:
        """T steps of the chain for images x [n, nx]: the sum of U over the minibatch [], averaged over the decoder's window; what it
        is differentiated by, features [n, d], with `spread` log s [n, nz], and the decoder's parameters; its gradients; and
        what keeps the chain, to be asked for at the end."""
        if not torch.compiler.is_compiling():
            # Its gradients are those of states of the chain, and no backward pass through the module tells them.
            check_whole(self.decoder, WHOLE, "decoder")
            check_whole(self.likelihood, WHOLE, "likelihood")
        with products_in(self.precision, x.device):
            h = self.features(x)  # [n, d]
            log_std = self.log_std(h).to(x.dtype) if self.spread else None  # [n, nz]
        with torch.no_grad(), chain_context(self.mh, x.device):
            if (self.mh or not self.is_joint) and not is_dense(self, x):
                self._check_function(x, h.detach() @ self.phi.T, by_row=not self.is_joint)
            decoder = decoder_pass(self, x.contiguous(), by_row=not self.is_joint)
            value, known, kept = self._run_chain(decoder, self.coordinates(h.detach(), log_std))
            if torch.compiler.is_compiling():
                # To a compiler what only the backward pass needs belongs there; phi will have moved on by then.
                value = value + sum(g.flatten()[:0].sum() for g in known)
        inputs = [h, *decoder.parameters] if log_std is None else [h, log_std, *decoder.parameters]
        return value, inputs, known, kept

    def convert(self, weights: dict[str, Tensor], prefix: str) -> None:
        s = weights.get(f"{prefix}posterior_scale")  # one number for all, or one for each dimension
        is_another = self.spread or hasattr(self, "gram") != (f"{prefix}gram" in weights)
        if s is not None and is_another:  # kind of chain, whose steps have other units
            for name in self.chain_state():
                weights.pop(prefix + name, None)
        if s is not None and self.spread:
            del weights[f"{prefix}posterior_scale"]
            weights[f"{prefix}log_std.weight"] = torch.zeros_like(self.log_std.weight)
            weights[f"{prefix}log_std.bias"] = s.expand(self.nz).log()
        elif s is not None:
            weights[f"{prefix}posterior_scale"] = s.expand(self.nz)
        if not hasattr(self, "gram"):
            for name in ("gram", "n_batches"):
                weights.pop(prefix + name, None)
        super().convert(weights, prefix)

    def coordinates(self, h: Tensor, log_std: Tensor | None) -> JointCoordinates | DatapointCoordinates:
        """What the chain moves for a minibatch of features h [n, d] and, with `spread`, log s [n, nz]; changes nothing."""
        memory = None
        if hasattr(self, "gram"):
            memory = Memory(self.gram, h, self.n_batches, self.memory, self.ridge, self._sharing)
        if self.is_joint:
            n = len(h) * (1 if self._sharing is None else self._sharing.size)
            return JointCoordinates(self.phi, h, memory, n)
        return DatapointCoordinates(self.phi, h, memory, None if log_std is None else log_std.exp())

    def _states(self, window: Window) -> list[int]:
        """The numbers of steps after which a state counts for a window."""
        return [t for t in range(self.n_steps + 1) if self.windows[window](t, self.n_steps)]

    def _run_chain(
        self, decoder: DecoderPass, coordinates: JointCoordinates | DatapointCoordinates
    ) -> tuple[Tensor, list[Tensor], Beside]:
        """T steps of the chain. The sum of V over the minibatch [], averaged over the decoder's window; averages of its
        gradients with respect to the features [n, d], with `spread` log s [n, nz], and the decoder's parameters; and what
        keeps phi and the rest of the chain for the next minibatch, which a GPU does beside what follows."""
        if coordinates.memory is not None:
            coordinates.memory.begin()
        # One chain of all processes; with datapoint decisions they have some chains each.
        share_chain = self._sharing if self.is_joint else None

        def evaluate(rows: Tensor) -> tuple[Tensor, Tensor]:
            potential, z_grad = decoder.evaluate(coordinates.z(rows))
            gradient = coordinates.gradient(z_grad)
            if share_chain is not None:
                total = share_chain.total(torch.cat((potential, gradient.flatten().double())))
                potential, gradient = total[:1], total[1:].view_as(gradient).to(gradient.dtype)
            return potential, gradient

        chain = Chains(
            evaluate,
            coordinates.start(1, self._normals),
            self.log_step_size - coordinates.log_n if self.is_joint else self.log_step_size,
            self.rng,
            mh=self.mh,
            adaptation=self.adaptation,
            share=None if self.is_joint else self._sharing,
            copies=False,
        )
        decoder.start()
        value = torch.zeros_like(chain.potential)
        # The derivative by log s of the negative ELBO: s u dU/dz at the start, and -1 of the entropy.
        spread = [chain.phi * chain.grad - 1] if self.spread else []
        learns, shapes = self._states(self.decoder_window), self._states(self.feature_window)
        for t in range(self.n_steps + 1):
            if t > 0:
                chain.step()
                decoder.decide(chain.is_accepted)
            if t in learns:
                decoder.add_weight_gradients()
                value += chain.potential
            if t in shapes:
                coordinates.add_feature_gradient(decoder.z_grad, chain.phi)
        features = [*_means([coordinates.h_grad()], len(shapes)), *spread]  # before phi moves
        kept = Beside(lambda: self._end_chain(chain, coordinates), None if self._sharing else value.device)
        if share_chain is not None:  # to the mean over the processes
            value = value / share_chain.size
        (value,) = _means([value.sum()], len(learns))
        return value, features + _means(decoder.totals, len(learns)), kept

    def _end_chain(self, chain: Chains, coordinates: JointCoordinates | DatapointCoordinates) -> tuple[()]:
        """Keep where the chain has come to, for the next minibatch. Returns nothing."""
        self.phi.copy_(coordinates.finish(chain.phi))
        if coordinates.memory is not None:
            self.gram.copy_(coordinates.memory.gram)
            self.n_batches += 1
        self._keep(chain, coordinates.log_n)
        return ()


WHOLE = "fully_shard(model) without one of its decoder, and model(x) instead of model.loss(x)"

# Somebody may give the class, or a class of his own, others.
_LOSSES = {"loss": LAE.loss, "training_loss": LAE.training_loss}


def _means(sums: list[Tensor], n: int) -> list[Tensor]:
    """The means over n states, in the place of the sums."""
    if n > 1:
        on_each("div_", sums, n)
    return sums


def _scaled(tensors: list[Tensor], scale: float) -> list[Tensor]:
    """scale * t for each, in its place; where it is transposed in memory the result is contiguous, as most parameters are."""
    result = [t if t.is_contiguous() else t.new_empty(t.shape) for t in tensors]
    for t, out in zip(tensors, result, strict=True):
        if out is not t:
            torch.mul(t, scale, out=out)
    on_each("mul_", [t for t in tensors if t.is_contiguous()], scale)
    return result
