"""How a pipeline asks its scheduler for steps: flow pipelines name the noise levels and the shift themselves.

asked = ask(pipe, pipe.scheduler)                        # Asked(even=True, mu=1.15) of FLUX.1-dev at 1024 px
set_steps(scheduler, 20, asked=asked, device="cuda")     # what that pipeline would have asked for in 20 steps

A hybrid runs parts of two schedules, so `generate` sets them itself, and has to say what the pipeline would have said.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np


@dataclass(frozen=True)
class Asked:
    """What a pipeline tells `set_timesteps` beside the number of steps.

    Attributes:
        even: whether it gives the noise levels itself, N of them evenly from 1 to 1/N, before any shift.
        mu: the logarithm of the shift, which grows with the image (Esser et al. 2024, section 5.3.2); None: it gives none.
    """

    even: bool = False
    mu: float | None = None


def ask(pipe: Any, scheduler: Any, call: Mapping[str, Any] = MappingProxyType({})) -> Asked:
    """What this pipeline tells such a scheduler in such a call; it is run up to there once, and the answer kept.

    Args:
        pipe: a diffusers text-to-image pipeline.
        scheduler: one that it might have; the shift depends on its settings.
        call: arguments of its call, such as height and width.

    Raises:
        NotImplementedError: it gives noise levels that are no even steps from 1 to 1/N.
    """
    if "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
        return Asked()
    known = _KNOWN.setdefault(pipe, {})
    key = repr((sorted(call.items()), sorted(scheduler.config.items())))
    if key not in known:
        known[key] = _ask(pipe, scheduler, call)
    return known[key]


_KNOWN: WeakKeyDictionary[Any, dict[str, Asked]] = WeakKeyDictionary()


class _Answer(Exception):
    """Carries what was asked for out of the pipeline's call."""


class _Ear:
    """Stands in for the scheduler until it is asked for timesteps."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        raise _Answer(num_inference_steps, sigmas, mu)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        raise AssertionError("a pipeline stepped before it asked for timesteps")


def _ask(pipe: Any, scheduler: Any, call: Mapping[str, Any], steps: int = 4) -> Asked:
    own, pipe.scheduler = pipe.scheduler, _Ear(scheduler.config)
    try:
        pipe(prompt=["a"], num_inference_steps=steps, guidance_scale=0.0, output_type="latent", **call)
    except _Answer as answer:
        _, sigmas, mu = answer.args
    finally:
        pipe.scheduler = own
        pipe.maybe_free_model_hooks()  # the call did not come to its own
    if sigmas is not None and not np.allclose(sigmas, _even(steps)):
        raise NotImplementedError(
            f"{type(pipe).__name__} asks for the noise levels {[round(float(s), 4) for s in sigmas]} in {steps} steps: only "
            f"even ones, {_even(steps).tolist()}, can be split between base and student"
        )
    return Asked(sigmas is not None, mu)


def _even(steps: int) -> np.ndarray:
    return np.linspace(1.0, 1 / steps, steps)


def set_steps(scheduler: Any, steps: int, *, asked: Asked, device: Any = None) -> None:
    """Give a scheduler `steps` steps as the pipeline would; what it does not take is left out, as pipelines do.

    >>> from diffusers import FlowMatchEulerDiscreteScheduler
    >>> scheduler = FlowMatchEulerDiscreteScheduler()
    >>> set_steps(scheduler, 4, asked=Asked(even=True))
    >>> scheduler.sigmas.tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    taken = inspect.signature(scheduler.set_timesteps).parameters
    told: dict[str, Any] = {}
    if asked.even and "sigmas" in taken and not scheduler.config.get("use_flow_sigmas"):
        told["sigmas"] = _even(steps)
    if asked.mu is not None and "mu" in taken:
        told["mu"] = asked.mu
    scheduler.set_timesteps(steps, device=device, **told)
