"""The stages joined, with every result kept: what the notebooks call.

study = Study.open("emoji-dmd", seeds=range(30))
study.features("dog face", "hybrid")        # (30, d), generated, decoded and embedded once, then read from disk
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from . import drawings
from .decode import decode, decode_latents
from .diversity import nearest
from .embed import Embedder, embedder
from .generate import generate
from .pairs import Pair, load
from .store import Store
from .table import save
from .trace import FORMAT, Trace

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
        embed: images to features.
        seeds: the samples of every prompt.
        store: where results are kept.
        settings: what `generate` is given beside prompt, method and seeds; the same for all methods.
        steps_run: filled as traces are read: {method and its settings: steps that really ran}.
    """

    pair: Pair
    embed: Embedder
    seeds: tuple[int, ...]
    store: Store
    settings: dict[str, Any] = field(default_factory=dict)
    steps_run: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        pair: str | Pair,
        *,
        seeds: Iterable[int],
        embedder_name: str = "",
        store: Store | None = None,
        **settings: Any,
    ) -> Study:
        """Load the pair and the embedder, by default the one that suits the pair.

        Embedded pairs are measured by EfficientNet-Lite0, which no part of them was trained on; hub pairs by DreamSim.
        """
        loaded = load(pair) if isinstance(pair, str) else pair
        chosen = embedder(embedder_name or ("efficientnet-lite0" if loaded.name.startswith("emoji") else "dreamsim"))
        return cls(loaded, chosen, tuple(seeds), store or Store(), settings)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts that this pair is studied on."""
        return EMOJI_PROMPTS if self.pair.name.startswith("emoji") else PAPER_PROMPTS

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
        """Images float32 in [0, 1] of the final latents, or of "x0" or "x_t" at every step."""
        return decode(self.trace(prompt, method, x_t=what == "x_t", **settings), self.pair, what=what).numpy()

    def artists(self, prompt: str, features: np.ndarray) -> list[str]:
        """The artist whose drawing of this prompt is nearest to each image; embedded pairs only."""
        real = drawings.load().of(prompt)
        return [real.artists[row] for row in nearest(features, self.real_features(prompt))]

    def real_features(self, prompt: str) -> np.ndarray:
        """Features of this prompt's real drawings, (artist, d)."""
        images = drawings.load().of(prompt).images
        facts = {"drawings": prompt, "n": len(images), "embedder": self.embed.fingerprint}
        return self.store.fetch("features", facts, lambda: {"features": self.embed(images)})["features"]

    def describe(self, *, prompts: int, profile: str) -> str:
        """One line for below a figure: pair, what ran, how much of it, and how it was measured."""
        runs = "; ".join(
            f"{name}: {' + '.join(f'{n} {role}' for role, n in ran.items())} steps"
            for name, ran in self.steps_run.items()
        )
        prompted = f"{prompts} prompts x " if prompts > 1 else ""
        return (
            f"{self.pair.name}, {prompted}{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''} ({profile} profile). "
            f"Guidance: base {self.pair.base_guidance:g}, student and hybrid {self.pair.guidance:g}. Ran {runs}."
        )

    def provenance(self, **more: Any) -> dict[str, Any]:
        """What a figure has to tell about how it was made, JSON-compatible."""
        packages = ("dtviz", "torch", "diffusers", "transformers", "numpy")
        return {
            "pair": self.pair.name,
            "fingerprint": self.pair.fingerprint,
            "embedder": self.embed.fingerprint,
            "seeds": list(self.seeds),
            "settings": self.settings,
            "steps_run": self.steps_run,
            "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        } | more

    def _blocks(self) -> list[tuple[int, ...]]:
        """The aligned blocks of seeds that hold ours, so that studies of different sizes share what was made."""
        size = self.pair.batch_size
        return [tuple(range(start, start + size)) for start in sorted({seed - seed % size for seed in self.seeds})]

    def _rows(self) -> list[int]:
        """Where our seeds are among those of the blocks."""
        made = [seed for block in self._blocks() for seed in block]
        return [made.index(seed) for seed in self.seeds]

    def _facts(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> dict[str, Any]:
        """All that decides what a block is: the name of its result in the store."""
        defaults = ("steps", "base_steps", "guidance", "base_guidance", "handover", "timesteps")
        facts = {name: getattr(self.pair, name) for name in defaults} | self.settings | settings
        return facts | {
            "method": method,
            "prompt": prompt,
            "seeds": list(seeds),
            "weights": self.pair.fingerprint,
            "format": FORMAT,
        }

    def _block(self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any]) -> Trace:
        def make() -> dict[str, Any]:
            trace = generate(self.pair, prompt, method=method, seeds=seeds, **self.settings, **settings)
            return trace.arrays() | {"facts": _pack(trace.facts())}

        arrays = dict(self._keep("trace", self._facts(prompt, method, seeds, settings), make))
        told = self._note(method, settings, arrays.pop("facts"))
        return Trace.build({name: torch.as_tensor(array) for name, array in arrays.items()}, told)

    def _block_features(
        self, prompt: str, method: str, seeds: tuple[int, ...], settings: dict[str, Any], of: str
    ) -> np.ndarray:
        def make() -> dict[str, Any]:
            trace = self._block(prompt, method, seeds, settings)
            latents = getattr(trace, of)
            parts = [self.embed(decode_latents(part, self.pair)) for part in latents.flatten(0, -4).split(256)]
            features = np.concatenate(parts).reshape(*latents.shape[:-3], -1)
            return {"features": features, "facts": _pack(trace.facts())}

        facts = self._facts(prompt, method, seeds, settings) | {"embedder": self.embed.fingerprint, "of": of}
        arrays = self._keep("features", facts, make)
        self._note(method, settings, arrays["facts"])
        return arrays["features"]

    def _keep(self, kind: str, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """From the store, but for a pair made by hand: nothing says when its weights change."""
        return self.store.fetch(kind, facts, make) if self.pair.fingerprint else make()

    def _note(self, method: str, settings: dict[str, Any], packed: np.ndarray) -> dict[str, Any]:
        """Remember the steps that ran; the trace's facts, unpacked."""
        told = json.loads(bytes(packed))
        chosen = [f"{name}={value}" for name, value in settings.items() if name != "x_t"]
        self.steps_run[" ".join([method, *chosen])] = told["steps_run"]
        return told


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
        figure.savefig(path, dpi=200)
    paths.append(folder / f"{name}.json")
    paths[-1].write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    if table is not None:
        paths.append(save(table, folder / f"{name}.csv", units=units or {}))
    return paths
