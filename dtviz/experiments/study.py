"""Run, decode and embed a pair with every result cached, and save figures with their provenance.

study = Study.open("emoji-dmd", seeds=range(30))
features = study.features("dog face", "hybrid")  # (30, d), from the cache if it was computed before
study.save(figure, "fig5_similarity_to_final", table=table, units={"value": "1 - cosine"}, prompts=["dog face"])
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache as memoize
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from ..controls import attach
from ..core.decode import decode, decode_latents
from ..core.generate import SAMPLING, generate
from ..core.pair import Pair
from ..core.trace import FORMAT, Trace
from ..files import write_atomic
from ..metrics.embedders import Embedder, embedder
from ..models.load import check_available, load
from ..models.registry import SPECS
from ..plot import caption, style
from . import interventions
from .cache import Cache
from .paper import EMOJI_PROMPTS, PAPER_BASE_STEPS, PAPER_PROMPTS, QUICK_PROMPTS, check_profile, figures_folder
from .tables import save as save_table

Methods = Mapping[str, tuple[str, dict[str, Any]]]  # label -> (method, settings)

version = memoize(installed_version)  # it reads a file each time


@dataclass(frozen=True)
class Study:
    """A pair, an embedder (None: nothing is measured), the seeds of every prompt, and a cache.

    The settings of a run are those of `generate`, and interventions by name:
    edit="zero" | "mean" | "own" | ("repel", strength), cads=scale, controls=[Applied, ...].
    """

    pair: Pair
    embed: Embedder | None
    seeds: tuple[int, ...]
    cache: Cache
    profile: str = "quick"
    out: str | Path = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)  # label -> how it ran, filled as results are read

    @classmethod
    def open(
        cls, pair: str, *, seeds: Iterable[int], profile: str = "quick", measure: bool = True, embedder_name: str = "",
        out: str | Path = "", cache: Cache | None = None, **settings: Any,
    ) -> Study:  # fmt: skip
        """Load a pair by name, and with `measure` an embedder. Unavailable: one is not on this machine.

        Args:
            profile: "quick", "full" or "paper". The last runs the settings of the paper's code and 50 base steps.
            embedder_name: "" takes EfficientNet-Lite0 for embedded pairs and DreamSim for hub pairs.
            out, settings: folder of the figures, and attributes of the `Pair` to change, such as base_steps.
        """
        if not (seeds := tuple(seeds)):
            raise ValueError(f"seeds={seeds} must hold at least one seed")
        check_profile(profile)
        check_available(pair)
        default = "efficientnet-lite0" if embedded(pair) else "dreamsim"
        embed = embedder(embedder_name or default) if measure else None
        settings = ({"base_steps": PAPER_BASE_STEPS} if profile == "paper" else {}) | settings
        models = replace(load(pair, paper_settings=profile == "paper"), **settings)
        return cls(models, embed, seeds, cache or Cache(), profile, out)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Return the prompts that this pair is studied on."""
        return EMOJI_PROMPTS if embedded(self.pair.name) else PAPER_PROMPTS

    @property
    def folder(self) -> Path:
        """Return the folder of the figures."""
        return figures_folder(self.pair.name, self.profile, self.out)

    def choose(self, n: int) -> tuple[str, ...]:
        """Return the first `n` prompts; 0 takes all, and five in the quick profile. ValueError: there are fewer."""
        if not 0 <= n <= len(self.prompts):
            raise ValueError(f"n_prompts={n} must be from 1 to {len(self.prompts)}, or 0 for the profile's number")
        return self.prompts[: n or (QUICK_PROMPTS if self.profile == "quick" else None)]

    def trace(self, prompt: str, method: str, *, x_t: bool = False, **settings: Any) -> Trace:
        """Return the run of all seeds."""
        blocks = [self._trace(prompt, method, seeds, x_t=x_t, **settings) for seeds in self._blocks()]
        return Trace.join(blocks).select(self._rows())

    def features(self, prompt: str, method: str, *, steps: bool = False, **settings: Any) -> np.ndarray:
        """Return features of the final images, (seed, d), or with `steps` of x0 at every step, (step, seed, d)."""
        part = "x0" if steps else "final"

        def embed(trace: Trace) -> dict[str, np.ndarray]:
            latents = getattr(trace, part)
            flat = latents.flatten(0, -4)
            size = max(1, 16384 // flat[0, 0].numel())  # 256 at 8x8, one at SDXL's 128x128
            features = np.concatenate([self.embed(decode_latents(rows, self.pair)) for rows in flat.split(size)])
            return {"features": features.reshape(*latents.shape[:-3], -1)}

        work = ("features", embed, {"embedder": self.embed.fingerprint, "of": part})
        blocks = [self._block(prompt, method, seeds, settings, *work)[0]["features"] for seeds in self._blocks()]
        return np.concatenate(blocks, axis=-2)[..., self._rows(), :]

    def images(self, prompt: str, method: str, **settings: Any) -> np.ndarray:
        """Return the final images, (seed, 3, height, width) float32 in [0, 1]."""
        work = ("images", lambda trace: {"images": decode(trace, self.pair, final=True).numpy()}, {})
        blocks = [self._block(prompt, method, seeds, settings, *work)[0]["images"] for seeds in self._blocks()]
        return np.concatenate(blocks)[self._rows()]

    def grid(self, prompts: Iterable[str], methods: Methods) -> tuple[np.ndarray, pd.DataFrame]:
        """Return images (prompt, method x seed, 3, height, width) for `plot.plot_image_grid`, and what each one shows."""
        prompts, rows = list(prompts), []
        for prompt in tqdm(prompts, desc="prompts"):
            rows.append(np.concatenate([self.images(prompt, method, **how) for method, how in methods.values()]))
        cells = pd.MultiIndex.from_product([prompts, methods, self.seeds], names=["prompt", "method", "seed"])
        return np.stack(rows), cells.to_frame(index=False)

    def step_images(self, trace: Trace, *, columns: int, what: str = "x0"):
        """Return images (column, 3, height, width) of the first seed at evenly spaced steps, captions, and a table.

        Spare columns are nan, with an empty caption.
        """
        steps = np.unique(np.linspace(0, len(trace.sigmas) - 1, columns).round().astype(int))
        spare = columns - len(steps)
        images = decode_latents(getattr(trace, what)[steps, 0], self.pair).numpy()
        images = np.pad(images, [(0, spare), (0, 0), (0, 0), (0, 0)], constant_values=np.nan)
        captions = [f"step {step + 1}/{len(trace.sigmas)}" for step in steps] + [""] * spare
        numbers = {name: getattr(trace, f"{name}s")[steps].double().numpy() for name in ("timestep", "sigma")}
        return images, captions, pd.DataFrame({"step": steps + 1} | numbers)

    def features_of(self, images: np.ndarray) -> np.ndarray:
        """Return cached features (n, d) of images (n, 3, h, w) float32 in [0, 1]."""
        key = {"images": hashlib.sha256(images.tobytes()).hexdigest(), "shape": list(images.shape)}
        key["embedder"] = self.embed.fingerprint
        return self._cached("features", key, lambda: {"features": self.embed(images)})["features"]

    def seconds(self, methods: Methods, *, prompt: str, turns: int = 3) -> dict[str, float]:
        """Return seconds per image of each method, from prompt to decoded image: the fastest turn after one to warm up."""
        runs = [self._key(prompt, method, (), settings) for method, settings in methods.values()]
        key = {"methods": runs, "turns": turns, "machine": platform.node(), "threads": torch.get_num_threads()}

        def measure() -> dict[str, np.ndarray]:
            seconds = np.empty((turns + 1, len(methods)))
            for row in seconds:
                for i, (method, settings) in enumerate(methods.values()):
                    start = time.perf_counter()
                    trace = self._generate(prompt, method, tuple(range(self.pair.batch_size)), **settings)
                    decode(trace, self.pair, final=True)  # returns CPU images, so the device has finished
                    row[i] = (time.perf_counter() - start) / self.pair.batch_size
            return {"seconds": seconds[1:].min(axis=0)}

        return dict(zip(methods, self._cached("seconds", key, measure)["seconds"].tolist(), strict=True))

    def ran(self, method: str, **settings: Any) -> dict[str, Any]:
        """Return the steps, evaluations, guidance and versions of samples that were read. KeyError: none were."""
        return self.runs[_label(method, settings)]

    def describe(self, *, prompts: int = 0) -> str:
        """Return a caption: pair, prompts, seeds, profile, embedder, and up to four runs with steps and guidance."""
        count = f"{prompts} prompt{'s' if prompts > 1 else ''} x " if prompts else ""
        text = f"{self.pair.name}, {count}{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}, {self.profile} profile."
        text += f" Distance: {self.embed.title}." if self.embed else ""
        runs, names = [], {"base": "base_guidance", "distilled": "guidance"}
        for label, run in self.runs.items():
            parts = [f"{n} {role} (guidance {_scales(run[names[role]])})" for role, n in run["steps_run"].items()]
            runs.append(f"{label}: {' + '.join(parts)}")
        return f"{text} Steps run: {'; '.join(runs)}." if 0 < len(runs) <= 4 else text  # the provenance has all

    def provenance(self) -> dict[str, Any]:
        """Return how the results were made, JSON-compatible."""
        pair, packages = self.pair, ("dtviz", "torch", "diffusers", "transformers", "numpy")
        facts = {"pair": pair.name, "fingerprint": pair.fingerprint, "timesteps": pair.timesteps}
        facts["schedulers"] = [type(one).__name__ for one in (pair.base_scheduler, pair.distilled_scheduler)]
        facts |= {"embedder": self.embed.fingerprint if self.embed else None, "profile": self.profile}
        versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
        return facts | {"seeds": list(self.seeds), "runs": self.runs, "versions": versions}

    def save(
        self, figure: Any, name: str, *, table: pd.DataFrame | None = None, units: Mapping[str, str] | None = None,
        prompts: Sequence[str] = (), text: str | None = None, note: str = "", **provenance: Any,
    ) -> list[str]:  # fmt: skip
        """Add a caption to a figure and write it with its table and provenance into `folder`. Return the files' names.

        Args:
            table, units: for the .csv, see `tables.save`. prompts: those shown, for the caption and the provenance.
            text, note: caption, None for `describe`, and a sentence after it. provenance: further facts for the .json.
        """
        text = self.describe(prompts=len(prompts)) if text is None else text
        facts = self.provenance() | {"figure": name, "prompts": list(prompts)} | provenance
        files = {"table": table, "units": units, "provenance": facts}
        return [path.name for path in save_figure(figure, self.folder, name, text=f"{text} {note}".strip(), **files)]

    def _blocks(self) -> list[tuple[int, ...]]:
        """Return the aligned blocks of seeds that hold ours, so that studies of different sizes share results."""
        size = self.pair.batch_size
        return [tuple(range(start, start + size)) for start in sorted({seed - seed % size for seed in self.seeds})]

    def _rows(self) -> list[int]:
        """Return the positions of our seeds among those of the blocks."""
        seeds = [seed for block in self._blocks() for seed in block]
        return [seeds.index(seed) for seed in self.seeds]

    def _key(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
        """Return everything that decides a block's samples. All pairs of one base share the base's."""
        alone = method == "base"
        defaults = ["base_steps", "base_guidance", "size"] + ["call"] * bool(self.pair.call)
        defaults += [] if alone else ["steps", "guidance", "handover", "timesteps"]
        chosen = {name: getattr(self.pair, name) for name in defaults} | settings
        # a control at scale 0 changes nothing: the plain model's results are read
        if controls := [applied.facts() for applied in chosen.pop("controls", ()) if applied.scale]:
            chosen["controls"] = [{key: value for key, value in facts.items() if key != "name"} for facts in controls]
        base, weights = self.pair.base, (alone and self.pair.base_fingerprint) or self.pair.fingerprint
        numbers = [str(base.dtype), base.device.type, version("torch"), version("diffusers")]
        chosen |= {"method": method, "prompt": prompt, "seeds": list(seeds), "weights": weights}
        return chosen | {"numbers": numbers, "format": FORMAT, "sampling": SAMPLING}

    def _generate(self, prompt, method, seeds, *, edit=None, cads=0.0, controls=(), **settings: Any) -> Trace:
        """Generate with the interventions that the settings name."""
        edit_x0 = None if edit is None else interventions.edit_named(edit)
        with ExitStack() as stack:
            attached = stack.enter_context(attach(self.pair, *(applied for applied in controls if applied.scale)))
            hooks = [attached.on_call] if attached.controls else []
            if cads:
                hooks.append(stack.enter_context(interventions.cads(self.pair, cads)))
            settings["on_call"] = (lambda *call: [hook(*call) for hook in hooks]) if hooks else None
            trace = generate(self.pair, prompt, method=method, seeds=seeds, edit_x0=edit_x0, **settings)
        return replace(trace, provenance=trace.provenance | {"controls": attached.facts()})

    def _trace(self, prompt: str, method: str, seeds: tuple[int, ...], **settings: Any) -> Trace:
        arrays, facts = self._block(prompt, method, seeds, settings, "trace", Trace.arrays, {})
        return Trace.build({name: torch.as_tensor(array) for name, array in arrays.items()}, facts)

    def _block(self, prompt, method, seeds, settings, kind: str, work: Callable[[Trace], dict], extra: dict):
        """Return `work(trace)` of a block, cached with `extra` in the key, and the trace's facts. Keep in `runs` how it ran."""
        settings, run = {"x_t": False} | settings, self._generate if kind == "trace" else self._trace

        def compute() -> dict[str, Any]:
            trace = run(prompt, method, seeds, **settings)
            text = json.dumps(trace.facts()).encode()  # as bytes, so that the cache keeps it beside the arrays
            return work(trace) | {"facts": np.frombuffer(text, dtype=np.uint8).copy()}

        arrays = dict(self._cached(kind, self._key(prompt, method, seeds, settings) | extra, compute))
        facts = json.loads(bytes(arrays.pop("facts")))
        how = {key: value for key, value in facts["provenance"].items() if key not in ("pair", "method", "fingerprint")}
        self.runs[_label(method, settings)] = {"steps_run": facts["steps_run"]} | how
        facts["provenance"]["pair"] = self.pair.name  # another pair of this base may have made the samples
        return arrays, facts

    def _cached(self, kind: str, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Use the cache, except for a pair made by hand: nothing says when its weights change."""
        return self.cache.get_or_compute(kind, key, compute) if self.pair.fingerprint else compute()


def embedded(pair: str) -> bool:
    """Tell whether dtviz ships this pair. The factors of its images are then known."""
    return pair in SPECS and SPECS[pair].embedded


def save_figure(
    figure: Any, folder: str | Path, name: str, *, provenance: Mapping[str, Any], text: str = "",
    table: pd.DataFrame | None = None, units: Mapping[str, str] | None = None,
) -> list[Path]:  # fmt: skip
    """Write `name`.png, .pdf, .json (provenance and caption `text`) and, with a table, .csv. Return the paths."""
    folder, contents = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    with style():
        if text:
            caption(figure, text)
        figure.draw_without_rendering()  # lays it out, once: each layout starts from the last one
        figure.set_layout_engine("none")
        for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            figure.savefig(buffer := io.BytesIO(), format=kind, dpi=200, metadata=metadata)
            contents[folder / f"{name}.{kind}"] = buffer.getvalue()
    facts = {"caption": text} | dict(provenance)
    contents[folder / f"{name}.json"] = f"{json.dumps(facts, indent=1, sort_keys=True)}\n".encode()
    for path, content in contents.items():
        write_atomic(path, content, shared=True)
    return [*contents, *([] if table is None else [save_table(table, folder / f"{name}.csv", units=units or {})])]


def _label(method: str, settings: dict[str, Any]) -> str:
    """Return a run's name in figures: its method, and what differs from the pair's own settings."""
    parts = [method]
    for name, value in settings.items():
        if name == "handover":
            parts.append(value)
        elif name == "controls":
            parts.append(" + ".join(map(str, value)) or "no control")
        elif name == "edit" and not isinstance(value, str):
            parts.append(f"edit={value[0]} {value[1]:g}")
        elif name != "x_t":
            parts.append(f"{name}={_scales(value) if isinstance(value, list | tuple) else value}")
    return ", ".join(parts)


def _scales(guidance: float | Sequence[float]) -> str:
    """Return one scale, or for how many steps each of several holds: "0 x 10, 5 x 10"."""
    if not isinstance(guidance, list | tuple):
        return f"{guidance:g}"
    return ", ".join(f"{scale:g} x {len(list(steps))}" for scale, steps in itertools.groupby(guidance))
