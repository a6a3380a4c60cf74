"""A trace: predicted x0 of every step of a run, its noise levels and seeds. It is saved as one safetensors file.

trace.save("dog.trace")
trace = dtviz.Trace.load("dog.trace")
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.numpy import save

from ..files import content_hash, reading, write_atomic

FORMAT = "dtviz.trace/1"
_STEPS_OF_SAMPLES = ("x0", "x_t", "conditional", "unconditional", "later_x0")
_TENSORS = ("sigmas", "timesteps", "final", *_STEPS_OF_SAMPLES, "call_steps", "call_sigmas", "call_timesteps")


class TraceCall(NamedTuple):
    """One denoiser call: the step it belongs to, its noise level, and x0 (sample, channel, height, width)."""

    step: int
    sigma: float
    timestep: float
    x0: torch.Tensor


def _none() -> None:
    """Default of optional fields. A plain default would be found on the class of a trace that is not filled in yet."""


@dataclass(frozen=True, repr=False)
class Trace:
    """One run of a sampler over a batch of samples.

    A trace from `capture` is empty until its `with` block ends.

    Attributes:
        x0: (step, sample, channel, height, width) predicted clean latents after guidance, in the pipeline's own layout.
            Packed latents are (step, sample, token, channel). float32, or float16 if requested.
        sigmas: (step,) float32, noise std / signal std before each step. Of flow models the scheduler's sigma, 0 to 1.
        timesteps: (step,) float32, as the scheduler numbers them.
        final: (sample, channel, height, width) float32, the last latents that the sampler made.
        x_t: like `x0`, the noisy latents before each step as (x0 + sigma eps) / sqrt(1 + sigma^2), of flow models as
            (1 - sigma) x0 + sigma eps. None unless requested.
        conditional, unconditional: like `x0`, from the denoiser's outputs before guidance. None unless requested, and nan at
            steps without an unconditional output.
        seeds: seed of each sample. None if the caller set the random state.
        prompt: prompt of all samples, or one for each. None if the caller passed it to the pipeline.
        steps_run: steps that each denoiser ran, such as `{"base": 1, "distilled": 3}`.
        provenance: JSON-compatible settings of the run: pair, method, guidance, versions.
        later_x0, call_steps, call_sigmas, call_timesteps: for schedulers with several denoiser calls per step, read as
            `calls`. None otherwise.

        trace.save("dog.trace")
        trace = dtviz.Trace.load("dog.trace")
    """

    x0: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    final: torch.Tensor
    x_t: torch.Tensor | None = field(default_factory=_none)
    seeds: tuple[int, ...] | None = field(default_factory=_none)
    prompt: str | tuple[str, ...] | None = field(default_factory=_none)
    steps_run: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    conditional: torch.Tensor | None = field(default_factory=_none)
    unconditional: torch.Tensor | None = field(default_factory=_none)
    later_x0: torch.Tensor | None = field(default_factory=_none)
    call_steps: torch.Tensor | None = field(default_factory=_none)
    call_sigmas: torch.Tensor | None = field(default_factory=_none)
    call_timesteps: torch.Tensor | None = field(default_factory=_none)

    def __post_init__(self) -> None:
        steps, samples = self.x0.shape[:2]
        for name, length in (("sigmas", steps), ("timesteps", steps), ("final", samples)):
            if len(getattr(self, name)) != length:
                raise ValueError(
                    f"{name} has length {len(getattr(self, name))}, x0 of shape {tuple(self.x0.shape)} needs {length}"
                )
        if self.seeds is not None and len(self.seeds) != samples:
            raise ValueError(f"seeds has {len(self.seeds)} entries for {samples} samples")
        if isinstance(self.prompt, tuple) and len(self.prompt) != samples:
            raise ValueError(f"prompt has {len(self.prompt)} entries for {samples} samples")

    def __getattr__(self, name: str) -> Any:
        if name == "calls" or name in {f.name for f in fields(Trace)}:
            raise AttributeError(
                f"trace.{name} is not there yet: it is filled in when the `with dtviz.capture(...)` block ends"
            )
        raise AttributeError(f"'Trace' has no attribute '{name}'")

    def __repr__(self) -> str:
        if "x0" not in vars(self):
            return "Trace(filled in when the `with dtviz.capture(...)` block ends)"
        steps, samples, *shape = self.x0.shape
        one = not isinstance(self.prompt, tuple)
        named = "" if self.prompt is None else f" of {self.prompt!r}" if one else f" of {len(set(self.prompt))} prompts"
        levels = f"sigma {self.sigmas[0]:.3g} to {self.sigmas[-1]:.3g}"
        return f"Trace({steps} steps, {samples} samples{named}, latents {tuple(shape)}, {levels}, steps_run={self.steps_run})"

    @property
    def calls(self) -> tuple[TraceCall, ...]:
        """Every denoiser call in order. Second-order schedulers make several per step, of which the first is in `x0`."""
        if self.call_steps is None:
            steps = zip(self.sigmas.tolist(), self.timesteps.tolist(), self.x0, strict=True)
            return tuple(TraceCall(step, *values) for step, values in enumerate(steps))
        calls: list[TraceCall] = []
        later = iter(self.later_x0)
        marks = (self.call_steps.tolist(), self.call_sigmas.tolist(), self.call_timesteps.tolist())
        for step, sigma, timestep in zip(*marks, strict=True):
            started = bool(calls) and calls[-1].step == step
            calls.append(TraceCall(step, sigma, timestep, next(later) if started else self.x0[step]))
        return tuple(calls)

    def select(self, samples: slice | list[int]) -> Trace:
        """Return the trace of these samples alone."""
        rows = list(range(self.final.shape[0]))[samples] if isinstance(samples, slice) else list(samples)
        parts = {name: getattr(self, name) for name in _STEPS_OF_SAMPLES}
        return replace(
            self,
            **{name: part[:, rows] for name, part in parts.items() if part is not None},
            final=self.final[rows],
            seeds=None if self.seeds is None else tuple(self.seeds[row] for row in rows),
            prompt=tuple(self.prompt[row] for row in rows) if isinstance(self.prompt, tuple) else self.prompt,
        )

    @staticmethod
    def join(traces: list[Trace]) -> Trace:
        """Return the samples of several runs of the same settings as one trace, in the given order."""
        first = traces[0]
        each = all(isinstance(trace.prompt, tuple) for trace in traces)  # a prompt for each sample
        for other in traces[1:]:
            if not (each or other.prompt == first.prompt) or not torch.equal(other.sigmas, first.sigmas):
                raise ValueError("traces can be joined when they share prompt and noise levels; these differ")
        if len(traces) == 1:
            return first
        parts = [name for name in _STEPS_OF_SAMPLES if getattr(first, name) is not None]
        return replace(
            first,
            **{name: torch.cat([getattr(t, name) for t in traces], dim=1) for name in parts},
            final=torch.cat([t.final for t in traces]),
            seeds=None if first.seeds is None else tuple(seed for t in traces for seed in t.seeds),
            prompt=tuple(prompt for t in traces for prompt in t.prompt) if each else first.prompt,
        )

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, without those that are None."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS if getattr(self, name) is not None}

    def facts(self) -> dict[str, Any]:
        """Return everything but the tensors, JSON-compatible."""
        seeds = None if self.seeds is None else list(self.seeds)
        prompt = list(self.prompt) if isinstance(self.prompt, tuple) else self.prompt
        return {"seeds": seeds, "prompt": prompt, "steps_run": self.steps_run, "provenance": self.provenance}

    @classmethod
    def build(cls, arrays: dict[str, torch.Tensor], facts: dict[str, Any]) -> Trace:
        """Return the trace of what `arrays` and `facts` returned."""
        lists = {name: tuple(facts[name]) for name in ("seeds", "prompt") if isinstance(facts[name], list)}
        return cls(**arrays, **(facts | lists))

    def save(self, path: str | os.PathLike) -> Path:
        """Write one safetensors file with the facts as JSON and a hash in its header, completely or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays, facts = {name: part.numpy() for name, part in self.arrays().items()}, json.dumps(self.facts())
        header = {"format": FORMAT, "facts": facts, "sha256": content_hash(facts, arrays)}
        write_atomic(path, save(arrays, metadata=header), shared=True)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a trace, or is damaged.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no trace at {path}")
        with reading(f"trace {path}"):
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            if header.get("sha256") != content_hash(
                header["facts"], {name: part.numpy() for name, part in arrays.items()}
            ):
                raise ValueError("its contents do not match its hash")
            return cls.build(arrays, _checked(json.loads(header["facts"])))


def _checked(facts: Any) -> dict[str, Any]:
    """Return the facts of a file if they have the types of a trace's facts."""
    match facts:
        case {
            "seeds": list() | None,
            "prompt": str() | list() | None,
            "steps_run": dict(),
            "provenance": dict(),
            **rest,
        }:
            seeds = all(isinstance(seed, int) for seed in facts["seeds"] or ())
            prompts = isinstance(facts["prompt"], str) or all(isinstance(text, str) for text in facts["prompt"] or ())
            if not rest and seeds and prompts:
                return facts
    raise ValueError(f"its facts are {facts!r}")
