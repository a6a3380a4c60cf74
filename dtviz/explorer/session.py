"""What an explorer does, without any widget: make the sides' traces, measure what is looked at, draw it, save it.

session = Session(dtviz.load("emoji-dmd"))
session.run("dog face", seeds=range(8), sides=[Side(method="hybrid"), Side(method="base")])
session.look(step=2, box=(0, 0, 32, 64), words=["dog face", "cat face"])
session.picture()
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from matplotlib.figure import Figure

from ..decode import decode_latents
from ..embed import Embedder, embedder
from ..errors import Unavailable
from ..generate import Progress, generate
from ..pairs import SPECS, Pair
from ..trace import Trace
from .chart import PALETTE, Line
from .picture import Shown, plot_explorer
from .seen import Seen, with_preview
from .state import Side, State, check_box, frame_at


class Stopped(Exception):
    """Raised within a run that was asked to stop."""


class Session:
    """One or two sides, each a trace that is looked at, and where one looks.

    Args:
        pair: the models; or a diffusers pipeline, which only decodes the traces that are opened; None: no model is used.
        embed: an embedder, or its name, for all distances. None: EfficientNet-Lite0 for embedded pairs, DreamSim for others,
            and where that is not on this machine the latents themselves; charts say which.
        text: an embedder with a text half, or its name, for timelines of words. None: emoji-clip for embedded pairs.
        vae: decodes in place of the pair's autoencoder, see `decode`; a tiny one makes large images quick.

    Attributes:
        state: what is looked at; `look` changes it.
        seen: the sides' traces, decoded and measured.
    """

    def __init__(
        self,
        pair: Any = None,
        *,
        embed: Embedder | str | None = None,
        text: Embedder | str | None = None,
        vae: Any = None,
    ) -> None:
        if pair is not None and not isinstance(pair, Pair | DiffusionPipeline):
            raise ValueError(
                f"pair is a {type(pair).__name__}: give a dtviz.Pair, what dtviz.load(name) returns, or a pipeline"
            )
        self.decoder, self.vae = pair, vae
        self.pair = pair if isinstance(pair, Pair) else None  # who can generate
        self._embed, self._text = embed, text
        self.state = State()
        self.seen: tuple[Seen, ...] = ()
        self.files: tuple[str, ...] = ()  # where the traces were saved, for code that reads them
        self._again = False  # whether the state's sides are all that it takes to make the traces again
        self._known: dict[tuple, np.ndarray] = {}

    # Traces

    def run(
        self,
        prompt: str,
        *,
        seeds: Iterable[int],
        sides: Sequence[Side],
        watch: Callable[[int, Progress], None] = lambda side, progress: None,
        tick: Callable[[int, int, int], None] = lambda side, done, total: None,
    ) -> None:
        """Generate each side and measure it.

        Args:
            prompt, seeds: as for `generate`.
            sides: one or two.
            watch: called after each denoiser call with the side's number and `generate`'s `Progress`.
            tick: called while decoding with the side's number, how many frames are done, of how many. What one of the two
                raises ends the run, and everything stays as it was before.

        Raises:
            ValueError: an argument is out of range, or there is no pair.
        """
        if self.pair is None:
            raise ValueError("there is no pair to run: these are traces alone; give explore a dtviz.Pair or its name")
        seeds = tuple(seeds)
        traces = []
        for number, side in enumerate(sides):
            told = None if watch is None else lambda progress, number=number: watch(number, progress)
            traces.append(generate(self.pair, prompt, seeds=seeds, x_t=True, watch=told, **side.settings()))
        self._hold(traces, tuple(map(self._short, sides)), tick=tick)
        self._again = True

    def open(
        self, traces: Sequence[Trace | str | os.PathLike], *, tick: Callable[[int, int, int], None] = lambda *_: None
    ) -> None:
        """Look at traces: one or two, or files that `Trace.save` wrote. ValueError: none, more than two, or different prompts' seeds."""
        loaded = [trace if isinstance(trace, Trace) else Trace.load(trace) for trace in traces]
        made = [Side.of(trace.provenance) for trace in loaded]
        self._hold(loaded, tuple(self._short(side or Side()) for side in made), tick=tick)
        files = [str(trace) for trace in traces if not isinstance(trace, Trace)]
        self.files = tuple(files) if len(files) == len(loaded) else ()
        named = self.pair is not None and all(t.provenance.get("pair") == self.pair.name for t in loaded)
        self._again = named and None not in made and all(isinstance(t.prompt, str) and t.seeds for t in loaded)

    def _hold(self, traces: list[Trace], sides: tuple[Side, ...], *, tick: Callable[[int, int, int], None]) -> None:
        if len(traces) not in (1, 2):
            raise ValueError(f"{len(traces)} traces: an explorer shows one, or two side by side")
        numbered = [trace.seeds or tuple(range(len(trace.final))) for trace in traces]
        if len(set(numbered)) > 1:
            raise ValueError(f"seeds differ, {numbered[0]} and {numbered[1]}: two sides show the same seeds")
        seen = []
        for number, trace in enumerate(traces):
            told = lambda done, total, number=number: tick(number, done, total)  # noqa: E731
            seen.append(Seen.look(trace, pair=self.decoder, embed=self.embed(), vae=self.vae, tick=told))
        self.seen, self._known, self.files = tuple(seen), {}, ()
        prompt = traces[0].prompt
        seeds = numbered[0]
        self.state = replace(
            self.state,
            prompt=prompt if isinstance(prompt, str) else "several prompts" if prompt else "",
            seeds=seeds,
            sides=sides,
            step=self.longest,
            seed=self.state.seed if self.state.seed in seeds else seeds[0],
            box=self.state.box if self.state.box and self._fits(seen, self.state.box) else None,
        )

    def _short(self, side: Side) -> Side:
        """The side without what the pair does anyway."""
        if self.pair is None:
            return side
        usual = {name: getattr(self.pair, name) for name in ("steps", "guidance", "base_steps", "handover")}
        usual["base_guidance"] = 0.0 if side.method == "hybrid" else self.pair.base_guidance
        return replace(side, **{name: None for name, value in usual.items() if getattr(side, name) == value})

    @staticmethod
    def _fits(seen: Sequence[Seen], box: tuple[int, int, int, int]) -> bool:
        return all(box[2] <= one.size[0] and box[3] <= one.size[1] for one in seen)

    # Models

    def embed(self) -> Embedder | None:
        """The embedder of all distances, loaded when first asked for; None: the latents themselves."""
        if self._embed is None and self.decoder is not None:
            try:
                self._embed = embedder("efficientnet-lite0" if self._ours() else "dreamsim")
            except Unavailable:
                return None
        if isinstance(self._embed, str):
            self._embed = embedder(self._embed)
        return self._embed

    def text(self) -> Embedder:
        """The embedder that reads words, loaded when first asked for. ValueError: none is known for this pair."""
        if self._text is None:
            if not self._ours():
                raise ValueError(
                    'words need a model that reads: give explore(text="clip:<hub id or folder>") and a pair'
                )
            self._text = "emoji-clip"
        if isinstance(self._text, str):
            self._text = embedder(self._text)
        return self._text

    def _ours(self) -> bool:
        return self.pair is not None and self.pair.name in SPECS and SPECS[self.pair.name].embedded

    # Looking

    @property
    def longest(self) -> int:
        """The steps of the longer side: the position of the final images."""
        return max((seen.steps for seen in self.seen), default=0)

    def look(
        self,
        *,
        step: int | None = None,
        seed: int | None = None,
        box: Sequence[int] | str | None = "same",
        words: Iterable[str] | str = "same",
        measure: bool = True,
    ) -> None:
        """Look at another step, sample, region or words; what is not given stays. With `measure`, curves are computed at once.

        ValueError: a step, seed or box that there is not.
        """
        new: dict[str, Any] = {}
        if step is not None:
            frame_at(step, 1, self.longest)
            new["step"] = step
        if seed is not None:
            if seed not in self.state.seeds:
                raise ValueError(f"seed={seed} is not one of the seeds {self.state.seeds}")
            new["seed"] = seed
        if box != "same":
            new["box"] = None if box is None else tuple(box)
            for seen in self.seen if box is not None else ():
                check_box(box, *seen.size)
        if words != "same":
            chosen = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
            if len(chosen) > len(PALETTE):
                raise ValueError(f"words has {len(chosen)} entries, and at most {len(PALETTE)} lines can be told apart")
            new["words"] = chosen
        self.state = replace(self.state, **new)
        if measure:
            self.measure()

    def measure(self) -> None:
        """Compute the curves of the region and the words that are looked at, if they are not known yet."""
        for kind, number, sample, what in self.lacks():
            seen = self.seen[number]
            curve = seen.region(what, sample) if kind == "region" else seen.timeline(self.text(), what, sample)
            self._known[kind, number, sample, what] = curve

    def lacks(self) -> list[tuple]:
        """The curves that are looked at and not known yet."""
        asked = [(kind, what) for kind, what in (("region", self.state.box), ("words", self.state.words)) if what]
        keys = [(kind, number, self.sample, what) for kind, what in asked for number in range(len(self.seen))]
        return [key for key in keys if key not in self._known]

    @property
    def sample(self) -> int:
        """The number of the sample that is shown large."""
        return self.state.seeds.index(self.state.seed) if self.state.seed is not None else 0

    def shown(self) -> list[Shown]:
        """Everything that is on screen, side by side."""
        return [self._shown(number, seen) for number, seen in enumerate(self.seen)]

    def _shown(self, number: int, seen: Seen) -> Shown:
        state, sample = self.state, self.sample
        frame = frame_at(state.step, seen.steps, self.longest)
        last = frame == seen.steps
        shares = [(i + 1) / seen.steps for i in range(seen.steps)]
        curves = [Line(f"seed {state.seed}", shares, seen.distances[:, sample])]
        if len(state.seeds) > 1:
            curves.append(Line(f"mean of {len(state.seeds)}", shares, seen.distances.mean(axis=1), "#888888"))
        region = self._known.get(("region", number, sample, state.box))
        if region is not None:
            curves.append(Line("region alone", shares, region, PALETTE[1], dashed=True))
        cosines = self._known.get(("words", number, sample, state.words))
        timeline = []
        if cosines is not None:  # the final image is not a step: the last plan stands at the end
            timeline = [Line(word, shares, cosines[:-1, i], PALETTE[i]) for i, word in enumerate(state.words)]
        level = "" if last else f", σ {float(seen.trace.sigmas[frame]):.3g}"
        return Shown(
            title=self.title(number),
            step="final image" if last else f"plan at step {frame + 1} of {seen.steps}{level}",
            noisy=None if seen.noisy is None else seen.noisy[frame, sample],
            plan=seen.pictures[frame, sample],
            samples=seen.pictures[frame],
            chosen=sample,
            curves=curves,
            timeline=timeline,
            measure=seen.measure,
            numbers=self._numbers(seen, frame),
            at=1.0 if last else shares[frame],
            box=state.box,
        )

    def title(self, number: int) -> str:
        """What ran on a side: its settings, and the steps and denoiser evaluations as they ran."""
        trace = self.seen[number].trace
        side = Side.of(trace.provenance)
        if self._again:
            name = self.state.sides[number].title
        else:
            name = (
                str(trace.provenance.get("method", "trace"))
                if side is None or side.k == 1
                else f"{side.method}, k={side.k}"
            )
        ran = " + ".join(f"{steps} {role}" for role, steps in trace.steps_run.items())
        nfe = sum(trace.provenance.get("nfe", {}).values())
        return name + (f": {ran} steps" if ran else "") + (f", {nfe} evaluations" if nfe else "")

    def _numbers(self, seen: Seen, frame: int) -> str:
        found = seen.spread(frame)
        if found is None:
            return "one sample: no diversity"
        what = "final images" if frame == seen.steps else "plans"
        interval = "" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
        effective = f"{seen.vendi(frame):.2f} of {found.n} in effect (Vendi, q = 2)"
        return f"mean pairwise distance of {found.n} {what}: {found.value:.3f}{interval}; {effective}"

    # Keeping

    def picture(self) -> Figure:
        """The picture twin of what is on screen. ValueError: there is nothing yet."""
        self._something()
        return plot_explorer(self.shown(), note=self.note())

    def note(self) -> str:
        """One line: prompt, pair, and how colours and distances were made."""
        state = self.state
        parts = [f'"{state.prompt}"' if state.prompt else "", f"seed {state.seed} large"]
        parts.insert(1, self._name())
        parts += [self.seen[0].colours, f"distance: {self.seen[0].measure}"]
        if state.words and self._text is not None:
            parts.append(f"words: {getattr(self._text, 'name', self._text)}, which learnt from finished images")
        return ", ".join(filter(None, parts)) + "."

    def _name(self) -> str:
        """Who drew it."""
        return (
            self.pair.name
            if self.pair is not None
            else type(self.decoder).__name__
            if self.decoder
            else "a trace, no model"
        )

    def code(self, name: str = "explorer") -> str:
        """The lines of Python that make the picture again."""
        again = self._again and self.pair is not None
        known = self.pair is not None and self.pair.name in SPECS
        yours = f"...  # your own {type(self.decoder).__name__}"
        pair = f'dtviz.load("{self.pair.name}")' if known else "None" if self.decoder is None else yours
        files = () if again else self.files or tuple(self._trace_names(name))
        return self.state.code(pair, name=name, files=files)

    def save(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write `name`.png and `name`.py, and the traces too where they cannot be made again; the paths written.

        ValueError: there is nothing yet, or the name is empty or has an ending.
        """
        figure = self.picture()
        stem = self._stem(name)
        paths = [] if self._again or self.files else self.save_traces(name)
        image, script = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.py")
        figure.savefig(image, dpi=200)
        script.write_text(self.code(str(name)) + "\n", encoding="utf-8")
        return [image, script, *paths]

    def save_traces(self, name: str | os.PathLike = "explorer") -> list[Path]:
        """Write each side's trace, with a linear preview of its colours, so that it can be looked at without a model."""
        self._something()
        self._stem(name)
        traces = [seen.trace for seen in self.seen]
        if self.decoder is not None:
            traces = [with_preview(trace, self.decoder) for trace in traces]
        return [trace.save(file) for trace, file in zip(traces, self._trace_names(name), strict=True)]

    def _trace_names(self, name: str | os.PathLike) -> list[str]:
        return [f"{name}{'' if number == 0 else f'-{number + 1}'}.trace" for number in range(len(self.seen))]

    def _something(self) -> None:
        if not self.seen:
            raise ValueError("there is nothing to show or save yet: press Run, or call run() or open()")

    @staticmethod
    def _stem(name: str | os.PathLike) -> Path:
        path = Path(name)
        if not path.name or path.suffix in (".png", ".py", ".trace"):
            raise ValueError(f"name={str(name)!r} must be a file's name without an ending, such as dog-face")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def live(self, progress: Progress) -> np.ndarray:
        """(sample, height, width, 3) uint8 of what a running batch plans."""
        images = decode_latents(progress.x0, self.decoder, vae=self.vae)
        return (images * 255).round().byte().movedim(1, -1).numpy()
