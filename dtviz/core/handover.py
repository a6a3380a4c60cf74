"""Algorithm 1 of the paper: the base denoises the first steps, the distilled model the remaining ones."""

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .pair import Pair, check_schedulers, role_scheduler
from .schedulers import exact, find, space
from .x0 import ddim_step, noise_to_signal, predict_x0, sigma_at, signal_and_noise

Guidance = float | tuple[float, ...]


@dataclass(frozen=True)
class DenoiserCall:
    """One denoiser call of a run.

    Attributes:
        role: "base" or "distilled", the network that denoises.
        scheduler, timestep: the scheduler whose step follows, and its timestep.
        starts_step: whether the call is the first of its step. Second-order schedulers make two calls per step.
        guidance: guidance scale.
        to, to_timestep: scheduler and timestep to which one DDIM step hands the sample. None: an ordinary step.
        hands_over: whether this is the base's last call before the distilled model's first.
        index, total: position in the run, from 0, and the number of its calls.
        seeds: seeds of the samples in the batch.
        predict: inside `edit_x0` only. Takes a role, evaluates its network on this call's input, and returns its x0.
    """

    role: str
    scheduler: Any
    timestep: torch.Tensor
    starts_step: bool = True
    guidance: float = 0.0
    to: Any = None
    to_timestep: torch.Tensor | None = None
    hands_over: bool = False
    index: int = 0
    total: int = 0
    seeds: tuple[int, ...] = ()
    predict: Callable[[str], torch.Tensor] | None = None

    @property
    def sigma(self) -> float:
        """Noise level of the sample that enters the call."""
        return sigma_at(self.scheduler, self.timestep)


@dataclass(eq=False)
class HandoverScheduler:
    """Stand in for a pipeline's scheduler: make the step of each call, and hand the sample over.

    `edit_x0` is called as for `generate`, `keep_x0` keeps the x0 of the last call in `x0`. Without `scale_noise` the initial
    noise is scaled for the scheduler's first step instead of the first that runs, as in the published code.
    """

    calls: Sequence[DenoiserCall]
    edit_x0: Callable[[torch.Tensor, DenoiserCall], torch.Tensor] | None = None
    keep_x0: bool = False
    scale_noise: bool = True
    evaluate: Callable[[DenoiserCall], torch.Tensor] | None = None  # of `DenoiserRouter`, for `DenoiserCall.predict`
    index: int = 0
    x0: torch.Tensor | None = None
    order = 1

    def __post_init__(self) -> None:
        self.config = self.calls[0].scheduler.config
        self.timesteps = torch.stack([call.timestep for call in self.calls])

    @property
    def call(self) -> DenoiserCall:
        """The call that comes next."""
        return self.calls[self.index]

    def step(self, model_output, timestep, sample, generator=None, return_dict: bool = True) -> tuple:
        """Make one iteration of Algorithm 1. `model_output` is that of the network `call.role`: lines 3 to 7."""
        call, following = self.call, self.calls[self.index + 1 : self.index + 2]
        edits = self.edit_x0 is not None and any(other.starts_step for other in following)
        if edits or self.keep_x0 or call.to is not None:
            self.x0 = predict_x0(call.scheduler, model_output, call.timestep, sample)
        edited = self.edit_x0(self.x0, replace(call, predict=partial(self._predict, sample))) if edits else self.x0
        if call.to is None:
            noise = {"generator": generator} if "generator" in inspect.signature(call.scheduler.step).parameters else {}
            x, *others = call.scheduler.step(model_output, call.timestep, sample, **noise, return_dict=False)
        else:
            levels = {"sigma": call.sigma, "to_sigma": sigma_at(call.to, call.to_timestep)}
            x, others = ddim_step(sample, self.x0, scheduler=call.scheduler, to=call.to, **levels).to(sample.dtype), []
        if edited is not self.x0:  # change x0 inside x, and keep its noise
            signal, _ = signal_and_noise(following[0].scheduler, exact(following[0].sigma))
            x = (x + float(signal) * (edited - self.x0)).to(x.dtype)
        self.index += 1
        return (x, *others)

    def _predict(self, sample: torch.Tensor, role: str) -> torch.Tensor:
        call, roles = self.call, [other.role for other in self.calls[self.index :]]
        if role not in roles:
            raise ValueError(f"role={role!r} has no call from here on; there are {', '.join(dict.fromkeys(roles))}")
        guidance = self.calls[self.index + roles.index(role)].guidance
        # a doubled batch has the same guided output in both halves
        output = self.evaluate(replace(call, role=role, guidance=guidance))[-len(sample) :]
        return predict_x0(call.scheduler, output, call.timestep, sample)

    # What pipelines ask of a scheduler beside `step`

    @property
    def init_noise_sigma(self):
        first = self.calls[0]
        unscaled = not self.scale_noise or space(first.scheduler) != "ve"
        if unscaled or first.timestep == first.scheduler.timesteps[0]:
            return first.scheduler.init_noise_sigma
        return (first.sigma**2 + 1) ** 0.5

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None) -> None:
        self.timesteps = self.timesteps.to(device)  # the calls are fixed when the scheduler is built

    def set_begin_index(self, begin_index: int = 0) -> None:
        pass

    def scale_model_input(self, sample: torch.Tensor, timestep) -> torch.Tensor:
        scale = getattr(self.call.scheduler, "scale_model_input", lambda sample, _: sample)  # flow schedulers have none
        return scale(sample, self.call.timestep)


