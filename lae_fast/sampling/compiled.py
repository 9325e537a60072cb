"""A potential as compiled code: value and gradient, traced once and compiled by torch's inductor.

The graph of a potential keeps what its Python code has decided, as a CUDA graph does: see `Plan.compile`. Tensors that the
potential closes over are inputs of the graph, so that the same function of other data finds its code again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from lae_fast import ops
from lae_fast.ops.torch_private import aot_loaded, compiled_call, compiled_library
from lae_fast.sampling.chains import Evaluate

KEPT = 64  # compiled potentials that a process remembers
LEAVING = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)


class Compiled(NamedTuple):
    """A compiled potential."""

    function: Callable[..., Any]  # rows [C, D], constants -> V [C], float64 in nats, and grad V [C, D]
    library: str | None  # the path of the same function as a library, which `Chains.walk` takes
    constants: list[Tensor]

    def evaluate(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = self.function(rows, *self.constants)
        return value, grad


_kept: dict[Any, tuple[Callable[..., Any], str | None]] = {}


def compiled(evaluate: Evaluate, rows: Tensor, elsewhere: Tensor) -> Compiled:
    """The compiled code of `evaluate`, for rows of this shape [C, D]. It takes seconds, and next to nothing if it is known.

    Args:
        rows, elsewhere: two places [C, D], at which the code has to give what `evaluate` gives. Constants would at one.

    Raises:
        Exception: of any kind; torch cannot trace or compile it, or its results differ from those of `evaluate`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its insides
        graph, constants = _traced(evaluate, rows)
        inputs = [rows, *constants]
        forms = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
        key = (graph.code, forms, torch.get_num_threads())
        if key not in _kept:
            while len(_kept) >= KEPT:
                del _kept[next(iter(_kept))]
            _kept[key] = _code(graph, inputs)
        found = Compiled(*_kept[key], constants)
        for place in (rows, elsewhere):
            if not agree(found.evaluate(place), evaluate(place)):
                raise ValueError("compiled, it gives other energies or gradients")
        return found


class _WithinPyTorch(TorchFunctionMode):
    """Raises where values leave PyTorch, as no graph sees it: what comes back would be a constant of the graph."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in LEAVING:
            raise ValueError(f"it takes values out of PyTorch, by {function.__name__}()")
        return function(*args, **(kwargs or {}))


def _traced(evaluate: Evaluate, rows: Tensor) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph of `evaluate` with two results, and the tensors that it takes after the rows.

    Raises:
        ValueError: it asks for values, takes them out of PyTorch, or draws random numbers, which the generators of the program would not decide
            in compiled code; or its energies do not depend on the rows.
    """

    def contiguous(rows: Tensor) -> tuple[Tensor, Tensor]:
        with _WithinPyTorch():
            value, grad = evaluate(rows)
        return value.contiguous(), grad.contiguous()

    try:
        graph = make_fx(contiguous)(rows)
    except RuntimeError as error:
        if "value out of a tracing tensor" in str(error):
            raise ValueError("it asks for values of tensors, as a branch does") from error
        raise
    graph.graph.eliminate_dead_code()  # questions among it that were answered while it was traced, as `in_unit_range`
    _check_dependence(graph)
    constants: list[Tensor] = []
    after = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        node.meta.clear()  # of fake tensors, one world for each; the compiler makes its own
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise ValueError(f"it draws random numbers ({node.target})")
        if node.op == "get_attr":
            value = getattr(graph, node.target)
            if not isinstance(value, Tensor):
                continue
            with graph.graph.inserting_after(after):
                after = graph.graph.placeholder(f"constant_{len(constants)}")
            constants.append(value.detach())
            node.replace_all_uses_with(after)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph, constants


def _check_dependence(graph: fx.GraphModule) -> None:
    """A ValueError if the first result does not depend on the graph's input."""
    nodes = list(graph.graph.nodes)
    dependent = {nodes[0]}
    for node in nodes[1:-1]:
        if dependent & set(node.all_input_nodes):
            dependent.add(node)
    if nodes[-1].args[0][0] not in dependent:
        raise ValueError("its energies are constants to PyTorch")


def _code(graph: fx.GraphModule, inputs: list[Tensor]) -> tuple[Callable[..., Any], str | None]:
    """The graph's function; and its library, where `ops.walk` can use one."""
    if inputs[0].device.type == "cpu" and ops.is_compiled("cpu") and _is_plain(graph):
        library = compiled_library(graph, inputs)
        # What torch's own executor has to call is out of a kernel's reach.
        if b"proxy_executor_call_function" not in Path(library).read_bytes():
            return aot_loaded(library), library
    return compiled_call(graph, inputs), None


def _is_plain(graph: fx.GraphModule) -> bool:
    """Whether torch's own ops are all that a graph calls."""
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return all(getattr(target, "namespace", "aten") in ("aten", "prims") for target in calls)


def agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether two evaluations, V [C] and grad V [C, D] each, are the same to what decides.

    That is V, each chain's for itself: a hundredth of a nat changes the chance of acceptance by 1 %, and float32 rounds a V that is a small
    difference of large sums by a few ten-thousandths. A gradient that is a little off only costs acceptance. Of a chain that would
    be rejected, as one of them is not finite, both have to say so, and no more.
    """
    is_finite, is_wanted_finite = (v.isfinite() & g.isfinite().all(1) for v, g in (found, expected))  # [C]
    if not torch.equal(is_finite, is_wanted_finite):
        return False
    if not is_finite.any():
        return True
    (value, grad), (wanted, wanted_grad) = ((v[is_finite], g[is_finite]) for v, g in (found, expected))
    is_near = (grad - wanted_grad).abs().max() <= 1e-3 * wanted_grad.abs().max() + 1e-6
    return bool(is_near) and torch.allclose(value, wanted, rtol=1e-5, atol=1e-2)
