"""The interface that all models share: p(x, z) = N(z; 0, I) p(x|z), an encoder, and an approximate posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lae_fast import ops
from lae_fast.models.likelihood import negative_log_prior
from lae_fast.models.precision import check_precision


def check_images(x: Tensor, nx: int, *, in_range: bool = True) -> None:
    """Raise a ValueError unless x holds images as the models take them: floating point [n, nx] in [0, 1].

    The values are checked on the CPU only, where the check needs no synchronisation. `in_range=False` leaves this check
    out, for images that a model has simulated: a Gaussian likelihood simulates images that leave [0, 1].
    """
    if x.dim() != 2 or x.shape[0] < 1 or x.shape[1] != nx or not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"images are {kind} {list(x.shape)}; expected floating point [n, {nx}] with n >= 1")
    can_look = in_range and x.device.type == "cpu" and not torch.compiler.is_compiling()
    if can_look and not ops.in_unit_range(x.detach().float().contiguous()):  # a NaN fails too
        low, high = (v.item() for v in x.detach().aminmax())
        raise ValueError(f"images have values from {low:g} to {high:g}; expected all in [0, 1]")


class Autoencoder(nn.Module):
    """Base of `LAE`, `VAE` and `Hoffman`. Keyword arguments are a model's options, see registry.py.

    Attributes:
        beta1, lr: Adam's momentum and learning rate that suit this model.

    Args:
        encoder: images [n, nx] -> features [n, d].
        decoder: latent variables [n, nz] -> the likelihood's input [n, nx].
        likelihood: one of `lae_fast.models.likelihood`.
        nx: pixels of an image.
        nz: latent dimensions.
        d: features.
        precision: the precision of matrix products in training, as far as the model allows it (precision.py).

    Raises:
        ValueError: nx, nz or d is not positive, or the precision is unknown.
    """

    beta1, lr = 0.9, 1e-3

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        nx: int,
        nz: int,
        d: int,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        for name, value in (("nx", nx), ("nz", nz), ("d", d)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected a positive number")
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.nx, self.nz, self.d = nx, nz, d
        check_precision("precision", precision)
        self.precision = precision

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [n, nz], of the Gaussian q(z|x) for evaluation, at images x [n, nx]."""
        raise NotImplementedError

    def loss(self, x: Tensor) -> Tensor:
        """The training loss [] of images x [n, nx], nats per image; call `backward` on it.

        Raises:
            ValueError: images have another form.
        """
        raise NotImplementedError

    def chain_state(self) -> dict[str, Tensor]:
        """The tensors that a chain needs, besides the `state_dict`, to continue exactly; {} without a chain."""
        return {}

    def load_chain_state(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors that `chain_state` returned.

        Raises:
            KeyError: names are missing, or belong to another chain.
        """
        own = self.chain_state()
        if state.keys() != own.keys():
            raise KeyError(f"the chain's state holds {sorted(state)}; expected {sorted(own)}")
        for name, value in state.items():
            getattr(self, name).copy_(value)

    def potential(self, x: Tensor, z: Tensor) -> Tensor:
        """U(x, z) = -log p(x|z) - log p(z) of images [n, nx] and z [..., n, nz]: float64 [..., n], nats per image."""
        return self.reconstruction(x, z) + negative_log_prior(z)

    def reconstruction(self, x: Tensor, z: Tensor) -> Tensor:
        """-log p(x|z) of images [n, nx] and z [..., n, nz]: float64 [..., n], nats per image."""
        output = self.decoder(z.flatten(0, -2)).view(*z.shape[:-1], -1)
        return self.likelihood.energy(output, x)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x) for each image: [n, nx] -> [n, nz]."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of each latent variable: [n, nz] -> [n, nx]."""
        return self.likelihood.mean(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The mean image of each image's code: [n, nx] -> [n, nx]."""
        return self.decode(self.encode(x))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n mean images [n, nx] of latent variables drawn from the prior."""
        like = next(self.parameters())
        z = torch.randn(n, self.nz, generator=generator, device=like.device, dtype=like.dtype)
        return self.decode(z)

    @torch.no_grad()
    def simulate(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n draws of the joint p(x, z): images [n, nx], and z [n, nz], which is an exact draw of p(z|x)."""
        like = next(self.parameters())
        z = torch.randn(n, self.nz, generator=generator, device=like.device, dtype=like.dtype)
        return self.likelihood.sample(self.decoder(z), generator), z

    def interpolate(self, start: Tensor, end: Tensor, n_steps: int) -> Tensor:
        """Decoded straight lines between the codes of two image batches: 2 x [n, nx] -> [n, n_steps, nx]."""
        a, b = self.encode(start)[:, None], self.encode(end)[:, None]  # [n, 1, nz]
        t = torch.linspace(0, 1, n_steps, device=a.device, dtype=a.dtype)[:, None]  # [n_steps, 1]
        return self.decode((a + t * (b - a)).flatten(0, 1)).unflatten(0, (-1, n_steps))
