"""A plan of denoising steps over one or two schedulers, and the relay that carries it out inside a pipeline.

steps = plan(pair, method="hybrid", steps=4, base_steps=20, k=1, handover="matched-sigma", device="cpu")
[step.role for step in steps]       # ["base", "base", ..., "distilled", "distilled", "distilled"]
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from .pairs import Pair
from .recorder import Recorder
from .rules import exact, find, space
from .schedule import coefficients, move
from .schedule import sigma as sigma_at

HANDED = ("x0", "mean", "zero")


@dataclass(frozen=True)
class Step:
    """One step of a plan: who denoises, on which scheduler, and where the sample is handed over, if it is."""

    role: str
    scheduler: Any
    timestep: torch.Tensor
    to: Any = None
    to_timestep: torch.Tensor | None = None


class Relay:
    """Stands in for the pipeline's scheduler: runs a plan's steps, records them, hands the sample over.

    `handed`: the x̂0 inside the sample that the base hands over, see `generate`; `scaled`: whether the initial noise is scaled
    for the first step that runs, or for the scheduler's first, as in the published code.
    """

    order = 1

    def __init__(self, plan: list[Step], recorder: Recorder, *, handed: str = "x0", scaled: bool = True) -> None:
        self.plan, self.recorder, self.index = plan, recorder, 0
        self.handed, self.scaled = handed, scaled
        self.config = plan[0].scheduler.config
        self.timesteps = torch.stack([step.timestep for step in plan])

    @property
    def role(self) -> str:
        """Whose turn it is: "base" or "distilled"."""
        return self.plan[self.index].role

    @property
    def init_noise_sigma(self):
        """Noise enters at the first step that really runs, so it is scaled for that one."""
        first = self.plan[0]
        if not self.scaled or space(first.scheduler) != "ve" or first.timestep == first.scheduler.timesteps[0]:
            return first.scheduler.init_noise_sigma
        return (sigma_at(first.scheduler, first.timestep) ** 2 + 1) ** 0.5

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        self.timesteps = self.timesteps.to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep) -> torch.Tensor:
        now = self.plan[self.index]
        return now.scheduler.scale_model_input(sample, now.timestep)

    def step(self, model_output, timestep, sample, generator=None, return_dict: bool = True) -> tuple:
        now = self.plan[self.index]
        timestep = now.timestep  # in its own scheduler's type: a plan may mix integers and floats
        x0 = self.recorder.before(now.scheduler, model_output, timestep, sample, expected=len(self.plan))
        if now.to is None:
            seeded = "generator" in inspect.signature(now.scheduler.step).parameters
            noise = {"generator": generator} if seeded else {}
            output = now.scheduler.step(model_output, timestep, sample, **noise, return_dict=False)
        else:
            level, target = sigma_at(now.scheduler, timestep), sigma_at(now.to, now.to_timestep)
            x = move(sample, x0, scheduler=now.scheduler, sigma=level, to=now.to, to_sigma=target)
            output = (x.to(sample.dtype),)
        if self.handed != "x0" and self._hands_over():
            output = (self._replan(output[0], x0), *output[1:])
        self.recorder.after(output)
        self.index += 1
        return output

    def _hands_over(self) -> bool:
        """Whether the base's last step was just made."""
        return self.role == "base" and self.index + 1 < len(self.plan) and self.plan[self.index + 1].role != "base"

    def _replan(self, x: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The sample handed over, its noise kept, with another x̂0 inside."""
        after = self.plan[self.index + 1]
        signal, _ = coefficients(after.scheduler, exact(sigma_at(after.scheduler, after.timestep)))
        other = x0.mean(dim=0, keepdim=True) if self.handed == "mean" else 0.0
        return (x + float(signal) * (other - x0)).to(x.dtype)


def _fresh(scheduler):
    """A scheduler of the same settings without another run's history."""
    return type(scheduler).from_config(scheduler.config)


def plan(
    pair: Pair, *, method: str, steps: int, base_steps: int, k: int | None, handover: str | None, device
) -> list[Step]:
    """The steps that `generate` runs, on fresh schedulers.

    Raises:
        NotImplementedError: a scheduler that takes several calls a step would be cut between them.
        ValueError: a matched hand-over lies above the base's first noise level, so that no base step would run.
    """
    for scheduler in (pair.base_scheduler, pair.distilled_scheduler):
        if method in ("hybrid", "skip") and find(scheduler).first is not None:
            raise NotImplementedError(
                f"method={method!r} hands over between steps, and {type(scheduler).__name__} calls the denoiser several "
                "times a step: give the pair a first-order scheduler"
            )
    if method == "base":
        scheduler = _fresh(pair.base_scheduler)
        scheduler.set_timesteps(base_steps, device=device)
        _begin(scheduler, 0)
        return [Step("base", scheduler, t) for t in scheduler.timesteps]

    student = _fresh(pair.distilled_scheduler)
    if pair.timesteps is not None and steps == pair.steps:
        if "original_inference_steps" in student.config:  # LCM's own grid would warn about any other timesteps
            student.register_to_config(original_inference_steps=student.config.num_train_timesteps)
        student.set_timesteps(timesteps=list(pair.timesteps), device=device)
    else:
        student.set_timesteps(steps, device=device)
    whole = [Step("distilled", student, t) for t in student.timesteps]
    _begin(student, k if method == "skip" or handover == "matched-sigma" else 0)
    if method == "distilled":
        return whole
    if method == "skip":
        return whole[k:]
    if handover == "distilled-scheduler":
        return [Step("base", student, t) for t in student.timesteps[:k]] + whole[k:]

    target = sigma_at(student, whole[k].timestep) * (1 + 1e-3)  # two schedulers' roundings of one level are one level
    base = _fresh(pair.base_scheduler)
    base.set_timesteps(base_steps, device=device)
    _begin(base, 0)
    above = [t for i, t in enumerate(base.timesteps) if _level(base, i, t) > target]
    if not above:
        raise ValueError(
            f"base_steps={base_steps} starts at sigma {_level(base, 0, base.timesteps[0]):.3g}, below the hand-over's "
            f"{target:.3g}: no base step would run; give a larger k or other base steps"
        )
    leading = [Step("base", base, t) for t in above[:-1]]
    return [*leading, Step("base", base, above[-1], to=student, to_timestep=whole[k].timestep), *whole[k:]]


def _begin(scheduler, index: int) -> None:
    """Say where the run starts: a spacing may repeat a timestep, which then no longer says it."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _level(scheduler, index: int, timestep) -> float:
    """Sigma of a scheduler's `index`-th step without starting the run."""
    return float(scheduler.sigmas[index]) if hasattr(scheduler, "sigmas") else sigma_at(scheduler, timestep)
