"""Bad arguments by chance: a table of valid calls, a pool of hostile values, and what a public function owes its callers.

One or two arguments of a valid call are replaced by hostile values. The call must then raise a TypeError or ValueError whose
message names one of the replaced arguments, or return: and what it returns is finite. It must not crash, hang, or show
messages of the libraries below. The draws are seeded: a failure is the same in every run.

To add a function, add an entry to the table in fuzz_calls.py.
"""

from __future__ import annotations

import math
import os
import random
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

LIMIT = 20  # seconds for one call: none that is right takes one
TRIES = int(os.environ.get("LAE_FAST_FUZZ", "150"))  # for each function


class Call(NamedTuple):
    """An entry of the table.

    Attributes:
        make: returns a function and arguments that it accepts, anew for every try: no try sees what another has overwritten.
        says: words that stand for an argument in messages, where the name itself does not: {"phi": ("potential", "energy")}.
        also: further hostile values, by argument.
        without: hostile values that are right here, by argument, or would take all the memory: {"n_steps": (2**31,)}.
        free: arguments whose values may make the result infinite or NaN, as the NaN of a tensor that is not checked may.
    """

    make: Callable[[], tuple[Callable, dict[str, Any]]]
    says: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    also: Mapping[str, tuple] = MappingProxyType({})
    without: Mapping[str, tuple] = MappingProxyType({})
    free: tuple[str, ...] = ()


class Thing:
    """An object with none of a tensor's attributes."""

    def __repr__(self) -> str:
        return "Thing()"


# Right where any function is: what such a call then raises is the function's own affair.
CALLABLES = (Thing, object, len, torch.zeros)


def plain_values() -> list[Any]:
    """Hostile values that are no tensors."""
    huge = [2**31, 2**63, -(2**63) - 1, 10**30, 10**400, 1e300]
    numbers = [True, False, -1, 0, 1.5, -0.5, math.nan, math.inf, -math.inf, 1j, *huge]
    others = [
        None,
        "",
        "cpu",
        "0.5",
        b"x",
        [],
        [1, 2],
        [[0.1]],
        (),
        (0.5,),
        {},
        {"a": 1},
        {1.0},
        Thing(),
        Thing,
        object,
    ]
    arrays = [np.zeros(3), np.float32(0.5), np.array([["a"]]), np.int64(-3)]
    return [
        *numbers,
        *others,
        *arrays,
        torch.float16,
        torch.device("cpu"),
        torch.Generator("cpu"),
        len,
        torch.zeros,
    ]


