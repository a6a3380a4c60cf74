"""Explore by hand: widgets that are bound to a `Session`.

    dtviz.explore("emoji-dmd")  # press Run, move the slider, draw a box on x0, type words
    dtviz.explore("dog.trace")  # a saved trace, without a model

Widgets and matplotlib belong to the kernel's thread. A worker thread generates, and posts what is to be shown to its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from ipywidgets import HTML, Button, Dropdown, HBox, Image, Layout, Text, VBox
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.widgets import RectangleSelector

from ..core.decode import decode_latents
from ..core.pair import HANDOVERS, Pair
from ..core.trace import Trace
from ..models.load import load
from .figure import REGION, SIZE, Box, CurvesImage, Limits, Panel, montage, to_png, y_limits
from .session import SETTINGS, Session, Side, check_side
from .view import to_uint8

_KINDS = {"k": int, "handover": str, "steps": int, "guidance": float, "base_steps": int, "base_guidance": float}


class SideControls(VBox):
    """The method and settings of one side. An empty setting is the pair's own. Unused settings are disabled."""

    def __init__(self, pair: Pair, side: Side) -> None:
        narrow = {"style": {"description_width": "96px"}, "layout": Layout(width="240px")}
        self.method = Dropdown(options=list(SETTINGS), value=side["method"], description="Method", **narrow)
        self.fields = {}
        for name in _KINDS:
            text = {"value": str(side.get(name, "")), "description": name.replace("_", " ").capitalize()}
            text |= {"placeholder": str(getattr(pair, name, 1)), "options": HANDOVERS if name == "handover" else ()}
            self.fields[name] = widgets.Combobox(**text, **narrow)
        rows = [self.method, *self.fields.values()]
        super().__init__([HBox(row) for row in (rows[:1], rows[1:3], rows[3:5], rows[5:])])
        self.method.observe(self._enable, "value")
        self._enable()

    def side(self) -> dict[str, Any]:
        """Return the settings. ValueError: a text is not a number."""
        side = {"method": self.method.value}
        for name, field in self.fields.items():
            try:
                side[name] = _KINDS[name](field.value) if field.value.strip() else None
            except ValueError:
                message = f"{name}={field.value!r} must be of type {_KINDS[name].__name__}, or empty for the pair's own"
                raise ValueError(message) from None
        return check_side(side)

    def _enable(self, _=None) -> None:
        for name, field in self.fields.items():
            field.disabled = name not in SETTINGS[self.method.value]


