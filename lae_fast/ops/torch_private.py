"""Every private name of torch that the package uses, each with a fallback for a torch without this name.

One more is overridden in models/with_chain.py: `nn.Module._apply`. In a torch that does not call it, `model.half()` rounds the
chain's step size too.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is active: to both a fused op is a constant.

    Fallback: True. Plain PyTorch then serves, which is slower and never wrong.
    """
    try:
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    except AttributeError:
        return True


def has_tangent(t: Tensor) -> bool:
    """Whether t has a forward-mode tangent; also where transforms of `torch.func` are nested, and t may hide one.

    Fallback: True within forward-mode differentiation.
    """
    if forward_ad.unpack_dual(t).tangent is not None:
        return True
    try:
        is_nested = torch._C._functorch.maybe_current_level() not in (None, 1)
        is_forward = forward_ad._current_level >= 0
        return is_forward and is_nested and torch._C._functorch.is_functorch_wrapped_tensor(t)
    except AttributeError:
        return getattr(forward_ad, "_current_level", 0) >= 0


def is_differentiated(t: Tensor) -> bool:
    """Whether `torch.func.grad` and the like record what is done to t.

    Fallback: False. Torch then says that it cannot transform the op.
    """
    try:
        return t.requires_grad and torch._C._functorch.is_gradtrackingtensor(t)
    except AttributeError:
        return False


def is_batched(t: Tensor) -> bool:
    """Whether `torch.func.vmap` maps over t.

    Fallback: False. Torch then says that it cannot map over an op that works in place.
    """
    try:
        return torch._C._functorch.is_batchedtensor(t)
    except AttributeError:
        return False


def version(t: Tensor) -> int:
    """How many times t has been changed in place, also through its views.

    Fallback, also in compiled code and for what was made in inference mode, where nobody counts: 0.
    """
    try:
        return 0 if torch.compiler.is_compiling() else t._version
    except (AttributeError, RuntimeError):
        return 0


def is_traced() -> bool:
    """Whether `make_fx` writes down what is computed.

    Fallback: False. Who compiles the graph may find ops in it that the compiler does not take.
    """
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    try:
        return tracer is not None and tracer.get_proxy_mode() is not None
    except AttributeError:
        return False


def is_altered(module: nn.Module) -> bool:
    """Whether a call of `module`, apart from its parts, does anything but the `forward` of its class: by hooks, of its own or of
    all modules, or by a forward of its own.

    Fallback: True. The layers then run one by one, hooks included.
    """
    every = torch.nn.modules.module
    try:
        return any(
            (
                every._global_forward_hooks,
                every._global_forward_pre_hooks,
                every._global_backward_hooks,
                every._global_backward_pre_hooks,
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
                "forward" in module.__dict__,
            )
        )
    except AttributeError:
        return True


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters, by name; None for a parameter that was declared and left out.

    Fallback: `named_parameters`, which takes longer than a small layer's product.
    """
    try:
        return module._parameters
    except AttributeError:
        return dict(module.named_parameters(recurse=False))


def backward_reaches(node: torch.autograd.graph.Node | None) -> bool:
    """Whether the current backward pass reaches this node; `needs_input_grad` only says that it may.

    Fallback: True for every node; unneeded gradients are then computed too.
    """
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # RuntimeError: a leaf given to torch.autograd.grad
        return True


def on_each(name: str, tensors: Sequence[Tensor], values: Sequence[Tensor] | float) -> None:
    """Call an op that works in place, as add_, with a value of its own for each tensor or one number for all, in as few launches
    as possible; the shapes of a tensor and its value are equal.

    Fallback: one launch for each tensor.
    """
    if not tensors:
        return
    try:
        together = getattr(torch, f"_foreach_{name}")
    except AttributeError:
        each = [values] * len(tensors) if isinstance(values, (int, float)) else values
        for t, value in zip(tensors, each, strict=True):
            getattr(t, name)(value)
    else:
        together(tensors, values)


def has_hooks(t: Tensor) -> bool:
    """Whether somebody's function is called when autograd has the gradient of t, a leaf.

    Fallback: True. Autograd then gives t its gradient.
    """
    try:
        return bool(t._backward_hooks or t._post_accumulate_grad_hooks)
    except AttributeError:
        return True


def end_failed_capture(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Take back what a capture of `graph` that failed has begun: in torch 2.11 the memory of the current GPU goes on as if the
    capture, with this memory pool, were under way, and nothing that is cached is freed any more.

    Fallback: none; the memory stays like that.
    """
    with contextlib.suppress(
        AttributeError, RuntimeError
    ):  # RuntimeError: it has ended, as in newer versions by `reset`
        graph.reset()
        device = torch.cuda.current_device()
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)


def onednn_linear() -> Linear | None:
    """oneDNN's a @ weight.T + bias, as torch.compile uses it, for a [n, k], weight [m, k] and bias [m] or None.

    Fallback, also for a torch without oneDNN: None; `torch.nn.functional.linear` then serves.
    """
    if not torch.backends.mkldnn.is_available():
        return None
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if packet is None:
        return None
    op = packet.default
    return lambda a, weight, bias: op(a, weight, bias, "none", [], "")


def compiled_call(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """inductor's code for a graph of aten ops, without the guards of `torch.compile`: inputs of these shapes -> its results.

    Fallback: none. Where this torch has no such function, or the machine no C++ compiler, the error says so, and the caller
    goes on without.
    """
    return torch._inductor.compile(graph, list(inputs))


def compiled_library(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """The path of a shared library with AOTInductor's code for a graph of aten ops.

    Fallback: none, as above.
    """
    return str(torch._inductor.aot_compile(graph, tuple(inputs)))


@functools.cache
def aot_loaded(path: str) -> Callable[..., list[Tensor]]:
    """The function that `compiled_library` has left at this path, for Python. Fallback: none; only a build without kernels asks."""
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)
    return lambda *inputs: runner.run(list(inputs))