def tensors_like(t: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Hostile variants of a tensor, by name."""

    def filled(value: float) -> Callable[[], Tensor]:
        return lambda: torch.full_like(t, value)

    variants = {
        "empty": lambda: t.new_empty(0),
        "0-d": lambda: t.new_zeros(()),
        "one axis more": lambda: t[None].clone(),
        "one row more": lambda: torch.cat((t, t[:1])) if t.dim() else t.new_zeros(1),
        "one row less": lambda: t[1:].clone() if t.dim() else t.new_zeros(2),
        "no rows": lambda: t[:0].clone() if t.dim() else t.new_zeros(0, 0),
        "no columns": lambda: t[..., :0].clone() if t.dim() else t.new_zeros(0),
        "transposed": lambda: t.T.clone() if t.dim() == 2 else t.clone(),
        "strided": lambda: torch.stack((t, t), -1)[..., 0],
        "expanded": lambda: t[:1].expand(t.shape) if t.dim() and t.numel() else t.clone(),
        "meta": lambda: t.to("meta"),
        "sparse": lambda: t.detach().to_sparse() if t.dim() else torch.eye(2).to_sparse(),
        "csr": lambda: t.detach().to_sparse_csr() if t.dim() == 2 else torch.eye(2).to_sparse_csr(),
        "int8": lambda: t.to(torch.int8),
        "int64": lambda: t.to(torch.int64),
        "bool": lambda: t.to(torch.bool),
        "float16": lambda: t.to(torch.float16),
        "bfloat16": lambda: t.to(torch.bfloat16),
        "float32": lambda: t.to(torch.float32),
        "float64": lambda: t.to(torch.float64),
        "complex": lambda: t.to(torch.complex64),
        "numpy": lambda: t.detach().numpy(),
        "list": lambda: t.tolist(),
        "inference": lambda: _inference(t),
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(2, 2), 0.1, 0, torch.qint8),
    }
    if t.is_floating_point():
        variants |= {
            name: filled(value) for name, value in (("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf))
        }
        variants |= {"large": filled(1e38), "negative": filled(-1.0), "zero": filled(0.0)}
        variants["requires_grad"] = lambda: t.detach().clone().requires_grad_()
        variants["not a leaf"] = lambda: t.detach().clone().requires_grad_() * 1
    else:
        variants |= {"all -1": lambda: torch.full_like(t, -1)}
    return variants


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


def hostile(value: Any, rng: random.Random, also: tuple = ()) -> tuple[str, Any]:
    """A hostile value to take the place of `value`, with its name. For a list of tensors, perhaps a list with one in it."""
    if isinstance(value, Tensor) and rng.random() < 0.6:
        name, make = rng.choice(list(tensors_like(value).items()))
        return f"its {name}", make()
    if isinstance(value, (list, tuple)) and value and rng.random() < 0.6:
        i = rng.randrange(len(value))
        name, bad = hostile(value[i], rng)
        parts = [*value[:i], bad, *value[i + 1 :]]
        return f"at {i} {name}", type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if rng.random() < 0.2:
        name, make = rng.choice(list(tensors_like(torch.rand(3, 4)).items()))
        return f"a tensor, {name}", make()
    bad = rng.choice([*plain_values(), *also])
    return f"{type(bad).__name__} {bad!r}", bad


def floats_of(result: Any) -> Iterator[Tensor]:
    """All floating tensors in a result."""
    if isinstance(result, Tensor):
        if result.is_floating_point() and not result.is_meta:
            yield result
    elif isinstance(result, float):
        yield torch.tensor(result)
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from floats_of(part)
    elif isinstance(result, dict):
        yield from floats_of(list(result.values()))


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError in the call that takes longer; where there are no such signals, wait."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no answer within {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def complaint(call: Call, changed: dict[str, Any]) -> str | None:
    """What is wrong with the answer to a call with these arguments changed; None: nothing."""
    function, arguments = call.make()
    arguments |= changed
    try:
        with warnings.catch_warnings(), time_limit(LIMIT):
            warnings.simplefilter("ignore")
            result = function(**arguments)
    except (TypeError, ValueError) as error:
        names = [*changed, *(word for name in changed for word in call.says.get(name, ()))]
        if not any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names):
            return f"a message that names none of {', '.join(names)}: {type(error).__name__}: {error}"
        if ".cpp" in str(error) or ".h:" in str(error):
            return f"a message of the kernels: {error}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    if not any(name in call.free for name in changed) and any(
        not t.isfinite().all() for t in floats_of(result)
    ):
        return "a result that is not finite"
    return None


def attack(name: str, call: Call, tries: int = TRIES) -> list[str]:
    """The complaints about a function, each different one once, with the change that provoked it."""
    rng, complaints = random.Random(name), {}
    function, arguments = call.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**arguments)  # the entry itself is right
    torch.manual_seed(0)
    for _ in range(tries):
        _, arguments = call.make()
        changed, told = {}, []
        for argument in rng.sample(list(arguments), rng.choice([1, 1, 1, min(2, len(arguments))])):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text, value = hostile(arguments[argument], rng, call.also.get(argument, ()))
            if any(
                value is v or (type(value) is type(v) and value == v) for v in call.without.get(argument, ())
            ):
                continue
            changed[argument] = value
            told.append(f"{argument} = {text}")
        found = complaint(call, changed) if changed else None
        if found:
            complaints.setdefault(re.sub(r"\d+", "n", found), f"{name}({', '.join(told)}): {found}")
    return list(complaints.values())
