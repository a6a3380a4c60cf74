"""What one generation planned and made: the predicted x̂0 of every step, its noise levels, its seeds.

trace.save("dog.trace")
trace = dtviz.Trace.load("dog.trace")
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "dtviz.trace/1"
_TENSORS = ("x0", "sigmas", "timesteps", "final", "x_t")


@dataclass(frozen=True)
class Trace:
    """One run of a sampler over a batch of samples.

    Attributes:
        x0: (step, sample, channel, height, width) float32, the predicted clean latents after guidance.
        sigmas: (step,) float32, noise standard deviation over signal standard deviation before each step.
        timesteps: (step,) float32, as the scheduler numbers them.
        final: (sample, channel, height, width) float32, the last latents that the sampler made.
        x_t: like `x0`, the noisy latents before each step, (x0 + sigma * noise) / sqrt(1 + sigma²) whatever the
            scheduler's own scale; None unless asked for.
        seeds: the seed of each sample, None when the caller drove the random state.
        prompt: the prompt of every sample, None when the caller passed it to the pipeline directly.
        steps_run: how many steps each denoiser really ran, e.g. `{"base": 1, "distilled": 3}`.
        provenance: JSON-compatible facts about the run: pair, method, guidance, versions.

    A trace from `capture` is empty until its `with` block ends.
    """

    x0: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    final: torch.Tensor
    x_t: torch.Tensor | None = None
    seeds: tuple[int, ...] | None = None
    prompt: str | None = None
    steps_run: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, samples = self.x0.shape[:2]
        for name, length in (("sigmas", steps), ("timesteps", steps), ("final", samples)):
            if len(getattr(self, name)) != length:
                raise ValueError(
                    f"{name} has length {len(getattr(self, name))}, x0 of shape {tuple(self.x0.shape)} needs {length}"
                )
        if self.seeds is not None and len(self.seeds) != samples:
            raise ValueError(f"seeds has {len(self.seeds)} entries for {samples} samples")

    def __getattr__(self, name: str) -> Any:
        if name in {f.name for f in fields(Trace)}:
            raise AttributeError(
                f"trace.{name} is not there yet: it is filled in when the `with dtviz.capture(...)` block ends"
            )
        raise AttributeError(f"'Trace' has no attribute '{name}'")

    def select(self, samples: slice | list[int]) -> Trace:
        """The same run, of these samples alone."""
        rows = list(range(self.final.shape[0]))[samples] if isinstance(samples, slice) else list(samples)
        return replace(
            self,
            x0=self.x0[:, rows],
            final=self.final[rows],
            x_t=None if self.x_t is None else self.x_t[:, rows],
            seeds=None if self.seeds is None else tuple(self.seeds[row] for row in rows),
        )

    @staticmethod
    def join(traces: list[Trace]) -> Trace:
        """The samples of several runs of the same settings as one trace, in the order given."""
        first = traces[0]
        for other in traces[1:]:
            if other.prompt != first.prompt or not torch.equal(other.sigmas, first.sigmas):
                raise ValueError("traces can be joined when they share prompt and noise levels; these differ")
        return replace(
            first,
            x0=torch.cat([t.x0 for t in traces], dim=1),
            final=torch.cat([t.final for t in traces]),
            x_t=None if first.x_t is None else torch.cat([t.x_t for t in traces], dim=1),
            seeds=None if first.seeds is None else tuple(seed for t in traces for seed in t.seeds),
        )

    def arrays(self) -> dict[str, torch.Tensor]:
        """The tensors by name, without those that are None."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS if getattr(self, name) is not None}

    def facts(self) -> dict[str, Any]:
        """Everything else, JSON-compatible."""
        seeds = None if self.seeds is None else list(self.seeds)
        return {"seeds": seeds, "prompt": self.prompt, "steps_run": self.steps_run, "provenance": self.provenance}

    @classmethod
    def build(cls, arrays: dict[str, torch.Tensor], facts: dict[str, Any]) -> Trace:
        """The inverse of `arrays` and `facts`."""
        seeds = facts["seeds"]
        return cls(**arrays, **(facts | {"seeds": None if seeds is None else tuple(seeds)}))

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file with the facts as JSON in its header; atomic."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            save_file(self.arrays(), partial, metadata={"format": FORMAT, "facts": json.dumps(self.facts())})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a trace, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no trace at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            return cls.build(arrays, json.loads(header["facts"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole dtviz trace: {error}") from error