class PanelWidget(VBox):
    """Images and curves of one side. `on_box` takes a box that was drawn on x0, or None after a click."""

    def __init__(self, on_box: Callable[[Box | None], None]) -> None:
        self._on_box, self._region = on_box, None
        square = {"width": f"{SIZE}px", "height": f"{SIZE}px", "object_fit": "contain", "grid_area": "x0"}
        self.title, self.caption, self.numbers = HTML(), HTML(), HTML()
        self.x_t, self.x0, self.samples = (Image(layout=Layout(**square)) for _ in range(3))
        self.curves = Image(layout=Layout(flex="1 1 300px", min_width="300px", max_width="640px", object_fit="contain"))
        self._curves = CurvesImage()
        for image in (self.x_t, self.x0):
            image.add_class("dtviz-pixels")
        # Boxes are drawn on a transparent canvas above the image of x0
        figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100, facecolor="none")
        self.canvas = _canvas(figure)
        self.axes = figure.add_axes((0, 0, 1, 1), aspect="equal")
        self.axes.axis("off")
        self._frame = self.axes.add_patch(Rectangle((0, 0), 0, 0, fill=False, edgecolor=REGION, linewidth=2))
        props = {"facecolor": REGION, "alpha": 0.25}
        self.selector = RectangleSelector(self.axes, self._select, useblit=False, props=props, button=[1])
        x0 = widgets.GridBox([self.x0, self.canvas], layout=Layout(grid_template_areas='"x0"', width=f"{SIZE}px"))
        columns = ((HTML("decoded x_t"), self.x_t), (self.caption, x0), (HTML("all seeds"), self.samples))
        columns = [VBox(column, layout=Layout(flex="none")) for column in columns]
        row = Layout(flex_flow="row wrap", grid_gap="0 8px", align_items="flex-end")
        super().__init__([self.title, HBox([*columns, self.curves], layout=row), self.numbers])

    def show(self, panel: Panel, limits: Sequence[Limits]) -> None:
        """Show a side's content."""
        self.title.value = f"<b>{html.escape(panel.title)}</b>"
        self.caption.value, self.numbers.value = html.escape(panel.caption), html.escape(panel.numbers)
        self.x_t.value, self.x0.value = (b"" if image is None else to_png(image) for image in (panel.x_t, panel.x0))
        self.samples.value = to_png(montage(panel.samples, framed=panel.sample))
        self.curves.value = self._curves.png(panel, limits)
        region = panel.x0.shape[:2], panel.box or (0, 0, 0, 0)
        if region != self._region:
            self._region, ((height, width), (top, left, bottom, right)) = region, region
            self.axes.set(xlim=(0, width), ylim=(height, 0))
            self._frame.set_bounds(left, top, right - left, bottom - top)
            self.canvas.draw_idle()

    def _select(self, start, end) -> None:
        """Pass the box on. A box of less than two pixels is a click, which removes the region."""
        height, width = self._region[0]
        top, bottom = sorted(min(max(round(event.ydata), 0), height) for event in (start, end))
        left, right = sorted(min(max(round(event.xdata), 0), width) for event in (start, end))
        self.selector.clear()
        self._on_box((top, left, bottom, right) if min(bottom - top, right - left) >= 2 else None)


