"""Training: one step (step.py), steps of several models (side_by_side.py), a loop (loop.py), a whole run in a folder (trainer.py), and its options (config.py)."""

from lae_fast.training.config import TrainingError
from lae_fast.training.loop import fit
from lae_fast.training.side_by_side import OwnNumbers, SideBySide
from lae_fast.training.step import TrainingStep, adam, cool_down, keep_freed_memory

__all__ = [
    "OwnNumbers",
    "SideBySide",
    "TrainingError",
    "TrainingStep",
    "adam",
    "cool_down",
    "fit",
    "keep_freed_memory",
]
