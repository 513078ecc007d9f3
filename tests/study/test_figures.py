"""Figures are legible: with 2 to 40 cells no text lies over another one, and none is cut off."""

from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from tinygpt_lightning.study.claims_reset import Reset
from tinygpt_lightning.study.figures import curve_figure, exactness_figure
from tinygpt_lightning.study.outcome import IN_TRAINING

from .tiny import RESET, RIDDLE, TWO_STAGES, outcome, results_of, tiny_study

MANY = {"model.config.n_inner": list(range(1, 9)), "model.optimizer.lr": [0.1, 0.01, 0.001, 0.0001, 0.00001]}
STUDIES = {
    "2 cells": {"model.config.n_head": [1, 2]},
    "5 levels of a long name": {
        "a rather long name of a factor": {f"level {i}": {"model.config.n_inner": i} for i in range(1, 6)}
    },
    "20 cells": RIDDLE["factors"],
    "40 cells": MANY,
}


def texts_of(figure):
    """All visible texts with their boxes, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = set()  # labels of ticks beyond the end of their axis
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high or not axis.axes.axison:
                unseen |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in unseen]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    width, height = canvas.get_width_height()
    return [(name, box) for name, box in boxes if box.width and box.height], width, height


def check(figure):
    texts, width, height = texts_of(figure)
    assert texts
    for name, box in texts:
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name
    for (name, box), (other, other_box) in combinations(texts, 2):
        inner = box.padded(-1)
        assert not inner.overlaps(other_box.padded(-1)), f"{name!r} lies over {other!r}"


def misread(cell, _seed):
    more = {f"{name}{IN_TRAINING}": True for name in ("exact",)} if cell.recipe.renumber else {}
    return outcome(not cell.recipe.renumber, **more)


@pytest.mark.parametrize("factors", STUDIES.values(), ids=STUDIES.keys())
def test_exactness_and_curves_are_legible(factors):
    results = results_of(tiny_study(factors=factors, seeds=3, claims=None), misread)
    check(exactness_figure(results))
    check(curve_figure(results, "loss"))


def test_the_resets_figure_is_legible():
    def decide(cell, _seed):
        factor = {"learning_rate_factor": 2.0} if cell.control else {}
        return outcome(True, update_norm=[1.0, 2.0], first_update_norm=1.0, **factor)

    check(Reset(results_of(tiny_study(TWO_STAGES, **{**RESET, "seeds": 3}), decide)).figures()["reset"])
