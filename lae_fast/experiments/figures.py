"""The report's figures 3-5, for every model: samples, the latent plane, and interpolation in the plane."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from lae_fast.experiments.autoencoders import TrainedAutoencoder, report_posterior
from lae_fast.experiments.design import SHOWN, Design
from lae_fast.experiments.planes import interpolation
from lae_fast.experiments.recipes import Lab, Recipe
from lae_fast.experiments.style import GREY
from lae_fast.training import pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Models = dict[str, TrainedAutoencoder]


def models(design: Design, nz: int) -> Models:
    """One model of each kind, from the first seed."""
    kinds = {"VAE": design.vae(nz)} | {f"LAE, {rule}": design.lae(rule, nz) for rule in SHOWN}
    kinds["Hoffman's method"] = design.hoffman(nz)
    return {name: recipes[0] for name, recipes in kinds.items()}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of the report."""

    name: str
    title: str
    draw: Callable[[Lab], Figure]
    needs: tuple[Recipe, ...]

    def recipes(self) -> Iterator[Recipe]:
        yield from self.needs


def _picture(axes: Axes, picture: torch.Tensor) -> None:
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def samples(lab: Lab, rows: dict[int, Models]) -> Figure:
    """Figure 3: 4 x 4 mean images of z ~ N(0, I), a row for each nz, a column for each model."""
    from matplotlib.figure import Figure

    columns = list(next(iter(rows.values())))
    figure = Figure(figsize=(6.4, 6.4 * len(rows) / len(columns) + 0.3), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (nz, found) in zip(panels, rows.items(), strict=True):
        for axes, recipe in zip(line, found.values(), strict=True):
            x = recipe.load(lab).sample(16, torch.Generator(lab.device).manual_seed(0))
            _picture(axes, pictures.grid(x, 4))
        line[0].set_ylabel(f"nz {nz}")
    for axes, name in zip(panels[0], columns, strict=True):
        axes.set_title(name.replace(", ", "\n"))
    return figure


def _panels(found: Models) -> tuple[Figure, list[tuple[Axes, str, TrainedAutoencoder]], Axes]:
    """Six places: one for each model, and one for the legend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.5), layout="constrained")
    places = figure.subplots(2, 3).ravel()
    for axes in places[len(found) :]:
        axes.set_axis_off()
    named = [(axes, name, recipe) for axes, (name, recipe) in zip(places, found.items(), strict=False)]
    for axes, name, _ in named:
        axes.set_title(name)
    return figure, named, places[-1]


@torch.no_grad()
def planes(lab: Lab, found: Models) -> Figure:
    """Figure 4: codes of test images, drawn as the report draws them, coloured by class; the circle holds 95 % of the prior."""
    from matplotlib.patches import Circle

    figure, panels, legend = _panels(found)
    x, labels = lab.test.images[:5000] / 255, lab.test.labels[:5000].cpu()
    for axes, _, recipe in panels:
        mean, std = report_posterior(recipe.load(lab)).posterior(x)
        eps = torch.randn(mean.shape, generator=torch.Generator(lab.device).manual_seed(0), device=lab.device)
        z = (mean + std * eps).cpu()
        dots = axes.scatter(
            z[:, 0],
            z[:, 1],
            c=labels,
            s=1.5,
            cmap="tab10",
            vmin=-0.5,
            vmax=9.5,
            linewidths=0,
            rasterized=True,
        )
        axes.add_patch(Circle((0, 0), 2.448, fill=False, color=GREY, linewidth=0.8))
        axes.set_aspect("equal", adjustable="datalim")
        axes.tick_params(labelsize=7)
    handles, _ = dots.legend_elements(num=range(10))
    legend.legend(handles, [str(k) for k in range(10)], ncols=2, loc="center", title="class", markerscale=1.2)
    return figure


def interpolations(lab: Lab, found: Models) -> Figure:
    """Figure 5: mean images on the square [-1, 1]^2 of the latent plane."""
    figure, panels, corner = _panels(found)
    for axes, _, recipe in panels:
        images = interpolation(recipe.load(lab), 10)
        _picture(axes, pictures.grid(images.flatten(0, 1).cpu(), 10))
    style: dict[str, Any] = dict(ha="center", va="center", color=GREY)
    arrow: dict[str, Any] = dict(arrowstyle="-|>", color=GREY, linewidth=0.8)
    for start, end, name, place in (
        ((0.2, 0.2), (0.85, 0.2), "$z_1$ from -1 to 1", (0.52, 0.1)),
        ((0.2, 0.2), (0.2, 0.85), "$z_2$ from -1 to 1", (0.1, 0.52)),
    ):
        corner.annotate("", end, start, xycoords="axes fraction", arrowprops=arrow)
        rotation = 90 if start[0] == end[0] else 0
        corner.text(*place, name, transform=corner.transAxes, rotation=rotation, **style)
    return figure


def drawings(design: Design) -> dict[str, Drawing]:
    """Figures 3-5 by name."""
    rows, plane = {nz: models(design, nz) for nz in (2, 8, 16)}, models(design, 2)
    return {
        d.name: d
        for d in (
            Drawing(
                "figure3",
                "Samples: mean images of z drawn from the prior, by latent dimension",
                lambda lab: samples(lab, rows),
                tuple(recipe for found in rows.values() for recipe in found.values()),
            ),
            Drawing(
                "figure4",
                "The latent plane: codes of up to 5,000 test images (nz 2); the circle holds 95 % of the prior",
                lambda lab: planes(lab, plane),
                tuple(plane.values()),
            ),
            Drawing(
                "figure5",
                "Interpolation: mean images on the square from -1 to 1 of the latent plane (nz 2)",
                lambda lab: interpolations(lab, plane),
                tuple(plane.values()),
            ),
        )
    }
