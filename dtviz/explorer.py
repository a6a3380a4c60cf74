"""Exploring by hand: widgets over `explorer_session`. The only module that imports ipywidgets.

    dtviz.explore("emoji-dmd")                # press Run, move the slider, draw a box on the plan, type words
    dtviz.explore("dog.trace")                # a saved trace, without any model

Widgets and matplotlib belong to the kernel's own thread. One worker thread generates and measures, and hands what is to be
shown to the kernel's loop.
"""

from __future__ import annotations

import asyncio
import html
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.widgets import RectangleSelector

from .explorer_chart import PALETTE, chart, encode, strip
from .explorer_session import Session, Stopped
from .explorer_state import METHODS, Side, read_box, read_number, read_seeds, write_seeds
from .generate import Progress
from .pairs import HANDOVERS, Pair, load
from .plot_explorer import Shown
from .trace import Trace

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
        self.noisy = widgets.Image(format="png", width=SIZE, height=SIZE)
        self.samples = widgets.Image(format="png")
        self.curve, self.timeline = widgets.HTML(), widgets.HTML()
        # The plan is an image, and the canvas on top of it is clear: a canvas takes two ways to and fro to be drawn
        here = widgets.Layout(grid_area="plan")
        self.plan = widgets.Image(format="png", width=SIZE, height=SIZE, layout=here)
        figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100)
        figure.patch.set_alpha(0)
        self.canvas = _canvas(figure)
        self.canvas.layout = here
        for part in ("toolbar_visible", "header_visible", "footer_visible", "resizable", "capture_scroll"):
            setattr(self.canvas, part, False)
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self._frame = self.axes.add_patch(Rectangle((0, 0), 0, 0, fill=False, edgecolor=PALETTE[1], linewidth=2))
        look = {"facecolor": PALETTE[1], "alpha": 0.25}
        self.selector = RectangleSelector(self.axes, self._select, useblit=False, props=look, button=[1])
        noisy = widgets.VBox([widgets.HTML("x<sub>t</sub>, decoded"), self.noisy])
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


