"""Explore by hand: widgets that are bound to a `Session`."""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as ui
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.widgets import RectangleSelector

from ..core.pair import Pair
from ..core.trace import Trace
from ..models.load import load
from ..plot.style import Limits
from .session import SETTINGS, Session, Side, check_side
from .view import REGION, Box, CurvesImage, Panel, montage, to_png, y_limits

_TYPES = {"k": int, "steps": int, "base_steps": int, "guidance": float, "base_guidance": float, "handover": str}
_WIDE, _LABEL = {"width": "auto", "flex": "1 1 200px"}, {"description_width": "initial"}
# Pixels of a picture on a laptop and on a wide screen. An ipympl canvas does not follow the page: there is one of each size.
SIZES = (240, 360)
_CSS = """<style>
.dtviz-explorer {--picture: 240px; --small: block; --large: none}
@media (min-width: 1700px) {.dtviz-explorer {--picture: 360px; --small: none; --large: block}}
.dtviz-row {display: flex; flex-flow: row wrap; gap: 0 8px}
.dtviz-row .jupyter-widgets {margin: 0; max-width: none; flex: none; overflow: visible}
.dtviz-row .dtviz-240 {display: var(--small); grid-area: 1 / 1}
.dtviz-row .dtviz-360 {display: var(--large); grid-area: 1 / 1}
.dtviz-row .dtviz-240 :focus, .dtviz-row .dtviz-360 :focus {outline: none}
.dtviz-row .dtviz-picture {width: var(--picture); height: var(--picture); object-fit: contain; grid-area: 1 / 1}
.dtviz-pixels .dtviz-picture {image-rendering: pixelated}
.dtviz-row .dtviz-curves {flex: 1 1 330px; min-width: 0; max-width: 600px; height: calc(var(--picture) + 28px); object-fit: contain}
[data-jp-theme-light="false"] .dtviz-curves {filter: invert(0.9) hue-rotate(180deg)}
</style>"""


class SideControls(ui.HBox):
    """The method of one side, and its settings as text: "k=2, steps=8". What is not given is the pair's own, shown in grey."""

    def __init__(self, pair: Pair, side: Side) -> None:
        settings = ", ".join(f"{name}={value}" for name, value in side.items() if name != "method")
        self.method = ui.Dropdown(options=list(SETTINGS), value=side["method"], layout={"width": "100px"})
        self.settings = ui.Text(settings, description="Settings", style=_LABEL, layout=_WIDE)
        super().__init__([self.method, self.settings], layout={"flex": "1 1 500px"})
        own = {key: ", ".join(f"{name}={getattr(pair, name, 1)}" for name in names) for key, names in SETTINGS.items()}
        ui.dlink((self.method, "value"), (self.settings, "placeholder"), own.get)

    def side(self) -> dict[str, Any]:
        side = {"method": self.method.value}
        for setting in filter(str.strip, self.settings.value.split(",")):
            name, _, value = (part.strip() for part in setting.partition("="))
            try:
                side[name] = _TYPES.get(name, str)(value)
            except ValueError:
                raise ValueError(f"{name}={value!r} must be of type {_TYPES[name].__name__}") from None
        return side


class RegionCanvas:
    """A transparent canvas over x0, on which a box is drawn. `on_box` takes the box, or () after a click."""

    def __init__(self, size: int, on_box: Callable[[Box], None]) -> None:
        plt.switch_backend(backend := plt.get_backend())  # loads it, so that a notebook shows figures
        from ipympl.backend_nbagg import Canvas, FigureManager

        plt.switch_backend(backend)  # importing ipympl makes it the backend of all figures
        figure = Figure(figsize=(size / 100, size / 100), dpi=100, facecolor="none")
        self.widget, self.on_box = Canvas(figure).add_class(f"dtviz-{size}"), on_box
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of ipympl's toolbar
            FigureManager(self.widget, 0)
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable", "capture_scroll"):
            setattr(self.widget, part, False)
        self.axes = figure.add_axes((0, 0, 1, 1), aspect="equal")
        self.axes.axis("off")
        self._frame = self.axes.add_patch(Rectangle((0, 0), 0, 0, fill=False, edgecolor=REGION, linewidth=2))
        props = {"facecolor": REGION, "alpha": 0.25}
        self._selector = RectangleSelector(self.axes, self.select, useblit=False, props=props, button=[1])

    def show(self, height: int, width: int, box: Box) -> None:
        """Fit the axes to an image, and draw the region."""
        top, left, bottom, right = box or (0, 0, 0, 0)
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self._frame.set_bounds(left, top, right - left, bottom - top)
        self.widget.draw_idle()

    def select(self, start: Any, end: Any) -> None:
        """Pass the box on. A box of less than two pixels is a click, which removes the region."""
        top, bottom = sorted(round(event.ydata) for event in (start, end))
        left, right = sorted(round(event.xdata) for event in (start, end))
        self._selector.clear()
        self.on_box((top, left, bottom, right) if min(bottom - top, right - left) >= 2 else ())


