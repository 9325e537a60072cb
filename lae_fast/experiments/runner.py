"""Makes the missing products in order, in one or several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

import torch

from lae_fast.experiments.recipes import Lab, Recipe

_lab: Lab  # the lab of a worker process


def _start_worker(open_lab: Callable[[], Lab]) -> None:
    global _lab
    torch.set_num_threads(1)
    _lab = open_lab()


def _make(recipe: Recipe) -> None:
    _lab.get(recipe)


def run(
    recipes: Sequence[Recipe], open_lab: Callable[[], Lab], workers: int
) -> Iterator[tuple[Recipe, str | None]]:
    """Make and keep the products of recipes; yield each recipe when its product is done.

    One worker works in this process, with all its threads; several workers are processes with one thread each. A recipe
    whose numbers are not finite is yielded with the reason, and so are the recipes that need it; all others go on.

    Args:
        recipes: in the order of `ordered`, each after the recipes that it needs; none is kept already.
        open_lab: makes the lab in each process; picklable.
    """
    waiting = list(recipes)
    failed: dict[Recipe, str] = {}
    unfinished = set(recipes)
    running: dict[Future[None], Recipe] = {}
    with contextlib.ExitStack() as stack:
        if workers == 1:
            lab = open_lab()
            submit = None
        else:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker, (open_lab,))
            stack.callback(pool.shutdown, cancel_futures=True)
            stack.push(_end_workers)
            submit = pool.submit
        while waiting or running:
            for recipe in list(waiting):
                blocked = [r for r in recipe.needs() if r in failed]
                if blocked:
                    waiting.remove(recipe)
                    unfinished.discard(recipe)
                    failed[recipe] = failed[blocked[0]]
                    yield recipe, failed[recipe]
                elif len(running) < workers and not unfinished.intersection(recipe.needs()):
                    waiting.remove(recipe)
                    future = submit(_make, recipe) if submit else _done(lab, recipe)
                    running[future] = recipe
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                recipe = running.pop(future)
                unfinished.discard(recipe)
                try:
                    future.result()
                except ArithmeticError as error:
                    failed[recipe] = str(error)
                yield recipe, failed.get(recipe)


def _end_workers(kind: type[BaseException] | None, *_: object) -> None:
    """A signal that came to this process alone would wait for the workers; what they have not finished is not kept anyway."""
    if kind is not None and not issubclass(kind, Exception):
        for worker in multiprocessing.active_children():
            worker.terminate()


def _done(lab: Lab, recipe: Recipe) -> Future[None]:
    """A finished future; the work is done here, in this process."""
    future: Future[None] = Future()
    try:
        lab.get(recipe)
        future.set_result(None)
    except ArithmeticError as error:
        future.set_exception(error)
    return future
