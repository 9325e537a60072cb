"""The report's figures 1 and 2, drawn: training with variations, and the fully connected networks.

Lengths are in inches. The optimizer trains the blue parts, orange parts are drawn at random, grey parts stay fixed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lae_fast.experiments.style import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, INK = 6.4, 4.6, "0.15"
TRAINED, RANDOM = COLOURS[:2]
BLOCK = "Linear 256", "LayerNorm", "ReLU"


def _canvas() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.set_axis_off()
    return figure, axes


def _text(axes: Axes, x: float, y: float, *lines: str, **style: Any) -> None:
    """Lines of text around (x, y); the baselines do not depend on the text."""
    look: dict[str, Any] = dict(ha="center", va="baseline", size=13, color=INK) | style
    for i, line in enumerate(lines):
        baseline = y - 0.06 + 0.25 * ((len(lines) - 1) / 2 - i)
        axes.text(x, baseline, line, **look)


def _box(
    axes: Axes,
    x: float,
    y: float,
    w: float,
    h: float,
    *lines: str,
    colour: str = GREY,
    taper: float = 0,
    **style: Any,
) -> None:
    """Lines of text in a tinted box [w, h] around (x, y); `taper` is the box's loss of height from left to right."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import FancyBboxPatch, Polygon

    tint = [1 - 0.12 * (1 - c) for c in to_rgb(colour)]
    look: dict[str, Any] = dict(facecolor=tint, edgecolor=colour, linewidth=1.4, joinstyle="round") | style
    left, right = (h + taper) / 2, (h - taper) / 2
    corners = [(x - w / 2, y - left), (x - w / 2, y + left), (x + w / 2, y + right), (x + w / 2, y - right)]
    rounded = FancyBboxPatch(corners[0], w, h, boxstyle="round,pad=0,rounding_size=0.09", **look)
    axes.add_patch(Polygon(corners, **look) if taper else rounded)
    _text(axes, x, y, *lines)


def _arrow(axes: Axes, *points: tuple[float, float], **style: Any) -> None:
    """An arrow along straight lines from the first point to the last."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    look: dict[str, Any] = dict(
        arrowstyle="-|>,head_length=5,head_width=2.5", color=INK, linewidth=1.4, joinstyle="round"
    )
    axes.add_patch(FancyArrowPatch(path=Path(points), **look | style))


def _eight(
    axes: Axes, x: float, y: float, wide: float = 0.1, waist: float = 0.15, slant: float = 0.03, blur: int = 0
) -> None:
    """A handwritten 8 on a black tile around (x, y), its outline softened by `blur` strokes."""
    _box(axes, x, y, 0.6, 0.6, facecolor="0.1", edgecolor="0.1")
    angles = [2 * math.pi * i / 80 for i in range(81)]
    xs = [x + wide * math.sin(2 * t) * (1 - waist * math.cos(t)) + slant * math.cos(t) for t in angles]
    ys = [y + 0.2 * math.cos(t) for t in angles]
    for i in range(blur + 1):
        axes.plot(xs, ys, color="white", linewidth=3.5 + 0.6 * (blur / 2 - i), alpha=0.12 if blur else 1)


def training() -> Figure:
    """Figure 1, Algorithm 3: a classifier's minibatch with variations drawn from a latent variable model."""
    from matplotlib.patches import Ellipse

    figure, axes = _canvas()
    _text(axes, 0.6, 4.18, "minibatch")
    for shift in (0.12, 0.06):
        _box(axes, 0.54 + shift, 3.52 + shift, 0.6, 0.6)
    _eight(axes, 0.54, 3.52)

    _box(axes, 3.83, 3.66, 4.94, 1.52, facecolor="white", linestyle="--", linewidth=1)
    _text(axes, 1.52, 4.18, "latent variable model, frozen", ha="left", color=GREY)
    _box(axes, 2.1, 3.52, 0.98, 0.62, "encoder", taper=0.22)
    _box(axes, 5.56, 3.52, 0.98, 0.62, "decoder", taper=-0.22)
    for w, h in ((1.1, 0.54), (0.6, 0.3)):
        axes.add_patch(Ellipse((3.48, 3.54), w, h, angle=15, color=RANDOM, alpha=0.15, linewidth=0))
    axes.plot([3.16, 3.4, 3.56, 3.78], [3.5, 3.64, 3.44, 3.6], "o", color=RANDOM, markersize=4.5)
    _text(axes, 3.48, 3.1, r"$\mathcal{D} = q(z\,|\,x)$")
    _text(axes, 4.54, 3.74, r"$z_1\ldots z_N$", color=RANDOM)
    for start, end in ((1.04, 1.56), (2.63, 2.89), (4.08, 5.03)):
        _arrow(axes, (start, 3.52), (end, 3.52))

    _box(axes, 3.2, 2.06, 6.2, 1.1, facecolor="white", linewidth=1)
    _text(axes, 2.06, 2.06, "one batch of", "$(N + 1)\\,n$ images")
    _arrow(axes, (0.54, 3.17), (0.54, 2.51))
    _eight(axes, 0.54, 2.18)
    _text(axes, 0.54, 1.68, "$x,\\,y$")
    shapes = (0.13, 0.1, 0.0), (0.09, 0.3, 0.06), (0.11, 0.0, 0.05)
    for x, index, shape in zip((3.6, 4.45, 5.86), "12N", shapes, strict=True):
        _eight(axes, x, 2.18, *shape, blur=9)
        _arrow(axes, (5.56, 3.17), (5.56, 2.75), (x, 2.75), (x, 2.51))
        _text(axes, x, 1.68, f"$\\tilde{{x}}_{index},\\,y$")
    _text(axes, 5.16, 2.18, r"$\ldots$")

    _box(axes, 2.06, 0.64, 1.6, 0.6, r"classifier $f_\theta$", colour=TRAINED)
    _box(axes, 5.02, 0.64, 0.9, 0.6, "loss")
    for x, text in ((2.06, "images"), (5.02, "labels")):
        _arrow(axes, (x, 1.5), (x, 0.95))
        _text(axes, x + 0.12, 1.24, text, ha="left")
    _arrow(axes, (2.87, 0.76), (4.56, 0.76))
    _arrow(axes, (4.56, 0.52), (2.87, 0.52), color=TRAINED, linestyle="--")
    _text(axes, 3.71, 0.26, "gradient", color=TRAINED)
    return figure