class PanelWidget(ui.VBox):
    """Images and curves of one side."""

    def __init__(self, on_box: Callable[[Box], None]) -> None:
        self.title, self.caption, self._region = ui.HTML(), ui.HTML(), None
        self.x_t, self.x0, self.samples = (ui.Image().add_class("dtviz-picture") for _ in range(3))
        self.curves, self._curves = ui.Image().add_class("dtviz-curves"), CurvesImage()
        self.canvases = [RegionCanvas(size, on_box) for size in SIZES]
        x0 = ui.GridBox([self.x0, *(canvas.widget for canvas in self.canvases)])
        columns = ((ui.HTML("decoded x_t"), self.x_t), (self.caption, x0), (ui.HTML("all seeds"), self.samples))
        super().__init__([self.title, ui.HBox([*map(ui.VBox, columns), self.curves]).add_class("dtviz-row")])

    def show(self, panel: Panel, limits: Sequence[Limits]) -> None:
        self.title.value = f"<b>{html.escape(panel.title)}</b> &emsp; {html.escape(panel.numbers)}"
        self.caption.value = html.escape(panel.caption)
        self.x_t.value, self.x0.value = (b"" if image is None else to_png(image) for image in (panel.x_t, panel.x0))
        self.samples.value, self.curves.value = to_png(montage(panel)), self._curves.png(panel, limits)
        (self.add_class if len(panel.x0) <= 128 else self.remove_class)("dtviz-pixels")
        region = *panel.x0.shape[:2], panel.box
        if region != self._region:
            self._region = region
            for canvas in self.canvases:
                canvas.show(*region)


