"""Training: one step (step.py), a whole run in a folder (trainer.py), and its options (config.py)."""

from lae_fast.training.step import TrainingStep, adam, cool_down, keep_freed_memory

__all__ = ["TrainingStep", "adam", "cool_down", "keep_freed_memory"]
