"""Generate, measure, plot and save what an explorer shows, without widgets."""

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure

from ..core.decode import fit_preview
from ..core.generate import generate
from ..core.pair import Pair
from ..core.trace import Trace
from ..files import Unavailable
from ..metrics.diversity import mean_pairwise, vendi
from ..metrics.embedders import embedder
from ..metrics.factors import SIDE
from ..models.registry import SPECS
from .view import GREY, REGION, SEED, WORDS, Line, Panel, View, plot_explorer

# Arguments of `generate` that each method uses
SETTINGS = {
    "base": ("base_steps", "base_guidance"),
    "distilled": ("steps", "guidance"),
    "hybrid": ("k", "handover", "steps", "guidance", "base_steps", "base_guidance"),
    "skip": ("k", "steps", "guidance"),
}
Side = Mapping[str, Any]  # arguments of `generate` that make a side: "method" and its settings


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
        spec = SPECS.get(pair.name) if isinstance(pair, Pair) else None
        self.pair, self.known, self.embedded = pair, spec is not None, spec is not None and spec.embedded
        self.embed = embedder(embed) if isinstance(embed, str) else embed  # None: latents are compared
        if pair is not None and embed is None:
            with suppress(Unavailable):
                self.embed = embedder("efficientnet-lite0" if self.embedded else "dreamsim")
        self.text = text or ("emoji-clip" if self.embedded else None)  # loaded on first use
        self.views: tuple[View, ...] = ()  # the sides' traces, decoded and measured
        self.prompt, self.seeds, self.sides, self.opened = "", (), (), False
        self.longest = 0  # steps of the longer side: the position of the final images
        self.step, self.seed, self.box, self.words = 0, None, (), ()  # see `look`

    def run(self, prompt: str, *, seeds: Iterable[int], sides: Sequence[Side], progress=lambda *_: None) -> None:
        """Generate and measure each side. `progress` takes the work and its share. An exception changes nothing."""
        if not isinstance(self.pair, Pair):
            raise ValueError("there is no pair to run, only traces: give explore a dtviz.Pair or its name")
        seeds, traces, sides = tuple(seeds), [], [check_side(side) for side in sides]
        for side in sides:

            def on_call(call, x0, method=side["method"]) -> None:
                done = seeds.index(call.seeds[0]) + len(call.seeds) * call.index / call.total
                progress(method, done / len(seeds))

            traces.append(generate(self.pair, prompt, seeds=seeds, x_t=True, on_call=on_call, **side))
        self._show(traces, sides, functools.partial(progress, "decoding and measuring"))
        self.opened = False

    def open(self, traces: Sequence[Trace | str | os.PathLike]) -> None:
        """Look at one or two traces of the same seeds, or files that `Trace.save` wrote."""
        traces = [trace if isinstance(trace, Trace) else Trace.load(trace) for trace in traces]
        methods = [trace.provenance.get("method") for trace in traces]
        self._show(traces, [{"method": method} if method in SETTINGS else {} for method in methods])
        self.opened, self.box = True, ()

    def _show(self, traces: list[Trace], sides: list[Side], on_frame: Callable = lambda share: None) -> None:
        seeds = {trace.seeds or tuple(range(len(trace.final))) for trace in traces}
        if len(traces) not in (1, 2) or len(seeds) > 1:
            raise ValueError(f"{len(traces)} traces of seeds {seeds}: give one, or two of the same seeds")
        self.views = tuple([View(one, pair=self.pair, embed=self.embed, on_frame=on_frame) for one in traces])
        self.prompt = traces[0].prompt if isinstance(traces[0].prompt, str) else ""
        self.seeds, self.sides = seeds.pop(), sides
        self.step = self.longest = max(view.steps for view in self.views)
        self.seed = self.seed if self.seed in self.seeds else self.seeds[0]
        self._curve = functools.cache(lambda compute, *arguments: compute(*arguments))

    def look(self, *, step: int | None = None, seed: int | None = None, box: Any = None, words: Any = None) -> None:
        """Look at another step, `longest` for the final image, another seed's large sample, other words or another region.

        box: (top, left, bottom, right) in pixels, bottom and right excluded, or () for none. What is not given stays.
        """
        step, seed = self.step if step is None else step, self.seed if seed is None else seed
        box, words = self.box if box is None else tuple(box), self.words if words is None else words
        words = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
        frame_at(step, 1, self.longest)
        if self.seeds and seed not in self.seeds:
            raise ValueError(f"seed={seed} is not one of the seeds {self.seeds}")
        for view in self.views if box else ():
            height, width = view.images.shape[2:4]
            if not (len(box) == 4 and 0 <= box[0] < box[2] <= height and 0 <= box[1] < box[3] <= width):
                raise ValueError(f"box={box} must be 0 <= top < bottom <= {height}, 0 <= left < right <= {width}")
            if view.embed is None:
                raise ValueError("a region needs an embedder: give explore a pair, and embed= its name")
        if len(words) > len(WORDS):
            raise ValueError(f"words has {len(words)} entries, at most {len(WORDS)} are allowed")
        if words and self.text is None:
            raise ValueError('words need a model that reads: give explore(text="clip:<hub id or folder>") and a pair')
        self.step, self.seed, self.box, self.words = step, seed, box, words

    def panels(self) -> list[Panel]:
        """Return the content of each side."""
        return [self._panel(view, side) for view, side in zip(self.views, self.sides, strict=True)]

    def _panel(self, view: View, side: Side) -> Panel:
        sample, frame = self.seeds.index(self.seed), frame_at(self.step, view.steps, self.longest)
        curves = [Line(f"seed {self.seed}", tuple(view.distances[:, sample]), SEED)]
        if len(self.seeds) > 1:
            curves.append(Line(f"mean of {len(self.seeds)}", tuple(view.distances.mean(axis=1)), GREY))
        if self.box:
            curves.append(Line("region alone", tuple(self._curve(view.region, self.box, sample)), REGION, "--"))
        charts = {"distance to the final image": curves}
        if self.words:
            self.text = embedder(self.text) if isinstance(self.text, str) else self.text
            cosines = self._curve(view.timeline, self.text, self.words, sample).T
            charts["cosine of x0 and words"] = list(map(Line, self.words, map(tuple, cosines), WORDS))
        if self.embedded and view.images.shape[2:4] == (SIDE, SIDE):
            charts |= self._curve(view.factors, sample)
        title, caption, share = _title(view.trace, side), "final image", 1.0
        if frame < view.steps:
            caption = f"x0, step {frame + 1} of {view.steps}, σ {view.trace.sigmas[frame]:.3g}"
            share = (frame + 1) / view.steps
        numbers = f"{view.embed.title if view.embed else 'latent cosine'} distance, {_diversity(view.features[frame])}"
        x_t = None if view.x_t is None else view.x_t[frame, sample]
        return Panel(title, caption, numbers, x_t, view.images[frame], sample, charts, share, self.box)

    def picture(self) -> Figure:
        """Plot what is looked at."""
        if not self.views:
            raise ValueError("there is nothing to show or save yet: press Run, or call run() or open()")
        source = getattr(self.pair, "name", type(self.pair).__name__) if self.pair else "no model"
        panels, prompt = self.panels(), self.prompt and f'"{self.prompt}"'
        words = f"words: {self.text.name}, trained on finished images" if self.words else ""
        parts = [prompt, source, f"seed {self.seed} large", self.views[0].colours, words]
        return plot_explorer(panels, note=", ".join(filter(None, parts)) + ".")

    def code(self, name: str = "explorer") -> str:
        """Return the lines of Python that make the picture again: of opened traces, from the files that `save` writes."""
        pair = f'"{self.pair.name}"' if self.known else "None" if self.pair is None else "..."  # ...: your own
        if self.opened:
            files = [f"{name}.trace", f"{name}-2.trace"][: len(self.views)]
            source, run = f"{files}, pair={pair}", ""
        else:
            source, run = f"{pair}, prompt={self.prompt!r}, seeds={self.seeds}, sides={self.sides}", ".run()"
        look = f"step={self.step}, seed={self.seed}, box={self.box}, words={self.words}"
        return f"import dtviz\n\nexplorer = dtviz.explore({source}){run}\nexplorer.look({look}).save({name!r})"

    def save(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write `name`.png, the lines of Python that make it (`name`.py), and the sides' traces. Return the paths.

        The traces hold a linear preview of their colours: `dtviz.explore` shows them without a model.
        """
        figure, path = self.picture(), Path(name)
        ends = (".png", ".py", ".trace", "-2.trace")[: 2 + len(self.views)]
        picture, code, *files = paths = [path.with_name(path.name + end) for end in ends]
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(picture, dpi=200)
        code.write_text(self.code(str(name)) + "\n", encoding="utf-8")
        for view, file in zip(self.views, files, strict=True):
            preview = {"preview": fit_preview(view.trace, self.pair).facts()} if self.pair else {}
            replace(view.trace, provenance=view.trace.provenance | preview).save(file)
        return paths


def frame_at(position: int, steps: int, longest: int) -> int:
    """Return the step that a side of `steps` steps shows at a position of the slider: at the same share, as in Figure 5."""
    if not 0 <= position <= longest:
        raise ValueError(f"step={position} must be from 0 to {longest}, which is the final image")
    return steps if position == longest else math.ceil((position + 1) / longest * steps) - 1


def _title(trace: Trace, side: Side) -> str:
    names = [f"{name}={value}" if name != "method" else value for name, value in side.items()] or ["trace"]
    steps = " + ".join(f"{count} {role}" for role, count in trace.steps_run.items())
    nfe = sum(trace.provenance.get("nfe", {}).values())
    return ", ".join(names) + (f": {steps} steps, {nfe} evaluations" if steps else "")


def _diversity(features: np.ndarray) -> str:
    if len(features) == 1:
        return "one sample"
    spread = mean_pairwise(features)
    interval = "" if np.isnan(spread.low) else f" [{max(spread.low, 0):.3f}, {spread.high:.3f}]"
    return f"mean pairwise of {spread.n} samples {spread.value:.3f}{interval}, Vendi score {vendi(features):.2f}"
