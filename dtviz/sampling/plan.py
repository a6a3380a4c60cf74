"""A plan of denoising over one or two schedulers: who denoises each call, with which guidance, and where one hands over.

calls = plan(pair, method="hybrid", steps=4, base_steps=20, k=1, handover="matched-sigma", scales=scales, device="cpu")
[call.role for call in calls]       # ["base", "base", ..., "distilled", "distilled", "distilled"]
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..fit import check_schedulers
from ..pairs import Pair
from ..rules import find, space
from ..schedule import ratio
from ..schedule import sigma as sigma_at
from .steps import Asked, set_steps

Scale = float | tuple[float, ...]


@dataclass(frozen=True)
class Call:
    """One denoiser call.

    Attributes:
        role: "base" or "distilled", who denoises.
        scheduler: whose step follows, and `timestep` as it numbers them.
        starts: whether it is the first call of its step; second-order schedulers make two.
        scale: the guidance scale.
        to, to_timestep: the scheduler that the sample is handed to, at this timestep, instead of a step; None: a step.
    """

    role: str
    scheduler: Any
    timestep: torch.Tensor
    starts: bool = True
    scale: float = 0.0
    to: Any = None
    to_timestep: torch.Tensor | None = None


def plan(
    pair: Pair,
    *,
    method: str,
    steps: int,
    base_steps: int,
    k: int | None,
    handover: str | None,
    scales: Mapping[str, Scale],
    asked: Mapping[str, Asked],
    device,
) -> list[Call]:
    """The calls that `generate` runs, on fresh schedulers; its arguments are `generate`'s.

    A scheduler that takes several calls a step is never cut within one: at matched noise level the base's last step is a
    single call, which goes straight to where the student starts.

    Args:
        scales: the guidance of each role; a tuple has one for each of its steps.
        asked: what the pair's pipeline tells each role's scheduler beside the number of steps, see `steps.ask`.

    Raises:
        NotImplementedError: the student's scheduler cannot start in the middle of its run.
        ValueError: a matched hand-over lies above the base's first noise level, so that no base step would run; or the
            scales are not as many as the steps.
    """
    if method == "base":
        return _guided(_base(pair, base_steps, asked["base"], device), scales)
    if method == "hybrid":
        settings = {"steps": steps, "base_steps": base_steps, "handover": handover, "scales": scales}
        return branches(pair, ks=(k,), asked=asked, device=device, **settings)[k]
    student = _student(pair, steps, asked["distilled"], device)
    return _guided(_from_step(student, k) if method == "skip" else _calls("distilled", student), scales)


def branches(
    pair: Pair,
    *,
    ks: Iterable[int],
    steps: int,
    base_steps: int,
    handover: str,
    scales: Mapping[str, Scale],
    asked: Mapping[str, Asked],
    device,
) -> dict[int, list[Call]]:
    """Each k's hybrid; they share the base's calls and its scheduler, so that one can be left for another where they part."""
    if handover == "distilled-scheduler":
        check_schedulers(pair.base_scheduler, pair.distilled_scheduler)
        calls = _calls("distilled", _student(pair, steps, asked["distilled"], device))
        plans = {k: [replace(call, role="base") for call in calls[: _starts(calls)[k]]] for k in ks}
        plans = {k: [*first, *calls[len(first) :]] for k, first in plans.items()}
    else:
        calls = _base(pair, base_steps, asked["base"], device)
        rests = {k: _from_step(_student(pair, steps, asked["distilled"], device), k) for k in ks}
        plans = {k: [*_down_to(calls, rest[0], base_steps), *rest] for k, rest in rests.items()}
    return {k: _guided(plan, scales) for k, plan in plans.items()}


def _base(pair: Pair, base_steps: int, asked: Asked, device) -> list[Call]:
    """The base's calls on its own schedule."""
    base = _fresh(pair.base_scheduler)
    set_steps(base, base_steps, asked=asked, device=device)
    return _calls("base", base)


