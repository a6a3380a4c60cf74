"""The stages joined, with every result kept: what the notebooks call.

study = Study.open("emoji-dmd", seeds=range(30))
study.features("dog face", "hybrid")        # (30, d), generated, decoded and embedded once, then read from disk
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import drawings
from .adaptive import Adaptive
from .decode import decode, decode_latents, reconstruct
from .diversity import nearest
from .embed import Embedder, embedder
from .generate import SAMPLING, generate
from .pairs import SPECS, Pair, check, load
from .profiles import PAPER_BASE_STEPS, check_profile
from .profiles import seeds_of as seeds_of
from .store import Store, write_whole
from .table import save
from .timing import seconds_an_image
from .trace import FORMAT, Trace

version = cache(metadata.version)  # which reads a file each time

# The paper's five prompts of Table 3, for hub pairs.
PAPER_PROMPTS = ("sunset beach", "cute puppy", "futuristic city", "person", "Van Gogh art")
# Embedded: concepts drawn by five artists or more; the first five stand for the paper's.
EMOJI_PROMPTS = (
    "sunset", "dog face", "cityscape", "woman", "artist palette",
    "cat face", "rabbit face", "bear", "tiger face", "pig face", "frog", "penguin", "honeybee", "butterfly", "turtle",
    "octopus", "tropical fish", "whale", "elephant", "cactus", "palm tree", "tulip", "mushroom", "strawberry",
    "watermelon", "hamburger", "birthday cake", "umbrella", "crown", "guitar", "rocket", "bicycle", "ghost", "house",
    "volcano", "snowflake",
)  # fmt: skip


@dataclass(frozen=True)
class Study:
    """One pair, one embedder, some seeds, and the store that holds what was made of them.

    Attributes:
        pair: the base and its student.
        embed: images to features; None in a study that only looks.
        seeds: the samples of every prompt.
        store: where results are kept.
        settings: what `generate` is given beside prompt, method and seeds; the same for all methods.
        runs: filled as results are read: {method and its settings: the steps that really ran, guidance, versions ...}.
    """

    pair: Pair
    embed: Embedder | None
    seeds: tuple[int, ...]
    store: Store
    settings: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        pair: str,
        *,
        seeds: Iterable[int],
        profile: str = "quick",
        measure: bool = True,
        embedder_name: str = "",
        store: Store | None = None,
        **settings: Any,
    ) -> Study:
        """Load the embedder, unless not to `measure`, and then the pair.

        Embedded pairs are measured by EfficientNet-Lite0, which no part of them was trained on; hub pairs by DreamSim. The
        profile "paper" runs the pair as the paper does: 50 base steps, and where its code has other settings than those that
        the student was trained for, the code's.

        Raises:
            ValueError: there are no seeds, or no pair, profile or embedder of this name.
            Unavailable: the pair or the embedder is not on this machine.
        """
        seeds = tuple(seeds)
        if not seeds:
            raise ValueError(f"seeds={seeds} must hold at least one seed")
        check_profile(profile)
        check(pair)
        usual = "efficientnet-lite0" if embedded(pair) else "dreamsim"
        chosen = embedder(embedder_name or usual) if measure else None
        paper = profile == "paper"
        models = load(pair, published=paper)
        models = replace(models, base_steps=PAPER_BASE_STEPS) if paper else models
        return cls(models, chosen, seeds, store or Store(), settings)

    def choose(self, n: int) -> tuple[str, ...]:
        """The first `n` prompts that the pair is studied on, all of them for 0.

        Raises:
            ValueError: there are not so many.
        """
        if not 0 <= n <= len(self.prompts):
            raise ValueError(f"n_prompts={n} must be from 1 to {len(self.prompts)}, or 0 for all of {self.pair.name}'s")
        return self.prompts[: n or None]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that this pair is studied on."""
        return EMOJI_PROMPTS if embedded(self.pair.name) else PAPER_PROMPTS

    def trace(self, prompt: str, method: str, *, x_t: bool = False, **settings: Any) -> Trace:
        """The run of all seeds, generated in blocks of the pair's batch size and kept."""
        blocks = [self._block(prompt, method, block, settings | {"x_t": x_t}) for block in self._blocks()]
        return Trace.join(blocks).select(self._rows())

    def features(self, prompt: str, method: str, *, steps: bool = False, **settings: Any) -> np.ndarray:
        """Features of the final images, (seed, d), or with `steps` of every step's x̂0, (step, seed, d)."""
        of = "x0" if steps else "final"
        blocks = [
            self._block_features(prompt, method, block, settings | {"x_t": False}, of) for block in self._blocks()
        ]
        return np.concatenate(blocks, axis=-2)[..., self._rows(), :]

    def images(self, prompt: str, method: str, *, what: str = "final", **settings: Any) -> np.ndarray:
        """Images float32 in [0, 1] of the final latents, which are kept, or of "x0" or "x_t" at every step."""
        if what != "final":
            return decode(self.trace(prompt, method, x_t=what == "x_t", **settings), self.pair, what=what).numpy()
        blocks = [self._block_images(prompt, method, block, settings | {"x_t": False}) for block in self._blocks()]
        return np.concatenate(blocks)[self._rows()]

    def grid(
        self, prompts: Iterable[str], methods: Mapping[str, tuple[str, dict[str, Any]]]
    ) -> tuple[np.ndarray, pd.DataFrame]:
        """The images of all seeds, a prompt a row, side by side for `plot.plot_image_grid`; and what is where.

        Args:
            prompts: at least one, the rows.
            methods: heading -> (method, its settings), at least one: the groups of columns, a seed a column.

        Returns:
            Images (prompt, method x seed, 3, height, width), float32 in [0, 1], and a table of their `prompt`, `method`
            (the heading) and `seed`, one row an image, along the rows of the grid.

            images, cells = study.grid(["dog face"], {"Base": ("base", {}), "Hybrid": ("hybrid", {"k": 1})})
        """
        rows, cells = [], []
        for prompt in prompts:
            made = [self.images(prompt, method, **settings) for method, settings in methods.values()]
            rows.append(np.concatenate(made))
            cells += [(prompt, heading, seed) for heading in methods for seed in self.seeds]
        return np.stack(rows), pd.DataFrame(cells, columns=["prompt", "method", "seed"])

    def signals(self, prompt: str, adaptive: Adaptive, **settings: Any) -> np.ndarray:
        """What an adaptive run saw of each sample, (k, seed); give thresholds that are never met, so that it sees all."""
        settings |= {"adaptive": adaptive, "x_t": False}
        blocks = [self._block(prompt, "adaptive", block, settings).provenance["signals"] for block in self._blocks()]
        return np.concatenate([list(seen.values()) for seen in blocks], axis=1)[:, self._rows()]

    def artists(self, prompt: str, features: np.ndarray) -> list[str]:
        """The artist whose drawing of this prompt, through the autoencoder, is nearest to each image; embedded pairs only."""
        real = drawings.load().of(prompt)
        return [real.artists[row] for row in nearest(features, self.drawn_features(prompt))]

    def features_of(self, images: np.ndarray) -> np.ndarray:
        """Features of any images, (n, d) of (n, 3, h, w) float32 in [0, 1], kept: embedded once, then read from disk."""
        facts = {"images": _sha(images), "shape": list(images.shape), "embedder": self.embed.fingerprint}
        return self._keep("features", facts, lambda: {"features": self.embed(images)})["features"]

    def seconds(
        self, methods: Mapping[str, tuple[str, dict[str, Any]]], *, prompt: str, turns: int = 3
    ) -> dict[str, float]:
        """Seconds an image takes, measured once on this machine and kept; see `timing.seconds_an_image`."""
        made = [self._facts(prompt, method, (), settings) for method, settings in methods.values()]
        facts = {"methods": made, "turns": turns, "machine": platform.node(), "threads": torch.get_num_threads()}

        def make() -> dict[str, Any]:
            taken = seconds_an_image(self.pair, methods, prompt=prompt, turns=turns)
            return {"seconds": np.array(list(taken.values()))}

        return dict(zip(methods, self._keep("seconds", facts, make)["seconds"].tolist(), strict=True))

    def drawn_features(self, prompt: str) -> np.ndarray:
        """Features of this prompt's real drawings as the pair's autoencoder gives them back, (artist, d)."""
        images = drawings.load().of(prompt).images
        facts = {
            "drawings": _sha(images),
            "autoencoder": self.pair.base_fingerprint or self.pair.fingerprint,
            "embedder": self.embed.fingerprint,
        }

        def make() -> dict[str, Any]:
            return {"features": self.embed(reconstruct(images, self.pair))}

        return self._keep("features", facts, make)["features"]

    def ran(self, method: str, **settings: Any) -> dict[str, Any]:
        """How samples that were read were made: the steps that really ran, denoiser evaluations, guidance, versions.

        Raises:
            KeyError: none were read with these settings.
        """
        return self.runs[_label(method, settings)]

    def describe(self, *, prompts: int, profile: str, runs: bool = True) -> str:
        """One line for below a figure: pair, how much of it, and unless not `runs`, what ran with which guidance."""
        told = []
        for label, run in self.runs.items():
            guidance = {"base": run["base_guidance"], "distilled": run["guidance"]}
            parts = [f"{n} {role} (guidance {_scales(guidance[role])})" for role, n in run["steps_run"].items()]
            told.append(f"{label}: {' + '.join(parts)}")
        prompted = f"{prompts} prompts x " if prompts > 1 else ""
        many = f"{prompted}{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        return f"{self.pair.name}, {many}, {profile} profile." + (f" Steps run: {'; '.join(told)}." if runs else "")

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What a figure has to tell about how it was made, JSON-compatible."""
        packages = ("dtviz", "torch", "diffusers", "transformers", "numpy")
        return {
            "pair": self.pair.name,
            "fingerprint": self.pair.fingerprint,
            "embedder": self.embed.fingerprint if self.embed else None,
            "seeds": list(self.seeds),
            "timesteps": self.pair.timesteps,
            "schedulers": self._schedulers(),
            "runs": self.runs,
            "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        } | more

    def _schedulers(self) -> list[str]:
        return [type(s).__name__ for s in (self.pair.base_scheduler, self.pair.distilled_scheduler)]

    def _blocks(self) -> list[tuple[int, ...]]:
        """The aligned blocks of seeds that hold ours, so that studies of different sizes share what was made."""
        size = self.pair.batch_size
        return [tuple(range(start, start + size)) for start in sorted({seed - seed % size for seed in self.seeds})]

    def _rows(self) -> list[int]:
        """Where our seeds are among those of the blocks."""
        made = [seed for block in self._blocks() for seed in block]
        return [made.index(seed) for seed in self.seeds]

    def _facts(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
        """All that decides what a block is: the name of its result in the store. The base's is the same for all students."""
        alone = method == "base"
        defaults = ("base_steps", "base_guidance", "size")
        defaults += () if alone else ("steps", "guidance", "handover", "timesteps")
        defaults += ("call",) if self.pair.call else ()
        facts = {name: getattr(self.pair, name) for name in defaults} | self.settings | settings
        if "adaptive" in facts:
            facts["adaptive"] = asdict(facts["adaptive"])
        controls = [applied.facts() for applied in facts.pop("controls", ()) if applied.scale != 0]
        if controls:  # what changes nothing does not count: the plain model's results are not made again
            facts["controls"] = [{key: value for key, value in told.items() if key != "name"} for told in controls]
        return facts | {
            "method": method,
            "prompt": prompt,
            "seeds": list(seeds),
            "weights": (alone and self.pair.base_fingerprint) or self.pair.fingerprint,
            "numbers": [str(self.pair.base.dtype), self.pair.base.device.type, version("torch"), version("diffusers")],
            "format": FORMAT,
            "sampling": SAMPLING,
        }

    def _block(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> Trace:
        def make() -> dict[str, Any]:
            trace = generate(self.pair, prompt, method=method, seeds=seeds, **self.settings, **settings)
            return trace.arrays() | {"facts": _pack(trace.facts())}

        arrays = dict(self._keep("trace", self._facts(prompt, method, seeds, settings), make))
        told = self._note(method, settings, arrays.pop("facts"))
        told["provenance"]["pair"] = self.pair.name  # the base's samples may have been made for another student
        return Trace.build({name: torch.as_tensor(array) for name, array in arrays.items()}, told)

    def _block_features(
        self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any], of: str
    ) -> np.ndarray:
        def features(trace: Trace) -> np.ndarray:
            latents = getattr(trace, of)
            flat = latents.flatten(0, -4)
            size = max(1, 16384 // (flat.shape[-2] * flat.shape[-1]))  # 256 at 8x8, one at SDXL's 128x128
            parts = [self.embed(decode_latents(part, self.pair)) for part in flat.split(size)]
            return np.concatenate(parts).reshape(*latents.shape[:-3], -1)

        facts = {"embedder": self.embed.fingerprint, "of": of}
        return self._of_block("features", features, facts, prompt, method, seeds, settings)

    def _block_images(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> np.ndarray:
        def images(trace: Trace) -> np.ndarray:
            return decode(trace, self.pair, final=True).numpy()

        return self._of_block("images", images, {}, prompt, method, seeds, settings)

    def _of_block(
        self,
        kind: str,
        work: Callable[[Trace], np.ndarray],
        facts: dict[str, Any],
        prompt: str,
        method: str,
        seeds: tuple[int, ...],
        settings: dict[str, Any],
    ) -> np.ndarray:
        """What `work` makes of a block, kept with how the block was made; `facts` are those of the work."""

        def make() -> dict[str, Any]:
            trace = self._block(prompt, method, seeds, settings)
            return {kind: work(trace), "facts": _pack(trace.facts())}

        arrays = self._keep(kind, self._facts(prompt, method, seeds, settings) | facts, make)
        self._note(method, settings, arrays["facts"])
        return arrays[kind]

    def _keep(self, kind: str, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """From the store, but for a pair made by hand: nothing says when its weights change."""
        return self.store.fetch(kind, facts, make) if self.pair.fingerprint else make()

    def _note(self, method: str, settings: dict[str, Any], packed: np.ndarray) -> dict[str, Any]:
        """Remember how the run was made; the trace's facts, unpacked."""
        told = json.loads(bytes(packed))
        kept = {
            name: value for name, value in told["provenance"].items() if name not in ("pair", "method", "fingerprint")
        }
        self.runs[_label(method, settings)] = {"steps_run": told["steps_run"]} | kept
        return told


def _label(method: str, settings: dict[str, Any]) -> str:
    """A run's name in figures: its method, and what differs from the pair's own settings."""
    chosen = [_setting(name, value) for name, value in settings.items() if name != "x_t"]
    return ", ".join([method, *chosen])


def _setting(name: str, value: Any) -> str:
    if name == "handover":
        return value
    if name == "controls":
        return " + ".join(map(str, value)) or "no control"
    return f"{name}={_scales(value) if isinstance(value, list | tuple) else value}"


def _scales(guidance: float | list[float] | tuple[float, ...]) -> str:
    """One scale, or how many steps each of several lasts: "0 x 10, 5 x 10"."""
    if not isinstance(guidance, list | tuple):
        return f"{guidance:g}"
    return ", ".join(f"{scale:g} x {len(list(steps))}" for scale, steps in itertools.groupby(guidance))


def embedded(pair: str) -> bool:
    """Whether this pair is one that dtviz ships, whose real drawings are known."""
    return pair in SPECS and SPECS[pair].embedded


def _sha(images: np.ndarray) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def _pack(facts: dict[str, Any]) -> np.ndarray:
    """JSON as bytes, so that the store keeps it beside the arrays."""
    return np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8).copy()


def save_figure(
    figure,
    folder: str | Path,
    name: str,
    *,
    provenance: dict[str, Any],
    table: pd.DataFrame | None = None,
    units: dict[str, str] | None = None,
) -> list[Path]:
    """Write `name`.png, .pdf, .json (provenance) and, with a table and its units, .csv into `folder`; the paths written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        data = io.BytesIO()
        dated = (
            {"CreationDate": None} if path.suffix == ".pdf" else None
        )  # no date, so that the same figure is the same file
        figure.savefig(data, format=path.suffix[1:], dpi=200, metadata=dated)
        write_whole(path, data.getvalue(), shared=True)  # an earlier figure stays until the new one is whole
    paths.append(folder / f"{name}.json")
    write_whole(paths[-1], f"{json.dumps(provenance, indent=1, sort_keys=True)}\n".encode(), shared=True)
    if table is not None:
        paths.append(save(table, folder / f"{name}.csv", units=units or {}))
    return paths
