"""Exploring by hand: widgets over a `Session`.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from ..generate import Progress
from ..pairs import Pair, load
from ..trace import Trace
from .panel import Choice, Panel
from .session import Session, Stopped
from .state import Side, read_box, read_seeds, write_seeds


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