def _student(pair: Pair, steps: int, asked: Asked, device):
    """The student's scheduler, at its trained timesteps where it runs as many steps."""
    student = _fresh(pair.distilled_scheduler)
    if pair.timesteps is None or steps != pair.steps:
        set_steps(student, steps, asked=asked, device=device)
    elif (
        space(student) == "flow"
    ):  # by its noise levels: it would shift those of given timesteps, and not the timesteps
        student.set_timesteps(sigmas=[t / student.config.num_train_timesteps for t in pair.timesteps], device=device)
    else:
        if "original_inference_steps" in student.config:  # LCM's own grid would warn about any other timesteps
            student.register_to_config(original_inference_steps=student.config.num_train_timesteps)
        student.set_timesteps(timesteps=list(pair.timesteps), device=device)
    return student


def _from_step(student, k: int) -> list[Call]:
    """The student's calls without those of its first `k` steps."""
    if find(student).first is not None and not hasattr(student, "set_begin_index"):
        raise NotImplementedError(
            f"{type(student).__name__} cannot start in the middle of its run: its steps count from the first"
        )
    calls = _calls("distilled", student)
    first = _starts(calls)[k]
    _begin(student, first)
    return calls[first:]


def _down_to(calls: list[Call], rest: Call, base_steps: int) -> list[Call]:
    """The base's calls down to the noise level of the student's first, the last of them handing over to it."""
    base = calls[0].scheduler
    target = ratio(rest.scheduler, sigma_at(rest.scheduler, rest.timestep))
    levels = {i: ratio(base, _level(base, i, calls[i].timestep)) for i in _starts(calls)}
    # two schedulers' roundings of one level are one level
    above = [i for i, level in levels.items() if level > target * (1 + 1e-3)]
    if not above:
        raise ValueError(
            f"base_steps={base_steps} starts at a noise to signal ratio of {levels[0]:.3g}, below the hand-over's "
            f"{target:.3g}: no base step would run; give a larger k or other base steps"
        )
    last = above[-1]
    return [*calls[:last], replace(calls[last], to=rest.scheduler, to_timestep=rest.timestep)]


def _guided(calls: list[Call], scales: Mapping[str, Scale]) -> list[Call]:
    """Each call with the guidance of its role at its step."""
    done: Counter[str] = Counter()
    guided = []
    wanted = Counter(call.role for call in calls if call.starts)
    for call in calls:
        scale = scales[call.role]
        if isinstance(scale, tuple) and len(scale) != wanted[call.role]:
            name = "guidance" if call.role == "distilled" else "base_guidance"
            raise ValueError(
                f"{name} has {len(scale)} values, and this run makes {wanted[call.role]} {call.role} steps: give one a step"
            )
        done[call.role] += call.starts
        guided.append(replace(call, scale=scale[done[call.role] - 1] if isinstance(scale, tuple) else scale))
    return guided


def _calls(role: str, scheduler) -> list[Call]:
    """All calls of a scheduler whose timesteps are set."""
    _begin(scheduler, 0)
    return [Call(role, scheduler, t, starts) for t, starts in zip(scheduler.timesteps, _marks(scheduler), strict=True)]


def _marks(scheduler) -> list[bool]:
    """Whether each call is the first of its step, as the scheduler itself says on a run of zeros."""
    rule = find(scheduler)
    if rule.first is None:
        return [True] * len(scheduler.timesteps)
    trial, marks = copy.deepcopy(scheduler), []
    zeros = torch.zeros(1, 1, 1, 1, device=scheduler.timesteps.device)
    with torch.random.fork_rng():  # an ancestral step draws noise, and the caller's random state is not ours
        for t in trial.timesteps:
            marks.append(rule.begins(trial))
            trial.step(zeros, t, zeros)
    return marks


def _starts(calls: list[Call]) -> list[int]:
    return [i for i, call in enumerate(calls) if call.starts]


def _fresh(scheduler):
    """A scheduler of the same settings without another run's history."""
    return type(scheduler).from_config(scheduler.config)


def _begin(scheduler, index: int) -> None:
    """Say where the run starts: a spacing may repeat a timestep, which then no longer says it."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _level(scheduler, index: int, timestep) -> float:
    """Sigma of a scheduler's `index`-th call without starting the run."""
    return float(scheduler.sigmas[index]) if hasattr(scheduler, "sigmas") else sigma_at(scheduler, timestep)
