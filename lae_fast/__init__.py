"""Amortized Langevin dynamics on fused kernels."""

from lae_fast._version import __version__
from lae_fast.ald import ALDInfo, ALDState, ald_init, ald_step

__all__ = ["ALDInfo", "ALDState", "__version__", "ald_init", "ald_step"]
