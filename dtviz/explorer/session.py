"""Do what an explorer does, without widgets: generate the sides, measure them, plot them, save them.

session = Session(dtviz.load("emoji-dmd"))
session.run("dog face", seeds=range(8), sides=[{"method": "hybrid", "k": 1}, {"method": "base"}])
session.look(step=2, box=(0, 0, 32, 64), words=["dog face", "cat face"])
session.picture()
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure

from ..core.generate import generate
from ..core.pair import Pair
from ..core.trace import Trace
from ..files import Unavailable
from ..metrics.diversity import mean_pairwise, vendi
from ..metrics.embedders import embedder
from ..models.registry import SPECS
from .figure import GREY, REGION, SEED, WORDS, Line, Panel, plot_explorer
from .view import View, with_preview

# Arguments of `generate` that each method uses
SETTINGS = {
    "base": ("base_steps", "base_guidance"),
    "distilled": ("steps", "guidance"),
    "hybrid": ("k", "handover", "steps", "guidance", "base_steps", "base_guidance"),
    "skip": ("k", "steps", "guidance"),
}
_python = partial(json.dumps, ensure_ascii=False)  # of texts, numbers and lists JSON is Python, with double quotes
Side = Mapping[str, Any]  # arguments of `generate` that make a side: "method" and its settings
Progress = Callable[[str, float, Any], None]  # takes the current work, its share done, and x0 of the batch or None


def check_side(side: Side) -> dict[str, Any]:
    """Return the arguments of `generate` that the side's method uses."""
    allowed = ("method", *SETTINGS["hybrid"])
    if not set(side) <= set(allowed):
        raise ValueError(f"side={dict(side)} has an unknown setting, allowed are {', '.join(allowed)}")
    method = side.get("method", "distilled")
    if method not in SETTINGS:
        raise ValueError(f"method={method!r} is not one of {', '.join(SETTINGS)}")
    return {"method": method} | {name: side[name] for name in SETTINGS[method] if side.get(name) is not None}