def architecture() -> Figure:
    """Figure 2: the fully connected networks, and the two kinds of an encoder's last layer."""
    figure, axes = _canvas()
    for x, lines, name in ((0.76, BLOCK, r"encoder $\psi$"), (5.5, BLOCK[::-1], r"decoder $\theta$")):
        for shift in (0.14, 0.07, 0):
            _box(axes, x + shift, 2.13 + shift, 1.2, 0.96, *() if shift else lines, colour=TRAINED)
        _text(axes, x + 0.07, 1.41, r"$3\,\times$")
        _text(axes, x + 0.07, 1.11, name, color=TRAINED)
    _eight(axes, 0.76, 4.18)
    _arrow(axes, (0.76, 3.83), (0.76, 2.78))
    _text(axes, 0.88, 3.34, "$x$ [784]", ha="left")
    _arrow(axes, (5.5, 2.77), (5.5, 3.04))
    _box(axes, 5.5, 3.27, 1.2, 0.42, "Linear 784", colour=TRAINED)
    _arrow(axes, (5.5, 3.49), (5.5, 3.86))
    _text(axes, 5.4, 3.67, "logits [784]", ha="right")
    _eight(axes, 5.5, 4.18, blur=9)

    for y, h, name in ((3.02, 1.28, "LAE"), (1.26, 1.52, "VAE")):
        _box(axes, 3.2, y, 1.92, h, facecolor="white", linewidth=1, linestyle="--")
        _text(axes, 2.36, y + h / 2 - 0.22, name, ha="left", weight="bold")
        _arrow(axes, (1.51, 2.2), (1.88, 2.2), (1.88, y), (2.23, y))
        _arrow(axes, (4.17, y), (4.52, y), (4.52, 2.2), (4.89, 2.2))
    _text(axes, 1.97, 2.2, "$h$ [256]", ha="left")
    _text(axes, 3.2, 2.2, "or")
    _text(axes, 4.43, 2.2, "$z$ [nz]", ha="right")
    _box(axes, 3.2, 3.06, 1.64, 0.36, r"$\phi$ [nz, 256]", colour=RANDOM)
    _text(axes, 3.2, 2.62, r"$z = \phi\,h$")
    _box(axes, 3.2, 1.45, 1.64, 0.34, r"$\mu$: Linear nz", colour=TRAINED)
    _box(axes, 3.2, 1.03, 1.64, 0.34, r"$\log\,\sigma^2$: Linear nz", colour=TRAINED)
    _text(axes, 3.2, 0.68, r"$z = \mu + \sigma\,\epsilon$")

    _text(axes, 1.1, 0.22, "moved by", ha="left")
    for x, text, colour in ((2.3, "optimizer", TRAINED), (3.85, "Langevin chain", RANDOM)):
        _box(axes, x, 0.22, 0.22, 0.2, colour=colour)
        _text(axes, x + 0.2, 0.22, text, ha="left")
    return figure