class Explorer(VBox):
    """The widgets, as `explore` makes them. `session` holds what they show. `picture()` and `save(name)` are its methods."""

    def __init__(self, session: Session, *, prompt: str, seeds: Sequence[int], sides: Sequence[Side]) -> None:
        self.session, self.picture, self.save = session, session.picture, session.save
        self._stop = threading.Event()
        self._worker = ThreadPoolExecutor(1, "dtviz-explorer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._previewed = 0.0
        wide = Layout(width="auto", flex="1 1 200px")
        self.prompt = Text(prompt, description="Prompt", layout=wide)
        self.seeds = Text(", ".join(map(str, seeds)), description="Seeds", placeholder="0-7 or 1, 5, 9")
        self.double = widgets.ToggleButton(len(sides) > 1, description="Two sides", icon="columns")
        self.run_button = Button(description="Run", icon="play", button_style="primary")
        self.stop_button = Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.FloatProgress(max=1.0, layout=Layout(width="160px"))
        self.preview = Image(layout=Layout(display="none", width="128px", object_fit="contain"))
        self.status = HTML()
        self.step = widgets.IntSlider(max=1, description="Step", readout=False, layout=wide)
        self.play = widgets.Play(max=1, interval=400)
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.seed = Dropdown(options=["0"], description="Large", layout=Layout(width="170px"))
        self.words = Text(description="Words", placeholder="dog face, cat face", continuous_update=False, layout=wide)
        self.name = Text("explorer", description="Save as")
        self.save_button = Button(description="Picture and code", icon="save")
        self.traces_button = Button(description="Traces", icon="save")
        self.panels = tuple(PanelWidget(lambda box: self._look(box=box)) for _ in range(2))
        self.sides = tuple(SideControls(session.pair, side) for side in (*sides, *sides)[:2]) if session.pair else ()
        controls = [
            HBox([self.prompt, self.seeds, self.double]),
            HBox(self.sides, layout=Layout(flex_flow="row wrap", grid_gap="0 24px")),
            HBox([self.run_button, self.stop_button, self.progress, self.preview]),
        ]
        below = HBox([self.words, self.name, self.save_button, self.traces_button])
        self._view = VBox([HBox([self.play, self.step, self.seed]), *self.panels, below])
        pixels = HTML("<style>.dtviz-pixels {image-rendering: pixelated}</style>")
        super().__init__([*(controls if self.sides else []), self.status, self._view, pixels])
        self.add_class("dtviz-explorer")
        self.run_button.on_click(lambda _: self._start())
        self.stop_button.on_click(lambda _: self._stop.set())
        self.save_button.on_click(lambda _: self._attempt(lambda: self._save(session.save)))
        self.traces_button.on_click(lambda _: self._attempt(lambda: self._save(session.save_traces)))
        self.double.observe(lambda _: self._arrange(), "value")
        self.step.observe(lambda change: self._look(step=change.new), "value")
        self.seed.observe(lambda change: self._look(seed=change.new), "value")
        self.words.observe(lambda change: self._look(words=tuple(re.split(r"\s*,\s*", change.new))), "value")
        self._arrange()

    def run(self) -> Explorer:
        """Generate, measure and show what the controls say. ValueError: a control's value is out of range."""
        self.session.run(**self._arguments())
        self.refresh()
        return self

    def look(self, **where: Any) -> Explorer:
        """Look at a `step`, `seed`, `box` or `words`, see `Session.look`."""
        self.session.look(**where)
        self.refresh()
        return self

    def refresh(self) -> None:
        """Set the controls to the session's state, and show it."""
        session, seed = self.session, self.session.seed
        self.play.max = self.step.max = session.longest
        self.step.value, self.words.value = session.step, ", ".join(session.words)
        self.seed.options = [(f"seed {number}", number) for number in session.seeds]  # chooses the first
        self.seed.value = seed
        self._arrange()
        self._show()

    # In the worker thread

    def _arguments(self) -> dict[str, Any]:
        sides = [controls.side() for controls in self.sides[: 1 + self.double.value]]
        return {"prompt": self.prompt.value, "seeds": read_seeds(self.seeds.value), "sides": sides}

    def _run(self) -> None:
        try:
            self.session.run(**self._arguments(), progress=self._on_progress)
            self._post(self._say, "")
            self._post(self.refresh)
        finally:
            self._post(self._set_busy, False)

    def _on_progress(self, work: str, share: float, x0: Any) -> None:
        if self._stop.is_set():
            raise CancelledError("Stopped. The previous result is still shown.")
        self._post(setattr, self.progress, "value", share)
        self._post(self._say, f"{work}: {share:.0%} done")
        if x0 is not None and time.monotonic() > self._previewed + 0.25:
            images = to_uint8(decode_latents(x0, self.session.decoder))
            self._post(setattr, self.preview, "value", to_png(montage(images)))
            self._previewed = time.monotonic()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Show an error of a thread or callback in one line."""
        try:
            work()
        except CancelledError as stopped:
            self._post(self._say, str(stopped))
        except Exception as error:
            name = "" if isinstance(error, ValueError | OSError | NotImplementedError) else f"{type(error).__name__}: "
            self._post(self._say, name + " ".join(str(error).split()), True)

    def _post(self, change: Callable, *args: Any) -> None:
        """Change widgets on the kernel's loop. A script or a test has none."""
        self._loop.call_soon_threadsafe(change, *args) if self._loop else change(*args)

    # In the kernel's thread

    def _start(self) -> None:
        self._stop.clear()
        self._set_busy(True)
        with contextlib.suppress(RuntimeError):  # there is no loop
            self._loop = asyncio.get_running_loop()
        self._worker.submit(self._attempt, self._run)

    def _set_busy(self, busy: bool) -> None:
        self.run_button.disabled, self.stop_button.disabled = busy, not busy
        self.progress.value, self.preview.layout.display = 0.0, "" if busy else "none"

    def _say(self, text: str, alarm: bool = False) -> None:
        role, colour = ("alert", "var(--jp-error-color1,#c62828)") if alarm else ("status", "inherit")
        self.status.value = f'<div role="{role}" style="color:{colour}">{html.escape(text)}</div>' if text else ""

    def _save(self, save: Callable[[str], list[Path]]) -> None:
        self._say(f"Saved {', '.join(map(str, save(self.name.value)))}.")

    def _arrange(self) -> None:
        """Hide the second side, and everything before the first run."""
        views = len(self.session.views)
        for widget in self.sides[1:]:
            widget.layout.display = "" if self.double.value else "none"
        self.panels[1].layout.display = "" if views > 1 else "none"
        self._view.layout.display = "" if views else "none"

    def _look(self, **where: Any) -> None:
        if any(getattr(self.session, name) != value for name, value in where.items()):
            self._attempt(lambda: self.session.look(**where))
            self._attempt(self._show)

    def _show(self) -> None:
        panels = self.session.panels()
        limits = y_limits(panels)
        for widget, panel in zip(self.panels, panels, strict=False):
            widget.show(panel, limits)


def explore(
    source: Pair | Trace | str | os.PathLike | Sequence[Trace | str | os.PathLike] = "emoji-dmd",
    *,
    pair: Any = None,
    prompt: str = "",
    seeds: Iterable[int] = range(8),
    sides: Sequence[Side] = ({"method": "distilled"},),
    embed: Any = None,
    text: Any = None,
) -> Explorer:
    """Show widgets for the predicted x0 of every step. In a notebook, make them the last line of a cell.

    Args:
        source: a `Pair` or its name, to generate with; or one or two `Trace`s or files of them, to look at.
        pair: for traces, the pair, its name, or the pipeline that decodes them. None: no model is used.
        prompt, seeds: initial values of the controls.
        sides: one or two, the method and settings of `generate`: {"method": "hybrid", "k": 1}.
        embed, text: see `Session`.

    Raises: ValueError for an unknown pair or method, FileNotFoundError, Unavailable for a pair that is not on this machine.

    explorer = dtviz.explore("emoji-dmd", prompt="dog face", sides=[{"method": "hybrid"}, {"method": "base"}])
    explorer.run().look(step=3, words=["dog face", "cat face"]).picture()
    """
    traces = list(source) if isinstance(source, list | tuple) else [source]
    if isinstance(source, Pair) or (isinstance(source, str) and not Path(source).suffix):
        traces, pair = [], source
    sides = [check_side(side) for side in sides]
    if len(sides) not in (1, 2):
        raise ValueError(f"sides has {len(sides)} entries: an explorer shows one, or two side by side")
    session = Session(load(pair) if isinstance(pair, str) else pair, embed=embed, text=text)
    if traces:
        session.open(traces)
        prompt, seeds, sides = prompt or session.prompt, session.seeds, [side or sides[0] for side in session.sides]
    explorer = Explorer(session, prompt=prompt or "dog face", seeds=tuple(seeds), sides=sides)
    if traces:
        explorer.refresh()
    return explorer


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds and ranges of seeds.

    >>> read_seeds("0-3, 7")
    (0, 1, 2, 3, 7)
    """
    parts = [re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if None in parts or not 0 < sum(map(len, ranges)) <= 1000:
        raise ValueError(f"seeds={text!r} must be numbers and ranges, 1 to 1000 seeds, such as 0-7 or 1, 5, 20-23")
    return tuple(seed for part in ranges for seed in part)


def _canvas(figure: Figure) -> Any:
    """Return the figure as ipympl's widget, without decorations."""
    plt.switch_backend(backend := plt.get_backend())  # loads it, so that a notebook shows figures
    from ipympl.backend_nbagg import Canvas, FigureManager

    plt.switch_backend(backend)  # importing ipympl makes it the backend of all figures
    canvas = Canvas(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of ipympl's toolbar
        FigureManager(canvas, 0)
    for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable", "capture_scroll"):
        setattr(canvas, part, False)
    canvas.layout = Layout(grid_area="x0")
    return canvas
