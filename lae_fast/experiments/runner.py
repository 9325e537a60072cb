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


class _Plan:
    """Recipes in the order of `ordered`, of which some are made: what is next, and what cannot be made any more."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self.waiting, self.unfinished = list(recipes), set(recipes)
        self.failed: dict[Recipe, str] = {}

    def ready(self) -> list[Recipe]:
        """Those that wait for nothing."""
        return [r for r in self.waiting if not self.unfinished.intersection(r.needs())]

    def end(self, recipe: Recipe, failure: ArithmeticError | None) -> Iterator[tuple[Recipe, str | None]]:
        """It is made, or failed; and with it fail all that need it."""
        self.unfinished.discard(recipe)
        if failure is not None:
            self.failed[recipe] = str(failure)
        yield recipe, self.failed.get(recipe)
        for other in list(self.waiting) if failure is not None else ():
            if blocked := [r for r in other.needs() if r in self.failed]:
                self.waiting.remove(other)
                self.unfinished.discard(other)
                self.failed[other] = self.failed[blocked[0]]
                yield other, self.failed[other]


def run(
    recipes: Sequence[Recipe], open_lab: Callable[[], Lab], workers: int
) -> Iterator[tuple[Recipe, str | None]]:
    """Make and keep the products of recipes; yield each recipe when its product is done.

    One worker works in this process, with all its threads, and there `lab.at_once` recipes of one company are made side by side;
    several workers are processes with one thread each. A recipe whose numbers are not finite is yielded with the reason, and so
    are the recipes that need it; all others go on.

    Args:
        recipes: in the order of `ordered`, each after the recipes that it needs; none is kept already.
        open_lab: makes the lab in each process; picklable.
    """
    plan = _Plan(recipes)
    results = _made_here(plan, open_lab()) if workers == 1 else _made_by_workers(plan, open_lab, workers)
    for recipe, failure in results:
        yield from plan.end(recipe, failure)


def _made_here(plan: _Plan, lab: Lab) -> Iterator[tuple[Recipe, ArithmeticError | None]]:
    while ready := plan.ready():
        kind, company = type(ready[0]), ready[0].company()
        if lab.at_once == 1 or company is None:
            plan.waiting.remove(ready[0])
            try:
                lab.get(ready[0])
            except ArithmeticError as error:
                yield ready[0], error
            else:
                yield ready[0], None
            continue
        together = [r for r in ready if type(r) is kind and r.company() == company]
        plan.waiting = [r for r in plan.waiting if r not in together]
        yield from lab.make_all(together)


def _made_by_workers(
    plan: _Plan, open_lab: Callable[[], Lab], workers: int
) -> Iterator[tuple[Recipe, ArithmeticError | None]]:
    running: dict[Future[None], Recipe] = {}
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, _start_worker, (open_lab,))
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.push(_end_workers)
        while plan.waiting or running:
            for recipe in plan.ready()[: workers - len(running)]:
                plan.waiting.remove(recipe)
                running[pool.submit(_make, recipe)] = recipe
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                recipe = running.pop(future)
                try:
                    future.result()
                except ArithmeticError as error:
                    yield recipe, error
                else:
                    yield recipe, None


def _end_workers(kind: type[BaseException] | None, *_: object) -> None:
    """A signal that came to this process alone would wait for the workers; what they have not finished is not kept anyway."""
    if kind is not None and not issubclass(kind, Exception):
        for worker in multiprocessing.active_children():
            worker.terminate()
