"""The parts of an explorer: the settings of a side, and its pictures and charts."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.widgets import RectangleSelector

from ..pairs import HANDOVERS, Pair
from .chart import PALETTE, chart, encode, strip
from .picture import Shown
from .state import METHODS, Side, read_number

SIZE = 196  # pixels of a large picture: two sides of two fit a laptop's page
_NUMBERS = {"steps": int, "guidance": float, "base_steps": int, "base_guidance": float}


class Choice(widgets.VBox):
    """The settings of one side; what its method has no use for cannot be typed into."""

    def __init__(self, pair: Pair, side: Side) -> None:
        narrow = {"style": {"description_width": "96px"}, "layout": widgets.Layout(width="240px")}
        self._pair = pair
        self.method = widgets.Dropdown(options=METHODS, value=side.method, description="Method", **narrow)
        self.k = widgets.BoundedIntText(value=side.k, min=1, max=max(pair.steps - 1, 1), description="k", **narrow)
        options = [("student's", HANDOVERS[0]), ("matched σ", HANDOVERS[1])]
        self.handover = widgets.Dropdown(
            options=options, value=side.handover or pair.handover, description="Handover", **narrow
        )
        self.numbers = {
            name: widgets.Text(
                value="" if getattr(side, name) is None else f"{getattr(side, name):g}",
                description=name.replace("_", " ").capitalize(),
                tooltip=f"{name}: empty takes the pair's",
                **narrow,
            )
            for name in _NUMBERS
        }
        self.fields = {"k": self.k, "handover": self.handover, **self.numbers}
        rows = [self.method, *self.fields.values()]
        super().__init__([widgets.HBox(row) for row in (rows[:1], rows[1:3], rows[3:5], rows[5:])])
        self.method.observe(self._enable, "value")
        self._enable()

    def side(self) -> Side:
        """What is chosen. ValueError: a number that is none."""
        numbers = {name: read_number(field.value, name, _NUMBERS[name]) for name, field in self.numbers.items()}
        return Side(method=self.method.value, k=self.k.value, handover=self.handover.value, **numbers)

    def _enable(self, _=None) -> None:
        for name, field in self.fields.items():
            field.disabled = not Side(method=self.method.value).uses(name)
        for name, field in self.numbers.items():
            without = (
                self.method.value == "hybrid" and name == "base_guidance"
            )  # a hybrid's base steps run without guidance
            field.placeholder = "0" if without else f"{getattr(self._pair, name):g}"


def _canvas(figure: Figure) -> Any:
    """The figure as ipympl's widget, on which boxes can be drawn.

    Importing ipympl makes it the backend of all figures of the process, which are not ours: it is set back.
    """
    backend = matplotlib.get_backend()
    from ipympl.backend_nbagg import Canvas, FigureManager

    matplotlib.use(backend)
    canvas = Canvas(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its toolbar hands a class more than that one takes
        FigureManager(canvas, 0)
    return canvas


class Panel(widgets.VBox):
    """One side's pictures and charts.

    drawn: called with (top, left, bottom, right) of a box that was drawn on the plan, None after a mere click.
    """

    def __init__(self, drawn: Callable[[tuple[int, int, int, int] | None], None]) -> None:
        self._drawn = drawn
        self._marked: tuple[tuple[int, int], tuple[int, int, int, int] | None] = ((1, 1), None)
        self.title, self.numbers = widgets.HTML(), widgets.HTML()
        whole = {"object_fit": "contain"}  # pictures that are not square too
        self.noisy = widgets.Image(format="png", width=SIZE, height=SIZE, layout=widgets.Layout(**whole))
        self.samples = widgets.Image(format="png")
        self.curve, self.timeline = widgets.HTML(), widgets.HTML()
        # The plan is an image, and the canvas on top of it is clear: a canvas takes two ways to and fro to be drawn
        here = widgets.Layout(grid_area="plan", **whole)
        self.plan = widgets.Image(format="png", width=SIZE, height=SIZE, layout=here)
        figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
        figure.patch.set_alpha(0)
        self.canvas = _canvas(figure)
        self.canvas.layout = widgets.Layout(grid_area="plan")
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable", "capture_scroll"):
            setattr(self.canvas, part, False)
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set_aspect("equal")
        self._frame = self.axes.add_patch(Rectangle((0, 0), 0, 0, fill=False, edgecolor=PALETTE[1], linewidth=2))
        look = {"facecolor": PALETTE[1], "alpha": 0.25}
        self.selector = RectangleSelector(self.axes, self._select, useblit=False, props=look, button=[1])
        noisy = widgets.VBox([widgets.HTML("x<sub style='line-height:0'>t</sub>, decoded"), self.noisy])
        self.step = widgets.HTML()
        place = widgets.Layout(grid_template_areas='"plan"', width=f"{SIZE}px")
        plan = widgets.GridBox([self.plan, self.canvas], layout=place)
        pictures = widgets.HBox([noisy, widgets.VBox([self.step, plan])])
        left = widgets.VBox([pictures, widgets.HTML("all seeds at this step"), self.samples, self.numbers])
        row = widgets.Layout(flex_flow="row wrap", grid_gap="0 12px")
        super().__init__([self.title, widgets.Box([left, widgets.VBox([self.curve, self.timeline])], layout=row)])

    def show(self, shown: Shown, *, top: float) -> None:
        """Swap in one step's content; `top` is how far the similarity curve's axis reaches."""
        self.title.value = f"<b>{html.escape(shown.title)}</b>"
        self.step.value = html.escape(shown.step)
        self.noisy.value = b"" if shown.noisy is None else encode(shown.noisy, least=SIZE)
        self.live(shown.samples, chosen=shown.chosen)
        self.numbers.value = f"<div style='max-width:400px;line-height:1.3'>{html.escape(shown.numbers)}</div>"
        label = f"{shown.measure} to the final image"
        self.curve.value = chart(shown.curves, at=shown.at, label=label, top=top)
        lines = shown.timeline
        self.timeline.value = chart(lines, at=shown.at, label="cosine of plan and words") if lines else ""
        self.plan.value = encode(shown.plan, least=SIZE)
        self._mark(shown.plan.shape[:2], shown.box)

    def _mark(self, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> None:
        """Frame a box of a picture of (height, width)."""
        if (size, box) == self._marked:
            return
        self._marked = size, box
        self.axes.set(xlim=(0, size[1]), ylim=(size[0], 0))
        top, left, bottom, right = box or (0, 0, 0, 0)
        self._frame.set(xy=(left, top), width=right - left, height=bottom - top, visible=box is not None)
        self.canvas.draw_idle()

    def live(self, pictures: np.ndarray, *, chosen: int) -> None:
        """The strip of samples."""
        sheet = strip(pictures, marked=chosen)
        self.samples.width = str(sheet.shape[1])
        self.samples.value = encode(sheet, least=1)

    def _select(self, start, end) -> None:
        """Pixels from one corner to the other; what is less than two across is a click, which takes the box away."""
        height, width = self._marked[0]
        rows = sorted(min(max(round(event.ydata), 0), height) for event in (start, end))
        columns = sorted(min(max(round(event.xdata), 0), width) for event in (start, end))
        self.selector.clear()
        thin = rows[1] - rows[0] < 2 or columns[1] - columns[0] < 2
        self._drawn(None if thin else (rows[0], columns[0], rows[1], columns[1]))