class Explorer(ui.VBox):
    """The widgets, as `explore` makes them. `session` holds what they show and has `picture` and `save`."""

    def __init__(self, session: Session, *, prompt: str, seeds: Sequence[int], sides: Sequence[Side]) -> None:
        self.session, self.picture, self.save = session, session.picture, session.save
        self.prompt = ui.Text(prompt, description="Prompt", layout=_WIDE)
        self.seeds = ui.Text(", ".join(map(str, seeds)), description="Seeds", placeholder="0-7 or 1, 5, 9")
        self.double = ui.ToggleButton(len(sides) > 1, description="Two sides", icon="columns")
        pair = session.pair if isinstance(session.pair, Pair) else None
        self.sides = tuple(SideControls(pair, side) for side in (*sides, *sides)[:2]) if pair else ()
        self.run_button = ui.Button(description="Run", icon="play", button_style="primary")
        self.stop_button = ui.Button(description="Stop", icon="stop", disabled=True)
        self.status, self.play = ui.HTML(), ui.Play(max=1, interval=400)
        self.step = ui.IntSlider(max=1, description="Step", readout=False, style=_LABEL, layout=_WIDE)
        ui.jslink((self.play, "value"), (self.step, "value"))
        self.seed = ui.Dropdown(options=["0"], description="Large image", style=_LABEL, layout={"width": "190px"})
        hint = {"placeholder": "dog face, cat face", "continuous_update": False}
        self.words = ui.Text(description="Words", **hint, layout=_WIDE)
        self.name = ui.Text("explorer", description="Save as")
        self.save_button = ui.Button(description="Save", icon="save")
        self.panels = tuple(PanelWidget(lambda box: self._look(box=box)) for _ in range(2))
        self._rows = (ui.HBox([self.play, self.step, self.seed]), ui.HBox([self.words, self.name, self.save_button]))
        self._sides, self._view = ui.HBox(layout={"flex_flow": "row wrap", "grid_gap": "0 24px"}), ui.VBox()
        inputs, buttons = ui.HBox([self.prompt, self.seeds, self.double]), ui.HBox([self.run_button, self.stop_button])
        controls = [inputs, self._sides, buttons] if pair else []
        super().__init__([*controls, self.status, self._view, ui.HTML(_CSS)])
        self.add_class("dtviz-explorer")
        self.run_button.on_click(lambda _: setattr(self, "task", asyncio.ensure_future(self._run())))
        self.stop_button.on_click(lambda _: setattr(self, "_stopped", True))
        self.save_button.on_click(self._save)
        self.step.observe(lambda change: self._look(step=change.new), "value")
        self.seed.observe(lambda change: self._look(seed=change.new), "value")
        self.words.observe(lambda change: self._look(words=tuple(re.split(r"\s*,\s*", change.new))), "value")
        self.double.observe(lambda _: self._look(), "value")
        self._show()

    def run(self) -> Explorer:
        """Generate, measure and show what the controls say. ValueError: a control's value is out of range."""
        self.session.run(**self._arguments())
        return self.refresh()

    def look(self, **where: Any) -> Explorer:
        """Look at a `step`, `seed`, `box` or `words`, see `Session.look`."""
        self.session.look(**where)
        return self.refresh()

    def refresh(self) -> Explorer:
        """Set the controls to the session's state, and show it."""
        session, seed = self.session, self.session.seed
        self.play.max = self.step.max = session.longest
        self.step.value, self.words.value = session.step, ", ".join(session.words)
        self.seed.options = [(f"seed {number}", number) for number in session.seeds]  # chooses the first
        self.seed.value = seed
        self._show()
        return self

    def _arguments(self) -> dict[str, Any]:
        sides = [controls.side() for controls in self.sides[: 1 + self.double.value]]
        return {"prompt": self.prompt.value, "seeds": read_seeds(self.seeds.value), "sides": sides}

    async def _run(self) -> None:
        """Generate in a thread, so that the kernel hears *Stop*."""
        self._stopped, self.run_button.disabled, self.stop_button.disabled = False, True, False
        with self._reporting():
            await asyncio.to_thread(self.session.run, **self._arguments(), progress=self._on_progress)
            self.refresh()
            self._say("")
        self.run_button.disabled, self.stop_button.disabled = False, True

    def _on_progress(self, work: str, share: float) -> None:
        if self._stopped:
            raise InterruptedError("Stopped. The previous result is still shown.")
        self._say(f"{work}: {share:.0%} done")

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Show an error in one line."""
        try:
            yield
        except Exception as error:
            name = "" if isinstance(error, ValueError | OSError | NotImplementedError) else f"{type(error).__name__}: "
            self._say(name + " ".join(str(error).split()), colour="var(--jp-error-color1,#c62828)")

    def _say(self, text: str, colour: str = "inherit") -> None:
        self.status.value = text and f'<div role="status" style="color:{colour}">{html.escape(text)}</div>'

    def _save(self, _) -> None:
        with self._reporting():
            self._say(f"Saved {', '.join(map(str, self.save(self.name.value)))}.")

    def _look(self, **where: Any) -> None:
        if not where or any(getattr(self.session, name) != value for name, value in where.items()):
            with self._reporting():
                self.session.look(**where)
                self._show()

    def _show(self) -> None:
        """Show the controls of one side or two, and the results that there are."""
        self._sides.children = self.sides[: 1 + self.double.value]
        panels = self.session.panels()
        self._view.children = [self._rows[0], *self.panels[: len(panels)], self._rows[1]] if panels else []
        for widget, panel in zip(self.panels, panels, strict=False):
            widget.show(panel, y_limits(panels))


def explore(
    source: Pair | Trace | str | os.PathLike | Sequence[Trace | str | os.PathLike] = "emoji-dmd", *, pair: Any = None,
    prompt: str = "", seeds: Iterable[int] = range(8), sides: Sequence[Side] = ({"method": "distilled"},),
    embed: Any = None, text: Any = None,
) -> Explorer:  # fmt: skip
    """Show widgets for the predicted x0 of every step. In a notebook, make them the last line of a cell.

    Args:
        source: a `Pair` or its name, to generate with; or one or two `Trace`s or files of them, to look at.
        pair: for traces, the pair, its name, or the pipeline that decodes them. None: no model is used.
        prompt, seeds, sides: initial values of the controls. A side is a method of `generate` with its settings.
        embed, text: see `Session`.

    explorer = dtviz.explore("emoji-dmd", prompt="dog face", sides=[{"method": "hybrid", "k": 1}, {"method": "base"}])
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
    return explorer.refresh() if traces else explorer


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds and ranges of seeds, such as "0-3, 7"."""
    parts = [re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part) for part in text.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if None in parts or not 0 < sum(map(len, ranges)) <= 1000:
        raise ValueError(f"seeds={text!r} must be numbers and ranges, 1 to 1000 seeds, such as 0-7 or 1, 5, 20-23")
    return tuple(seed for part in ranges for seed in part)