class Session:
    """One or two sides, each a trace, and the step, sample, region and words to look at.

    Args:
        pair: the models; or a pipeline that only decodes opened traces; or None, without any model.
        embed: embedder of all distances, or its name. None: EfficientNet-Lite0 for embedded pairs, DreamSim for others, and
            the latents themselves where that is not on this machine.
        text: embedder that reads words, or its name. None: emoji-clip for embedded pairs.
    """

    def __init__(self, pair: Any = None, *, embed: Any = None, text: Any = None) -> None:
        if pair is not None and not isinstance(pair, Pair | DiffusionPipeline):
            raise ValueError(f"pair is a {type(pair).__name__}: give what dtviz.load(name) returns, or a pipeline")
        self.decoder, self.pair = pair, pair if isinstance(pair, Pair) else None
        self.known = self.pair is not None and self.pair.name in SPECS
        embedded = self.known and SPECS[self.pair.name].embedded
        self.embed = embedder(embed) if isinstance(embed, str) else embed  # None: latents are compared
        if pair is not None and embed is None:
            with suppress(Unavailable):
                self.embed = embedder("efficientnet-lite0" if embedded else "dreamsim")
        self.text = text or ("emoji-clip" if embedded else None)  # loaded on first use
        self.views: tuple[View, ...] = ()  # the sides' traces, decoded and measured
        self.prompt, self.seeds = "", ()
        self.sides: tuple[dict[str, Any], ...] = ()  # settings that are not the pair's own
        self.step, self.seed, self.box, self.words = 0, None, None, ()  # see `look`
        self._files: list[str] | None = None  # of opened traces; None: `run` made them
        self._curves: dict[tuple, np.ndarray] = {}

    def run(
        self, prompt: str, *, seeds: Iterable[int], sides: Sequence[Side], progress: Progress = lambda *_: None
    ) -> None:
        """Generate and measure each side. An exception, also of `progress`, leaves the session as it was."""
        if self.pair is None:
            raise ValueError("there is no pair to run, only traces: give explore a dtviz.Pair or its name")
        seeds, traces = tuple(seeds), []
        for side in map(check_side, sides):

            def on_call(call, x0, method=side["method"]) -> None:
                done = seeds.index(call.seeds[0]) + len(call.seeds) * call.index / call.total
                progress(method, done / len(seeds), x0)

            traces.append(generate(self.pair, prompt, seeds=seeds, x_t=True, on_call=on_call, **side))
        self._show(traces, progress)
        self._files = None

    def open(self, traces: Sequence[Trace | str | os.PathLike]) -> None:
        """Look at one or two traces of the same seeds, or files that `Trace.save` wrote."""
        self._show([trace if isinstance(trace, Trace) else Trace.load(trace) for trace in traces])
        self._files, self.box = [str(trace) for trace in traces if not isinstance(trace, Trace)], None

    def _show(self, traces: Sequence[Trace], progress: Progress = lambda *_: None) -> None:
        seeds = {trace.seeds or tuple(range(len(trace.final))) for trace in traces}
        if len(traces) not in (1, 2) or len(seeds) > 1:
            raise ValueError(f"{len(traces)} traces of seeds {seeds}: give one, or two of the same seeds")
        options = {"pair": self.decoder, "embed": self.embed}
        options["on_frame"] = lambda share: progress("decoding and measuring", share, None)
        self.views = tuple([View.of(trace, **options) for trace in traces])
        self.prompt = traces[0].prompt if isinstance(traces[0].prompt, str) else ""
        self.seeds, self.sides, self.step = seeds.pop(), tuple(map(self._side, traces)), self.longest
        self.seed = self.seed if self.seed in self.seeds else self.seeds[0]
        self._curves = {}

    def _side(self, trace: Trace) -> dict[str, Any]:
        """Return the settings of a trace that are not the pair's own."""
        settings = {name: trace.provenance.get(name) for name in ("method", *SETTINGS["hybrid"])}
        own = {name: getattr(self.pair, name, None) for name in settings}
        if settings["method"] == "hybrid" and settings["base_guidance"] in (0, 1):  # a hybrid's base runs without
            own["base_guidance"] = settings["base_guidance"]
        listed = [name for name, value in settings.items() if isinstance(value, list | tuple) or value == own[name]]
        return check_side(settings | dict.fromkeys(listed)) if settings["method"] in SETTINGS else {}

    @property
    def longest(self) -> int:
        """Number of steps of the longer side: the position of the final images."""
        return max((view.steps for view in self.views), default=0)

    def look(self, *, step: Any = ..., seed: Any = ..., box: Any = ..., words: Any = ...) -> None:
        """Look elsewhere. What is not given stays.

        step: position of the slider from 0; `longest` is the final image. seed: of the large sample. words: to follow.
        box: (top, left, bottom, right) of a region in pixels, bottom and right excluded, or None.
        """
        step, seed = self.step if step is ... else step, self.seed if seed is ... else seed
        box = self.box if box is ... else box and tuple(box)
        words = self.words if words is ... else tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
        frame_at(step, 1, self.longest)
        if self.seeds and seed not in self.seeds:
            raise ValueError(f"seed={seed} is not one of the seeds {self.seeds}")
        for height, width in (view.images.shape[2:4] for view in self.views if box):
            if not (0 <= box[0] < box[2] <= height and 0 <= box[1] < box[3] <= width):
                raise ValueError(f"box={box} must be 0 <= top < bottom <= {height}, 0 <= left < right <= {width}")
        if len(words) > len(WORDS):
            raise ValueError(f"words has {len(words)} entries, at most {len(WORDS)} are allowed")
        if words and self.text is None:
            raise ValueError('words need a model that reads: give explore(text="clip:<hub id or folder>") and a pair')
        self.step, self.seed, self.box, self.words = step, seed, box, words

    def _curve(self, number: int, compute: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
        """Compute a curve of a side once."""
        key = number, *arguments
        if key not in self._curves:
            self._curves[key] = compute(*arguments)
        return self._curves[key]

    def panels(self) -> list[Panel]:
        """Return the content of each side."""
        return [self._panel(number, view) for number, view in enumerate(self.views)]

    def _panel(self, number: int, view: View) -> Panel:
        sample, frame = self.seeds.index(self.seed), frame_at(self.step, view.steps, self.longest)
        last = frame == view.steps
        shares = tuple((i + 1) / view.steps for i in range(view.steps))

        def line(name: str, values: np.ndarray, colour: str, dashed: bool = False) -> Line:
            return Line(name, shares, tuple(values.tolist()), colour, dashed)

        lines = [line(f"seed {self.seed}", view.distances[:, sample], SEED)]
        if len(self.seeds) > 1:
            lines.append(line(f"mean of {len(self.seeds)}", view.distances.mean(axis=1), GREY))
        if self.box:
            lines.append(line("region alone", self._curve(number, view.region, self.box, sample), REGION, dashed=True))
        charts = [("distance to the final image", tuple(lines))]
        if self.words:
            self.text = embedder(self.text) if isinstance(self.text, str) else self.text
            cosines = self._curve(number, view.timeline, self.text, self.words, sample)
            words = zip(self.words, cosines.T, WORDS, strict=False)
            charts.append(("cosine of x0 and words", tuple(line(*word) for word in words)))
        sigma = "" if last else f", σ {float(view.trace.sigmas[frame]):.3g}"
        return Panel(
            title=self._title(number),
            caption="final image" if last else f"x0 at step {frame + 1} of {view.steps}{sigma}",
            numbers=f"{view.measure}, {_diversity(view.features[frame])}",
            x_t=None if view.x_t is None else view.x_t[frame, sample],
            x0=view.images[frame, sample],
            samples=view.images[frame],
            sample=sample,
            charts=tuple(charts),
            share=1.0 if last else shares[frame],
            box=self.box,
        )

    def _title(self, number: int) -> str:
        """Return a side's settings, its steps and its denoiser evaluations."""
        trace, (method, *settings) = self.views[number].trace, self.sides[number].items() or [("method", "trace")]
        names = [method[1], *(f"{name}={value}" for name, value in settings)]
        steps = " + ".join(f"{count} {role}" for role, count in trace.steps_run.items())
        nfe = sum(trace.provenance.get("nfe", {}).values())
        return ", ".join(names) + (f": {steps} steps, {nfe} evaluations" if steps else "")

    def picture(self) -> Figure:
        """Plot what is looked at."""
        if not self.views:
            raise ValueError("there is nothing to show or save yet: press Run, or call run() or open()")
        source = self.pair.name if self.pair else type(self.decoder).__name__ if self.decoder else "no model"
        panels, prompt = self.panels(), self.prompt and f'"{self.prompt}"'
        words = f"words: {self.text.name}, trained on finished images" if self.words else ""
        parts = [prompt, source, f"seed {self.seed} large", self.views[0].colours, words]
        return plot_explorer(panels, note=", ".join(filter(None, parts)) + ".")

    def code(self, name: str = "explorer") -> str:
        """Return the lines of Python that make the picture again."""
        lines, pair = ["import dtviz", ""], _python(self.pair.name) if self.known else "None"
        if self.decoder is not None and not self.known:
            lines, pair = [*lines, f"pair = ...  # your own {type(self.decoder).__name__}"], "pair"
        if self._files is None:
            whole = self.seeds == tuple(range(len(self.seeds)))
            seeds = f"range({len(self.seeds)})" if whole else _python(self.seeds)
            source = f"{pair}, prompt={_python(self.prompt)}, seeds={seeds}, sides={_python(self.sides)}"
        else:
            source = f"{_python(self._files or self._trace_files(name))}, pair={pair}"
        look = {"step": self.step, "seed": self.seed, "box": self.box, "words": self.words}
        look = ", ".join(f"{key}={_python(value)}" for key, value in look.items() if value or value == 0)
        lines.append(f"explorer = dtviz.explore({source}){'.run()' if self._files is None else ''}")
        return "\n".join([*lines, f"explorer.look({look}).save({_python(name)})"])

    def save(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write `name`.png and `name`.py, and the traces if these lines cannot make them. Return the paths."""
        figure, path = self.picture(), Path(name)
        if not path.name or path.suffix in (".png", ".py", ".trace"):
            raise ValueError(f"name={str(name)!r} must be a file name without an ending, such as dog-face")
        path.parent.mkdir(parents=True, exist_ok=True)
        paths = [path.with_name(path.name + ending) for ending in (".png", ".py")]
        figure.savefig(paths[0], dpi=200)
        paths[1].write_text(self.code(str(name)) + "\n", encoding="utf-8")
        return paths + (self.save_traces(name) if self._files == [] else [])

    def save_traces(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write each side's trace with a linear preview of its colours, to be explored without a model."""
        traces = [view.trace if self.decoder is None else with_preview(view.trace, self.decoder) for view in self.views]
        return [trace.save(file) for trace, file in zip(traces, self._trace_files(name), strict=True)]

    def _trace_files(self, name: str | os.PathLike) -> list[str]:
        return [f"{name}.trace", f"{name}-2.trace"][: len(self.views)]


def frame_at(position: int, steps: int, longest: int) -> int:
    """Return the step, from 0, that a side of `steps` steps shows at a position of the slider; `steps` is its final image.

    Sides of different lengths are shown at the same share of their steps, as in Figure 5.

    >>> [frame_at(position, 4, 8) for position in range(9)]
    [0, 0, 1, 1, 2, 2, 3, 3, 4]
    """
    if not 0 <= position <= longest:
        raise ValueError(f"step={position} must be from 0 to {longest}, which is the final image")
    return steps if position == longest else math.ceil((position + 1) / longest * steps) - 1


def _diversity(features: np.ndarray) -> str:
    if len(features) == 1:
        return "one sample"
    spread = mean_pairwise(features)
    interval = "" if np.isnan(spread.low) else f" [{spread.low:.3f}, {spread.high:.3f}]"
    return f"mean pairwise of {spread.n} samples {spread.value:.3f}{interval}, Vendi score {vendi(features):.2f}"
