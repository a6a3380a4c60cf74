"""A trace: predicted x0 of every step of a run, its noise levels and seeds, saved as one safetensors file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.numpy import save

from ..files import content_hash, read_safetensors, reading, write_atomic

FORMAT = "dtviz.trace/1"
_FACTS = {"seeds": list | None, "prompt": str | list | None, "steps_run": dict, "provenance": dict}  # types in JSON
_STEPS_OF_SAMPLES = ("x0", "x_t", "conditional", "unconditional", "later_x0")
_TENSORS = ("sigmas", "timesteps", "final", *_STEPS_OF_SAMPLES, "call_steps", "call_sigmas", "call_timesteps")


class TraceCall(NamedTuple):
    """One denoiser call: the step it belongs to, its noise level, and x0 (sample, channel, height, width)."""

    step: int
    sigma: float
    timestep: float
    x0: torch.Tensor


@dataclass(frozen=True, repr=False, slots=True)  # without slots a default could be read before the block ends
class Trace:
    """One run of a sampler over a batch of samples. From `capture` it is empty until the `with` block ends.

    Attributes:
        x0: (step, sample, channel, height, width) predicted clean latents after guidance, in the pipeline's own layout.
            Packed latents are (step, sample, token, channel). float32.
        sigmas: (step,) float32, noise std / signal std before each step. Of flow models the scheduler's sigma, 0 to 1.
        timesteps: (step,) float32, as the scheduler numbers them.
        final: (sample, channel, height, width) float32, the last latents that the sampler made.
        x_t: like `x0`, the noisy latents before each step as (x0 + sigma eps) / sqrt(1 + sigma^2), of flow models as
            (1 - sigma) x0 + sigma eps. None unless requested.
        conditional, unconditional: like `x0`, from the denoiser's outputs before guidance. None unless requested, and nan at
            steps without an unconditional output.
        seeds: seed of each sample. None if the caller set the random state.
        prompt: prompt of all samples, or one for each. None if the pipeline got it from the caller.
        steps_run: steps that each denoiser ran, such as `{"base": 1, "distilled": 3}`.
        provenance: JSON-compatible settings of the run: pair, method, guidance, versions.
        later_x0, call_steps, call_sigmas, call_timesteps: of schedulers with several denoiser calls per step. Read `calls`.

        trace = dtviz.Trace.load(trace.save("dog.trace"))
    """

    x0: torch.Tensor
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    final: torch.Tensor
    x_t: torch.Tensor | None = None
    seeds: tuple[int, ...] | None = None
    prompt: str | tuple[str, ...] | None = None
    steps_run: dict[str, int] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    conditional: torch.Tensor | None = None
    unconditional: torch.Tensor | None = None
    later_x0: torch.Tensor | None = None
    call_steps: torch.Tensor | None = None
    call_sigmas: torch.Tensor | None = None
    call_timesteps: torch.Tensor | None = None

    def __post_init__(self) -> None:
        steps, samples = self.x0.shape[:2]
        lengths = {"sigmas": steps, "timesteps": steps, "final": samples, "seeds": samples, "prompt": samples}
        for name, length in lengths.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, str) and len(value) != length:
                raise ValueError(f"{name} has length {len(value)}, x0 of shape {tuple(self.x0.shape)} needs {length}")

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a trace has no {name!r}, or not before its `with dtviz.capture(...)` block ends")

    def __repr__(self) -> str:
        if not hasattr(self, "x0"):
            return "Trace(filled in when the `with dtviz.capture(...)` block ends)"
        steps, samples, *shape = self.x0.shape
        one = not isinstance(self.prompt, tuple)
        named = "" if self.prompt is None else f" of {self.prompt!r}" if one else f" of {len(set(self.prompt))} prompts"
        levels = f"sigma {self.sigmas[0]:.3g} to {self.sigmas[-1]:.3g}"
        return f"Trace({steps} steps, {samples} samples{named}, latents {tuple(shape)}, {levels}, steps_run={self.steps_run})"

    @property
    def calls(self) -> tuple[TraceCall, ...]:
        """Every denoiser call in order. Second-order schedulers make several per step, of which the first is in `x0`."""
        several = self.call_steps is not None
        steps = self.call_steps.tolist() if several else range(len(self.x0))
        sigmas, timesteps = (self.call_sigmas, self.call_timesteps) if several else (self.sigmas, self.timesteps)
        later, calls = iter(self.later_x0 if several else ()), []
        for step, sigma, timestep in zip(steps, sigmas.tolist(), timesteps.tolist(), strict=True):
            started = bool(calls) and calls[-1].step == step
            calls.append(TraceCall(step, sigma, timestep, next(later) if started else self.x0[step]))
        return tuple(calls)

    def select(self, samples: slice | list[int]) -> Trace:
        """Return the trace of these samples alone."""
        rows = list(range(self.final.shape[0]))[samples] if isinstance(samples, slice) else list(samples)
        parts = {name: part[:, rows] for name in _STEPS_OF_SAMPLES if (part := getattr(self, name)) is not None}
        seeds = None if self.seeds is None else tuple(self.seeds[row] for row in rows)
        prompt = tuple(self.prompt[row] for row in rows) if isinstance(self.prompt, tuple) else self.prompt
        return replace(self, **parts, final=self.final[rows], seeds=seeds, prompt=prompt)

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
        joined = {name: torch.cat([getattr(t, name) for t in traces], dim=1) for name in parts}
        joined["final"] = torch.cat([t.final for t in traces])
        seeds = None if first.seeds is None else tuple(seed for t in traces for seed in t.seeds)
        prompt = tuple(prompt for t in traces for prompt in t.prompt) if each else first.prompt
        return replace(first, **joined, seeds=seeds, prompt=prompt)

    def arrays(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name, without those that are None."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS if getattr(self, name) is not None}

    def facts(self) -> dict[str, Any]:
        """Return everything but the tensors, for JSON."""
        return {name: getattr(self, name) for name in _FACTS}

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
        arrays, header = read_safetensors(path, "pt")
        with reading(f"trace {path}"):
            if header.get("format") != FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
            numbers = {name: part.numpy() for name, part in arrays.items()}
            if header.get("sha256") != content_hash(header["facts"], numbers):
                raise ValueError("its contents do not match its hash")
            return cls.build(arrays, _checked(json.loads(header["facts"])))


def _checked(facts: Any) -> dict[str, Any]:
    """Return the facts of a file if they have the types of a trace's facts."""
    right = isinstance(facts, dict) and facts.keys() == _FACTS.keys()
    if right and all(isinstance(facts[name], kind) for name, kind in _FACTS.items()):
        lists = ((facts["seeds"], int), (facts["prompt"], str))
        if all(isinstance(one, kind) for values, kind in lists for one in values or ()):
            return facts
    raise ValueError(f"its facts are {facts!r}")