def denoising_calls(
    pair: Pair, *, method: str, steps: int, base_steps: int, k: int | None, handover: str | None,
    guidance: Mapping[str, Guidance], device: Any = "cpu",
) -> list[DenoiserCall]:  # fmt: skip
    """Return the calls that `generate` runs with these arguments, on fresh schedulers. `device` is that of the timesteps.

    On the CPU, schedulers read them without waiting for a GPU. A second-order scheduler is never cut inside a step.
    """

    def schedule(role: str) -> list[DenoiserCall]:
        scheduler = role_scheduler(pair, role, base_steps if role == "base" else steps, device)
        # A spacing may repeat a timestep, which then does not say where the run is.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        marks = zip(scheduler.timesteps, _starts_step(scheduler), strict=True)
        return [DenoiserCall(role, scheduler, t, starts) for t, starts in marks]

    if method in ("base", "distilled"):
        calls = schedule(method)
    elif method == "skip":
        calls = _from_step(schedule("distilled"), k)
    elif handover == "distilled-scheduler":
        check_schedulers(pair.base_scheduler, pair.distilled_scheduler)
        calls = schedule("distilled")
        first = _step_starts(calls)[k]
        calls = [*(replace(call, role="base") for call in calls[:first]), *calls[first:]]
    else:
        distilled = _from_step(schedule("distilled"), k)
        calls = [*_down_to(schedule("base"), distilled[0], base_steps), *distilled]
    scales = _scales(calls, guidance)
    roles, total, steps_run, run = [call.role for call in calls], len(calls), Counter(), []
    for i, call in enumerate(calls):
        steps_run[call.role] += call.starts_step
        scale, hands_over = scales[call.role][steps_run[call.role] - 1], roles[i : i + 2] == ["base", "distilled"]
        run.append(replace(call, index=i, total=total, guidance=scale, hands_over=hands_over))
    return run


def _from_step(calls: list[DenoiserCall], k: int) -> list[DenoiserCall]:
    """Return the calls without those of the first `k` steps."""
    scheduler, first = calls[0].scheduler, _step_starts(calls)[k]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    elif find(scheduler).first is not None:
        raise NotImplementedError(f"{type(scheduler).__name__} cannot start in the middle of its run")
    return calls[first:]


def _down_to(calls: list[DenoiserCall], target: DenoiserCall, base_steps: int) -> list[DenoiserCall]:
    """Return the base's calls down to the noise level of `target`. The last one hands over to it."""
    base, level = calls[0].scheduler, noise_to_signal(target.scheduler, target.sigma)
    # Read from the table: a call's own `sigma` is that of the coming step
    sigmas = getattr(base, "sigmas", None)
    sigmas = [call.sigma if sigmas is None else float(sigmas[i]) for i, call in enumerate(calls)]
    levels = {i: noise_to_signal(base, sigmas[i]) for i in _step_starts(calls)}
    above = [i for i, other in levels.items() if other > level * (1 + 1e-3)]  # schedulers round differently
    if not above:
        start = f"base_steps={base_steps} starts at noise / signal {levels[0]:.3g}, below the hand-over's {level:.3g}"
        raise ValueError(f"{start}: no base step would run; give a larger k or other base steps")
    last = above[-1]
    return [*calls[:last], replace(calls[last], to=target.scheduler, to_timestep=target.timestep)]


def _scales(calls: list[DenoiserCall], guidance: Mapping[str, Guidance]) -> dict[str, tuple[float, ...]]:
    """Return the guidance scale of each step, by role."""
    scales = {}
    for role, count in Counter(call.role for call in calls if call.starts_step).items():
        scales[role] = guidance[role] if isinstance(guidance[role], tuple) else (guidance[role],) * count
        if len(scales[role]) != count:
            name = "guidance" if role == "distilled" else "base_guidance"
            raise ValueError(f"{name} has {len(scales[role])} values for {count} {role} steps: give one per step")
    return scales


def _starts_step(scheduler: Any) -> list[bool]:
    """Return whether each call starts a step, read from the scheduler on a trial run of zeros."""
    rule = find(scheduler)
    if rule.first is None:
        return [True] * len(scheduler.timesteps)
    trial, marks = copy.deepcopy(scheduler), []
    zeros = torch.zeros(1, 1, 1, 1, device=scheduler.timesteps.device)
    with torch.random.fork_rng():  # an ancestral step draws noise from the global generator
        for t in trial.timesteps:
            marks.append(rule.begins(trial))
            trial.step(zeros, t, zeros)
    return marks


def _step_starts(calls: list[DenoiserCall]) -> list[int]:
    return [i for i, call in enumerate(calls) if call.starts_step]