class Explorer(widgets.VBox):
    """The widgets; made by `explore`. `session` holds what they show."""

    def __init__(self, session: Session, *, prompt: str, seeds: Sequence[int], sides: Sequence[Side]) -> None:
        self.session = session
        self._stop = threading.Event()
        self._worker = ThreadPoolExecutor(1, "dtviz-explorer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shown_live = 0.0
        wide = widgets.Layout(width="auto", flex="1 1 200px")
        self.prompt = widgets.Text(value=prompt, description="Prompt", layout=wide)
        self.seeds = widgets.Text(value=write_seeds(seeds), description="Seeds", tooltip="0-7 or 1, 5, 9")
        self.double = widgets.ToggleButton(value=len(sides) > 1, description="Two side by side", icon="columns")
        self.run_button = widgets.Button(description="Run", icon="play", button_style="primary")
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.progress = widgets.FloatProgress(max=1.0, layout=widgets.Layout(width="160px"))
        self.status = widgets.HTML()
        self.step = widgets.IntSlider(max=1, description="Step", readout=False, layout=wide)
        self.play = widgets.Play(max=1, interval=400)
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.seed = widgets.Dropdown(options=["0"], description="Large", layout=widgets.Layout(width="170px"))
        self.region = widgets.Text(
            description="Region",
            placeholder="draw on a plan, or top, left, bottom, right",
            continuous_update=False,
            layout=wide,
        )
        self.words = widgets.Text(
            description="Words", placeholder="dog face, cat face", continuous_update=False, layout=wide
        )
        self.name = widgets.Text(value="explorer", description="Save as")
        self.save_button = widgets.Button(description="Picture and code", icon="save")
        self.traces_button = widgets.Button(description="Traces", icon="save")
        self.code = widgets.HTML()
        self.panels = (Panel(self._draw), Panel(self._draw))
        both = (*sides, *sides[:1])[:2]
        self.choices = tuple(Choice(session.pair, side) for side in both) if session.pair is not None else ()
        self._controls = widgets.VBox(
            [
                widgets.HBox([self.prompt, self.seeds, self.double]),
                widgets.HBox(self.choices, layout=widgets.Layout(flex_flow="row wrap", grid_gap="0 24px")),
                widgets.HBox([self.run_button, self.stop_button, self.progress]),
            ]
        )
        self._looking = widgets.VBox(
            [
                widgets.HBox([self.play, self.step, self.seed]),
                widgets.HBox(self.panels, layout=widgets.Layout(flex_flow="row wrap", grid_gap="0 24px")),
                widgets.HBox([self.region, self.words]),
                widgets.HBox([self.name, self.save_button, self.traces_button]),
                self.code,
            ]
        )
        super().__init__([*([self._controls] if self.choices else []), self.status, self._looking])
        self.add_class("dtviz-explorer")
        self._connect()
        self._arrange()

    def _connect(self) -> None:
        self.run_button.on_click(lambda _: self._start())
        self.stop_button.on_click(lambda _: self._stop.set())
        self.save_button.on_click(lambda _: self._attempt(lambda: self._tell(self.save(self.name.value))))
        self.traces_button.on_click(
            lambda _: self._attempt(lambda: self._tell(self.session.save_traces(self.name.value)))
        )
        self.double.observe(lambda _: self._arrange(), "value")
        self.step.observe(lambda change: self._move(step=change.new), "value")
        self.seed.observe(lambda change: self._move(seed=int(change.new)), "value")
        self.region.observe(lambda change: self._attempt(lambda: self._move(box=read_box(change.new))), "value")
        self.words.observe(lambda change: self._attempt(lambda: self._move(words=change.new.split(","))), "value")

    # For code: everything at once, in the caller's thread

    def run(self) -> Explorer:
        """Generate and measure what the controls say, and show it; what Run does in the background.

        Raises:
            ValueError: a control's value is out of range.
        """
        self.session.run(**self._asked())
        self._begin()
        return self

    def look(self, **where: Any) -> Explorer:
        """Look at a `step`, `seed`, `box` or `words`, see `Session.look`."""
        self.session.look(**where)
        self._begin()
        return self

    def picture(self) -> Figure:
        """The picture twin of what is on screen; for papers, exports and pages that show no widgets."""
        return self.session.picture()

    def save(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write the picture and the code that makes it again, see `Session.save`."""
        return self.session.save(name)

    # For hands: in the background, and errors are said in one line

    def _asked(self) -> dict[str, Any]:
        sides = [choice.side() for choice in self.choices[: 2 if self.double.value else 1]]
        return {"prompt": self.prompt.value, "seeds": read_seeds(self.seeds.value), "sides": sides}

    def _start(self) -> None:
        self._stop.clear()
        self._busy(True)
        self._background(self._run)

    def _run(self) -> None:
        try:
            self.session.run(**self._asked(), watch=self._watch, tick=self._tick)
            self._post(self._say, "")
            self._post(self._begin)
        finally:
            self._post(self._busy, False)

    def _background(self, work: Callable[[], None]) -> None:
        """In the worker thread; it hands back to the loop that this is called from."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel: a plain script or a test
            self._loop = None
        self._worker.submit(self._attempt, work)

    def _post(self, change: Callable, *args: Any) -> None:
        """Change widgets on the kernel's loop; without one, here."""
        if self._loop is None:
            change(*args)
        else:
            self._loop.call_soon_threadsafe(change, *args)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            self._post(self._say, "Stopped. What was here before is still here.")
        except Exception as error:  # whatever happens in a thread or a callback has to be seen
            known = isinstance(error, (ValueError, OSError, NotImplementedError))
            line = " ".join(str(error).split())
            self._post(self._say, line if known else f"{type(error).__name__}: {line}", True)

    def _watch(self, number: int, progress: Progress) -> None:
        self._check()
        name = self.choices[number].method.value
        share = progress.done / progress.total
        self._post(self._advance, share, f"{name}: {share:.0%} done")
        if time.monotonic() - self._shown_live > 0.25:  # a look at the plans as they come
            pictures = self.session.live(progress)
            self._post(lambda: self.panels[number].live(pictures, chosen=-1))
            self._shown_live = time.monotonic()

    def _tick(self, number: int, done: int, total: int) -> None:
        self._check()
        self._post(self._advance, done / total, f"decoding and measuring, picture {done} of {total}")

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    # On the kernel's own thread

    def _busy(self, busy: bool) -> None:
        self.run_button.disabled, self.stop_button.disabled = busy, not busy
        self.progress.value = 0.0

    def _advance(self, share: float, text: str) -> None:
        self.progress.value = share
        self._say(text)

    def _say(self, text: str, alarm: bool = False) -> None:
        colour = "var(--jp-error-color1,#c62828)" if alarm else "inherit"
        role = "alert" if alarm else "status"
        self.status.value = f'<div role="{role}" style="color:{colour}">{html.escape(text)}</div>' if text else ""

    def _tell(self, paths: Iterable[Path]) -> None:
        self._say(f"Saved {', '.join(str(path) for path in paths)}.")

    def _arrange(self) -> None:
        """Show as many sides as there are."""
        second = "" if self.double.value else "none"
        for widget in self.choices[1:]:
            widget.layout.display = second
        two = len(self.session.seen) > 1
        self.panels[1].layout.display = "" if two else "none"
        for panel in self.panels:
            panel.layout.width = "calc(50% - 12px)" if two else "100%"
            panel.layout.min_width = "410px"
        self._looking.layout.display = "" if self.session.seen else "none"

    def _begin(self) -> None:
        """Set the controls to the session's state, and show it."""
        state = self.session.state
        with self.hold_trait_notifications():
            for slider in (self.play, self.step):
                slider.max = self.session.longest
        self.step.value = state.step
        self.seed.options = [(f"seed {seed}", str(seed)) for seed in state.seeds]
        self.seed.value = str(state.seed)
        self.region.value = "" if state.box is None else ", ".join(map(str, state.box))
        self.words.value = ", ".join(state.words)
        self._arrange()
        self._show()

    def _draw(self, box: tuple[int, int, int, int] | None) -> None:
        self.region.value = "" if box is None else ", ".join(map(str, box))

    def _move(self, **where: Any) -> None:
        """Look elsewhere: pictures at once, curves that are not known yet when they are."""
        if not self.session.seen:
            return
        self.session.look(**where, measure=False)
        self._show()
        if self.session.lacks():
            self._background(self._measure)

    def _measure(self) -> None:
        self.session.measure()
        self._post(self._show)

    def _show(self) -> None:
        sides = self.session.shown()
        top = max(max(line.y) for side in sides for line in side.curves)
        for panel, shown in zip(self.panels, sides, strict=False):
            panel.show(shown, top=top)
        code = html.escape(self.session.code(self.name.value or "explorer"))
        self.code.value = f"<details><summary>Code</summary><pre style='white-space:pre-wrap'>{code}</pre></details>"


def explore(
    source: Pair | Trace | str | os.PathLike | Sequence[Trace | str | os.PathLike] = "emoji-dmd",
    *,
    pair: Any = None,
    prompt: str = "",
    seeds: Iterable[int] = range(8),
    sides: Sequence[Side | Mapping[str, Any]] = ({"method": "distilled"},),
    embed: Any = None,
    text: Any = None,
    vae: Any = None,
    **where: Any,
) -> Explorer:
    """Widgets for looking at what models plan: in a notebook, the last line of a cell shows them.

    Args:
        source: a `Pair` or its name, to generate with; or a `Trace`, a file of one, or a list of two, to look at.
        pair: for traces, the pair, its name, or the pipeline that decodes them; None: no model is used, and colours are a preview.
        prompt, seeds: what the controls start with; "" is a prompt that the pair knows.
        sides: one or two, what `generate` is given for each: {"method": "hybrid", "k": 1}.
        embed, text, vae: see `Session`.
        where: `step`, `seed`, `box`, `words` to look at, of traces; see `Session.look`.

    Returns:
        The `Explorer`. In code, `run()` and `look(...)` do what the widgets do, `picture()` and `save(name)` keep it.

    Raises:
        ValueError: no such pair, a trace that is none, or a side that `generate` does not have.
        FileNotFoundError: no such file; `dtviz.Unavailable`: the pair is not on this machine.

        explorer = dtviz.explore("emoji-dmd", prompt="dog face", sides=[{"method": "hybrid"}, {"method": "base"}]).run()
        explorer.look(step=3, words=["dog face", "cat face"]).picture()
    """
    traces = source if isinstance(source, list | tuple) else [source]
    named = isinstance(source, str) and not Path(source).suffix
    if isinstance(source, Pair) or named:
        traces, pair = [], source
    pair = load(pair) if isinstance(pair, str) else pair
    session = Session(pair, embed=embed, text=text, vae=vae)
    if traces:
        session.open(traces)
        session.look(**where)
    elif where:
        raise ValueError(f"{', '.join(where)}: there is nothing to look at yet; give traces, or call run() and look()")
    chosen = [side if isinstance(side, Side) else Side(**side) for side in sides]
    if len(chosen) not in (1, 2):
        raise ValueError(f"sides has {len(chosen)} entries: an explorer shows one, or two side by side")
    state = session.state
    explorer = Explorer(
        session,
        prompt=prompt or state.prompt or "dog face",
        seeds=state.seeds if traces else tuple(seeds),
        sides=state.sides if traces else chosen,
    )
    if traces:
        explorer._begin()
    return explorer
