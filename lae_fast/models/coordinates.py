"""What the chain of a Langevin autoencoder moves during one minibatch: phi itself, or the codes of the minibatch.

Both kinds offer the same to the loop in lae.py:

    start(k, normals)           the rows [k C, D] where the chains of k such minibatches start; normals(like) draws noise
    z(rows)                     the codes [n, nz] at these rows
    many(rows, k)               the codes [k, n, nz] at the rows [k C, D] of k such minibatches
    gradient(z_grad)            the gradient [C, D] of V with respect to rows, from dV/dz [n, nz]
    add_feature_gradient(...)   for each state that the features learn from: dV/dz and rows there
    h_grad()                    the sum of the gradients of V with respect to the features over these states, [n, d]
    finish(rows)                phi [nz, d] after the last state
    log_n                       log eta of the rows is the model's log step size minus log_n

h [n, d] are the minibatch's features, phi [nz, d] is the encoder's last layer, h phi^T [n, nz] are its codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lae_fast.beside import Beside
from lae_fast.models import products
from lae_fast.sharing import Shared

Normals = Callable[[Tensor], Tensor]  # like -> standard normals of its shape, type and device


class _Renewed(NamedTuple):
    """What `Memory` makes of a new minibatch."""

    weight: Tensor  # [], of the new minibatch in the average
    gram: Tensor  # [d, d]
    root: Tensor  # [d, d]
    inverse: Tensor | None  # [d, d], of the root


class Memory:
    """A running average of the features' second moments over minibatches, and least squares by it.

    Args:
        gram: [d, d], the average so far.
        h: [n, d], the features of a new minibatch.
        n_batches: [], how many minibatches have been averaged so far.
        length: the first `length` minibatches count equally, then each new minibatch counts for 1 / length.
        ridge: what `root` adds to the diagonal of gram, in units of its mean; where the sum has no root, as with ridge 0 and fewer images
            than features, a little for its rounding.
        share: other processes hold the rest of the minibatch. What they add up are the normal equations, d (d + nz) numbers a
            process: fewer than h and moves, n (d + nz), where there are more images than features. None: h is all of it.

    Nothing is computed before `begin`, or before somebody asks.
    """

    def __init__(
        self,
        gram: Tensor,
        h: Tensor,
        n_batches: Tensor,
        length: int,
        ridge: float,
        share: Shared | None = None,
    ) -> None:
        self.before, self.h, self.n_batches, self.length, self.ridge = gram, h, n_batches, length, ridge
        self.share = share
        self._renewed: Beside[_Renewed] | None = None

    def begin(self) -> None:
        """Let a GPU do all but `step` beside what follows, as the chain: nobody needs it before that has ended. Until then the
        average so far and `n_batches` must stay as they are."""
        if self._renewed is None:
            # What processes add up together is not for a stream beside theirs.
            self._renewed = Beside(self._renew, self.h.device if self.share is None else None)

    def _results(self) -> _Renewed:
        self.begin()
        return self._renewed()

    def _renew(self) -> _Renewed:
        h = self.h
        weight = (1 / (1 + self.n_batches.double())).clamp(min=1 / self.length).to(h.dtype)
        gram = self.before.lerp(self._mean(h.T @ h / len(h)), weight)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        # cholesky_ex does not wait for the device
        mean = gram.diagonal().mean().clamp(min=1e-30)  # features that are all 0 leave phi where it is
        root, info = torch.linalg.cholesky_ex(gram + self.ridge * mean * eye)
        # The rounding of a gram, of any rank, does not exceed it.
        least = 10 * len(gram) * torch.finfo(gram.dtype).eps
        if self.ridge < least:
            root = torch.where(info == 0, root, torch.linalg.cholesky_ex(gram + least * mean * eye).L)
        # On a GPU solving for a few columns takes longer than many products with the inverse.
        inverse = torch.linalg.solve_triangular(root, eye, upper=False) if h.is_cuda else None
        return _Renewed(weight, gram, root, inverse)

    @property
    def gram(self) -> Tensor:
        """[d, d], the average of H^T H / n, the new minibatch included."""
        return self._results().gram

    @property
    def root(self) -> Tensor:
        """[d, d], lower triangular: root root^T = gram plus the ridge."""
        return self._results().root

    def _mean(self, of_these: Tensor) -> Tensor:
        """A mean over the images of the whole minibatch, from the mean over these ones."""
        return of_these if self.share is None else self.share.mean(of_these)

    def step(self, moves: Tensor) -> Tensor:
        """The change of phi [nz, d] that moves the codes h phi^T [n, nz] by about `moves`: recursive least squares.

        While all minibatches count equally, phi is the least-squares fit to the targets of all of them. With length 1, no
        ridge and features of rank n, the codes of this minibatch move by exactly `moves`.
        """
        weight, _, root, inverse = self._results()
        target = self._mean((self.h.T @ moves) * (weight / len(self.h)))  # [d, nz]
        if inverse is not None:
            return (inverse.T @ (inverse @ target)).T
        half = torch.linalg.solve_triangular(root, target, upper=False)
        return torch.linalg.solve_triangular(root.T, half, upper=True).T


class JointCoordinates:
    """phi, as one chain of nz d elements; or phi L, whose features are L^-1 h: the same codes in other coordinates.

    Args:
        memory: its root is L; None: phi itself.
        n: images of the whole minibatch.
    """

    def __init__(self, phi: Tensor, h: Tensor, memory: Memory | None, n: int) -> None:
        self.memory, self.log_n = memory, math.log(n)
        if memory is not None:  # phi h = (phi L) (L^-1 h)
            h = torch.linalg.solve_triangular(memory.root, h.T, upper=False).T.contiguous()
            phi = phi @ memory.root
        self.h, self.phi = h, phi
        self.total = torch.zeros_like(h)

    def start(self, k: int, normals: Normals) -> Tensor:
        return self.phi.reshape(1, -1).repeat(k, 1)

    def z(self, rows: Tensor) -> Tensor:
        return products.linear(self.h, rows.view_as(self.phi))

    def many(self, rows: Tensor, k: int) -> Tensor:
        return (rows.view(-1, self.h.shape[1]) @ self.h.T).view(k, -1, len(self.h)).mT

    def gradient(self, z_grad: Tensor) -> Tensor:
        return products.weight_gradient(z_grad, self.h).reshape(1, -1)

    def add_feature_gradient(self, z_grad: Tensor, rows: Tensor) -> None:
        self.total.addmm_(z_grad, rows.view_as(self.phi))

    def h_grad(self) -> Tensor:
        return self._unwhitened(self.total)

    def finish(self, rows: Tensor) -> Tensor:
        return self._unwhitened(rows.view_as(self.phi))

    def _unwhitened(self, t: Tensor) -> Tensor:
        if self.memory is None:
            return t
        return torch.linalg.solve_triangular(self.memory.root, t, upper=False, left=False)


class DatapointCoordinates:
    """The codes of the minibatch, as n chains of nz elements: u, where z = h phi^T + s u.

    Args:
        std: s, [n, nz]: the chains start at draws of N(h phi^T, s^2). None: they move z itself, and start at h phi^T.
    """

    log_n = 0.0

    def __init__(self, phi: Tensor, h: Tensor, memory: Memory, std: Tensor | None) -> None:
        self.phi, self.memory, self.std = phi, memory, std
        self.codes = products.linear(h, phi)
        self.total = torch.zeros_like(self.codes)

    def start(self, k: int, normals: Normals) -> Tensor:
        like = self.codes.repeat(k, 1)
        return like if self.std is None else normals(like)

    def z(self, rows: Tensor) -> Tensor:
        # A tensor of its own: the chains move `rows` in place, and the decoder's pass keeps z.
        return rows.clone() if self.std is None else torch.addcmul(self.codes, self.std, rows)

    def many(self, rows: Tensor, k: int) -> Tensor:
        return self.z(rows.view(k, *self.codes.shape))

    def gradient(self, z_grad: Tensor) -> Tensor:
        return z_grad if self.std is None else z_grad * self.std

    def add_feature_gradient(self, z_grad: Tensor, rows: Tensor) -> None:
        self.total += z_grad

    def h_grad(self) -> Tensor:
        return self.total @ self.phi

    def finish(self, rows: Tensor) -> Tensor:
        return self.phi + self.memory.step(self.z(rows) - self.codes)
