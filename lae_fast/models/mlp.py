"""`MLP`: a fully connected network that autograd sees as one piece. Its passes are those of whole_layers.py, where nothing stands
against them, or of layers_in_parts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lae_fast import checks, ops
from lae_fast.models import layers_in_parts, whole_layers
from lae_fast.models.layers_in_parts import Layer
from lae_fast.ops.once import differentiable_once
from lae_fast.ops.torch_private import backward_reaches, is_altered, is_transformed, own_parameters


class _MLPFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: MLP, dtype: torch.dtype | None, x: Tensor, *parameters: Tensor) -> Tensor:
        layers = net.layers(parameters, dtype)
        ctx.network = layers_in_parts if whole_layers.obstacle(x.device, layers) else whole_layers
        out, trace = ctx.network.forward(layers, x)
        ctx.net, ctx.dtype, ctx.sizes = net, dtype, [len(part) for part in (parameters, *trace)]
        ctx.save_for_backward(x, *parameters, *(t for part in trace for t in part))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        saved = iter(rest)
        parameters, *trace = ([next(saved) for _ in range(size)] for size in ctx.sizes)
        network, layers = ctx.network, ctx.net.layers(parameters, ctx.dtype)
        trace = network.Trace(*trace)
        with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
            x_grad, gradients = network.backward(
                layers, trace, grad.contiguous(), to_input=ctx.needs_input_grad[2]
            )
            parameter_grads = [None] * len(parameters)
            if any(backward_reaches(node) for node, _ in ctx.next_functions[1:]):
                parameter_grads = network.parameter_gradients(layers, trace, gradients)
        found = (x_grad, *parameter_grads)
        return None, None, *(differentiable_once(g, "lae_fast.MLP", grad, x, *parameters) for g in found)


class MLP(nn.Sequential):
    """Blocks of Linear, LayerNorm, ReLU, and perhaps a Linear at the end: an `nn.Sequential`, computed as one piece.

    float32 inputs take fused kernels and faster products, all other inputs PyTorch's own layers; the two paths agree to
    float32 rounding. Under `torch.autocast` both paths round products to autocast's dtype. The fast path has first
    derivatives only, and no batched derivatives; `is_fast = False` avoids it, and so do hooks on the layers inside,
    transforms of `torch.func`, forward-mode differentiation, and any later change of the layers.

    Raises:
        ValueError: the modules have another kind or order, a layer has no bias, or a norm is not affine.

    Example:
        >>> from torch import nn
        >>> net = lae_fast.MLP(nn.Linear(64, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 4))
        >>> x = torch.randn(5, 64)
        >>> fused = net(x)
        >>> net.is_fast = False  # PyTorch's own layers
        >>> torch.allclose(net(x), fused, atol=1e-5)
        True
    """

    is_fast = True

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        kinds = [type(m) for m in modules]
        block = [nn.Linear, nn.LayerNorm, nn.ReLU]
        whole = kinds[:-1] if len(kinds) % 3 == 1 else kinds
        if whole != block * (len(whole) // 3) or kinds[len(whole) :] not in ([], [nn.Linear]) or not whole:
            raise ValueError(
                f"MLP got {[k.__name__ for k in kinds]}; expected blocks of Linear, LayerNorm, ReLU, then "
                "nothing or a Linear"
            )
        if any(m.bias is None for m in modules if not isinstance(m, nn.ReLU)):
            raise ValueError("MLP got a layer without bias, or a norm that is not affine; expected both")
        sizes = [n for m in modules for n in _sizes(m)]
        for before, after in zip(sizes[1::2], sizes[2::2], strict=False):
            if before != after:
                raise ValueError(
                    f"MLP got a layer of {after} features after one of {before}; expected the same number"
                )
        self._kinds = kinds

    def layers(
        self, parameters: Sequence[Tensor] | None = None, dtype: torch.dtype | None = None
    ) -> list[Layer]:
        """The layers in order, with the network's own parameters or others in the same order; products in `dtype`."""
        p = self.own_parameters() if parameters is None else parameters
        blocks = []
        for i, norm in enumerate(m for m in self if isinstance(m, nn.LayerNorm)):
            weight, bias, *affine = p[4 * i : 4 * i + 4]
            affine = [t.contiguous() for t in affine]  # as the kernels read them
            blocks.append(Layer(weight, bias, *affine, norm.eps, dtype, dtype))
        return blocks + ([Layer(*p[-2:], dtype=dtype, grad_dtype=dtype)] if len(p) % 4 else [])

    def own_parameters(self) -> list[nn.Parameter]:
        """The list of `parameters()`, without that method: it takes longer than a small layer's product."""
        layers = (own_parameters(m) for m in self if not isinstance(m, nn.ReLU))
        return [p[name] for p in layers for name in ("weight", "bias")]

    def is_whole(self) -> bool:
        """Whether the layers are still those that the constructor checked, each with its own parameters."""
        if not self.is_fast or [type(m) for m in self] != self._kinds:
            return False
        if any(
            not {"weight", "bias"} <= own_parameters(m).keys() for m in self if not isinstance(m, nn.ReLU)
        ):
            return False
        parameters = self.own_parameters()
        return len({id(p) for p in parameters if p is not None}) == len(parameters)

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A layer; for a slice, an ordinary `nn.Sequential`."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def takes_fast_path(self, x: Tensor) -> bool:
        """Whether `forward` computes x [n, k] as one piece."""
        return (
            (x.device.type == "cpu" or (x.is_cuda and ops.is_compiled(x.device)))
            and x.dtype == torch.float32
            and x.dim() == 2
            and not torch.compiler.is_compiling()
            and not is_transformed()
            and self.is_whole()
            and not any(is_altered(m) for m in self)
            and all(p.dtype == torch.float32 for p in self.own_parameters())
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, k] -> [n, m]."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x is {checks.describe(x)}; expected a tensor [n, {self[0].in_features}]")
        if not self.takes_fast_path(x):
            return super().forward(x)
        return _MLPFunction.apply(self, autocast_dtype(x.device), x.contiguous(), *self.own_parameters())


def _sizes(module: nn.Module) -> tuple[Any, ...]:
    """How many features a layer takes and gives; () where it does not matter."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.LayerNorm):
        n = module.normalized_shape[0] if len(module.normalized_shape) == 1 else module.normalized_shape
        return n, n
    return ()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype to which `torch.autocast` rounds products on this device; None if autocast is off."""
    is_on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if is_on else None
