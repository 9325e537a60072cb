"""The report's figures 1 and 2: that they render, and that all their words can be read."""

import io
import itertools

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch
from matplotlib.path import Path

from lae_fast.experiments.drawings import architecture, training
from lae_fast.experiments.style import STYLE


@pytest.mark.parametrize("style", [{}, STYLE], ids=["plain", "house"])
@pytest.mark.parametrize("draw", [training, architecture])
def test_drawing(draw, style):
    with matplotlib.rc_context(style):
        figure = draw()
        figure.savefig(png := io.BytesIO(), format="png", dpi=160)
        assert png.getvalue().startswith(b"\x89PNG")
        renderer = FigureCanvasAgg(figure).get_renderer()
        (axes,) = figure.axes
        words = [
            (text.get_text(), text.get_window_extent(renderer)) for text in axes.texts if text.get_text()
        ]
        arrows = [p for p in axes.patches if isinstance(p, FancyArrowPatch)]
        boxes = [p.get_window_extent(renderer) for p in axes.patches if p not in arrows]
        paths = [p.get_transform().transform_path(p.get_path()) for p in arrows]
        lines = [Path(line) for p in paths for line in p.to_polygons(closed_only=False)]
    assert len(words) > 10

    def encloses(box, word):
        return box.x0 <= word.x0 and box.y0 <= word.y0 and word.x1 <= box.x1 and word.y1 <= box.y1

    for (a, one), (b, other) in itertools.combinations(words, 2):
        assert not one.overlaps(other), (a, b)
    for text, word in words:
        assert encloses(figure.bbox, word), text
        assert not any(line.intersects_bbox(word, filled=False) for line in lines), text
        touched = [box for box in boxes if box.overlaps(word)]
        assert not touched or encloses(touched[-1], word), text
