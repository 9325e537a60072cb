"""The program around a call: what it has switched on must not change what this package computes, and the call must leave it
as it was. Many threads may be inside at once."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


@contextlib.contextmanager
def isolated(*models: object) -> Iterator[None]:
    """Modules in eval mode, no autocast, and float32 products that nothing rounds.

    On exit, also after an exception, every submodule has its own mode again, and PyTorch its settings, as soon as the last of
    the threads that are inside has left.

    Args:
        models: those that are `nn.Module`s are in eval mode; others do not matter.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(exact())
        for model in models:
            if isinstance(model, nn.Module):
                stack.enter_context(_in_eval_mode(model))
        yield


def savable(t: Tensor) -> Tensor:
    """A tensor that autograd may save: of one that was made in inference mode, outside of it, a copy."""
    is_outside = not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled()
    return t.clone() if is_outside and t.is_inference() else t


def exact() -> contextlib.AbstractContextManager[None]:
    """No autocast, and float32 products that nothing rounds. Where nothing would round them, this costs next to nothing.

    Compiled code is left alone: it cannot change PyTorch's settings.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() or _is_exact() else _exact()


def exactly(function: Callable[P, R]) -> Callable[P, R]:
    """Of a function that returns numbers and no graph: without gradients, and `exact`."""

    @functools.wraps(function)
    def exact_call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.no_grad(), exact():
            return function(*args, **kwargs)

    return exact_call


def _is_exact() -> bool:
    is_rounding = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda") or _callers[0] > 0
    return not is_rounding and all(setting.fp32_precision not in ROUNDED for setting, _ in _settings())


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_exact_products())
        yield


# ---- eval mode ----

# module -> [callers inside, the module's own mode]
_modes: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    with _lock:
        modules = list(model.modules())
        for module in modules:
            _modes.setdefault(module, [0, module.training])[0] += 1
        if any(module.training for module in modules):
            model.eval()
    try:
        yield
    finally:
        with _lock:
            own: dict[nn.Module, bool] = {}  # of the modules that nobody else is inside of
            for module in modules:
                entry = _modes[module]
                entry[0] -= 1
                if entry[0] == 0:
                    own[module] = entry[1]
                    del _modes[module]
            if len(own) == len(modules):
                set_modes(own)
            for module, mode in own.items():
                module.training = mode


def set_modes(modes: dict[nn.Module, bool]) -> None:
    """Give modules, of which a part comes after its whole, their own modes again; some do more in train() than set a flag."""
    for module, mode in modes.items():
        if module.training != mode:
            module.train(mode)
    for module, mode in modes.items():
        module.training = mode


# ---- exact products ----

ROUNDED = ("tf32", "bf16")
_cpu: Any = torch.backends.mkldnn  # torch puts the settings into its modules at run time
_cuda: Any = torch.backends.cudnn
# PyTorch's settings, each with the one that it inherits from. cuDNN's are set together: its older interface expects so.
_ON_CPU = ((_cpu.matmul, _cpu), (_cpu.conv, _cpu), (_cpu.rnn, _cpu))
_ON_GPU = ((torch.backends.cuda.matmul, torch.backends), (_cuda.conv, _cuda), (_cuda.rnn, _cuda))
_callers = [0]  # inside
_own: list[Any] = []  # the program's settings, to be restored


def _settings() -> tuple[Any, ...]:
    """Those that matter: a program that has not used a GPU so far has no products there."""
    return _ON_CPU + (_ON_GPU if torch.cuda.is_initialized() else ())


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    with _lock:
        if _callers[0] == 0:
            _make_exact()
        _callers[0] += 1
    try:
        yield
    finally:
        with _lock:
            _callers[0] -= 1
            if _callers[0] == 0:
                _restore()


def _make_exact() -> None:
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # the program uses the newer interface, and the older one refuses to be read
        older = "highest"
    _own[:] = [older]
    if older != "highest":  # by the older interface, so that it can be read inside, too
        torch.set_float32_matmul_precision("highest")
    for setting, parent in _settings():
        if (value := setting.fp32_precision) in ROUNDED:
            _own.append((setting, parent, value))
            setting.fp32_precision = "ieee"


def _restore() -> None:
    older, *settings = _own
    for setting, parent, value in settings:
        put_back(setting, parent, value)
    if older != "highest":
        torch.set_float32_matmul_precision(older)


def put_back(setting: Any, parent: Any, value: str) -> None:
    """Give a setting of PyTorch's the value that it had; one that it inherited it inherits again."""
    setting.fp32_precision = "none" if value == parent.fp32_precision else value


# ---- derivatives inside inference mode ----


class _WithoutInferenceTensors(TorchFunctionMode):
    """Tensors that were made in inference mode enter every operation as copies: autograd refuses to save them."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return function(*_copied(args), **_copied(kwargs or {}))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {name: _copied(v) for name, v in value.items()}
    return value


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Grad mode, for derivatives that the package itself takes, also where the caller is in inference mode."""
    if not torch.is_inference_mode_enabled():
        with torch.enable_grad():
            yield
        return
    with torch.inference_mode(False), torch.enable_grad(), _WithoutInferenceTensors():
        yield
