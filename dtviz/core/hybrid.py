"""Hybrid sampling inside one's own pipeline call: the base denoises its first k steps (Algorithm 1 of the paper).

with dtviz.hybrid(pipe, distilled, k=1):
    images = pipe("a dog", num_inference_steps=4, guidance_scale=0).images
"""

from __future__ import annotations

import functools
import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .capture import override_methods, restore_methods
from .denoisers import DenoiserRouter, embeds_guidance
from .pair import check_compatible
from .schedulers import find


@dataclass
class HybridRun:
    """What the pipeline calls inside the block ran.

    Attributes:
        k: leading steps given to the base.
        steps_run: steps of the last call by role, such as {"base": 1, "distilled": 3}.
        nfe: denoiser evaluations per sample by role, over all calls. Guidance costs two per step.
    """

    k: int
    steps_run: Counter[str] = field(default_factory=Counter)
    nfe: Counter[str] = field(default_factory=Counter)


class _Call(NamedTuple):
    role: str
    guidance: float | None


@contextmanager
def hybrid(
    pipe: Any,
    distilled: torch.nn.Module | str,
    *,
    k: int = 1,
    base_guidance: float | None = 0.0,
    guidance: float | None = None,
) -> Iterator[HybridRun]:
    """Give the first `k` steps of every pipeline call inside the block to the base, the others to the distilled model.

    The call is an ordinary few-step call with the distilled model's scheduler: text to image, image to image, inpainting,
    ControlNet. This is the published hand-over. `generate` also offers the one at matched sigma.

    Args:
        pipe: a diffusers pipeline that holds the base denoiser and the distilled model's scheduler.
        distilled: the few-step denoiser, or the name of a distillation LoRA loaded on the base.
        k: leading steps given to the base, at least 1.
        base_guidance: guidance scale of the base's steps. 0 and 1 mean the conditional model, as published. Above 1 the call
            needs a guidance_scale above 1, so that the pipeline prepares the unconditional prompt. None: the pipeline's own.
        guidance: guidance scale of the distilled model's steps. None: the pipeline's own.

    Yields:
        A `HybridRun` with `steps_run` of the last call and `nfe` of all calls.

    Raises:
        ValueError: an argument is out of range, or distilled model and base are not compatible.
        NotImplementedError: the scheduler has no x0 rule.

        with dtviz.hybrid(pipe, "dmd2", k=1):
            images = pipe("picture of a dog", num_inference_steps=4, guidance_scale=0).images
    """
    base = next((m for name in ("unet", "transformer") if (m := getattr(pipe, name, None)) is not None), None)
    if base is None:
        raise ValueError(f"pipe is a {type(pipe).__name__} without a unet or transformer")
    scales = {"base": base_guidance, "distilled": guidance}
    run = HybridRun(_check(k, base, distilled, scales))
    if base_guidance is not None and embeds_guidance(base):
        scales["base"] = base_guidance or 1.0  # an input of the network, for which 1 means none
    counter = _StepCounter(pipe, base, distilled, run, scales)
    try:
        counter.follow(pipe.scheduler)
        with counter.router.active():
            yield run
    finally:
        counter.release()
    counter.end_call()


def _check(k: int, base: torch.nn.Module, distilled: Any, scales: dict[str, float | None]) -> int:
    try:
        count = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"k={k!r} must be an integer of at least 1: the leading steps that the base takes")
    for role, scale in scales.items():
        if scale is not None and not scale >= 0:
            name = "base_guidance" if role == "base" else "guidance"
            raise ValueError(f"{name}={scale!r} must be a number of at least 0, or None for the pipeline's own")
    check_compatible(base, distilled, name="distilled")
    if isinstance(distilled, torch.nn.Module):
        for what in ("dtype", "device"):
            values = getattr(distilled, what), getattr(base, what)
            if values[0] != values[1]:
                raise ValueError(f"distilled and base differ in {what}: {values[0]} and {values[1]}")
    return count


class _StepCounter:
    """Count the steps of the pipeline's scheduler, whose `step` is overridden on the instance as in `capture`."""

    def __init__(self, pipe: Any, base, distilled, run: HybridRun, scales: dict[str, float | None]) -> None:
        self.pipe, self.run, self.scales = pipe, run, scales
        self.router = DenoiserRouter(pipe, base, distilled, self.next_call, self.is_doubled, evaluations=run.nfe)
        self.schedulers: list[Any] = []
        self.inputs: list[tuple[str, int, bool]] = []  # since the last step: role, size, whether the batch is doubled

    def next_call(self) -> _Call:
        self.follow(self.pipe.scheduler)
        role = self.role(self.pipe.scheduler)
        if self.inputs and self.scales[role] is not None:
            self._refuse(f"calls its denoiser {len(self.inputs) + 1} times in a step")
        return _Call(role, self.scales[role])

    def role(self, scheduler: Any) -> str:
        """Return the role of the coming call. All calls of one step have the same role."""
        inside_step = not find(scheduler).begins(scheduler)
        return "base" if self.run.steps_run.total() - inside_step < self.run.k else "distilled"

    def is_doubled(self, sample: torch.Tensor) -> bool:
        """Tell whether the pipeline doubled its batch. If it does not say so, equal halves do."""
        doubled = getattr(self.pipe, "do_classifier_free_guidance", None)
        if doubled is None:
            doubled = len(sample) % 2 == 0 and torch.equal(*sample.chunk(2))
        role = self.role(self.pipe.scheduler)
        if doubled and len(sample) % 2 and not self._left_to_pipeline(role):
            self._refuse(f"evaluates {len(sample)} inputs at once")
        self.inputs.append((role, len(sample), doubled))
        return bool(doubled)

    def _left_to_pipeline(self, role: str) -> bool:
        return self.scales[role] is None and not embeds_guidance(self.router.network(role))

    def _refuse(self, reason: str) -> None:
        raise NotImplementedError(
            f"{type(self.pipe).__name__} {reason}: its kind of guidance can only be left to the pipeline, by "
            "base_guidance=None and guidance=None"
        )

    def follow(self, scheduler: Any) -> None:
        """Count this scheduler from now on. A pipeline's scheduler may be replaced inside the block."""
        if any(scheduler is other for other in self.schedulers):
            return
        rule = find(scheduler)
        self.begin_call()
        override_methods(scheduler, self._methods(type(scheduler), rule.step, rule.names[2]))
        self.schedulers.append(scheduler)

    def begin_call(self) -> None:
        self.inputs.clear()
        self.end_call()
        self.run.steps_run.clear()

    def end_call(self) -> None:
        steps, k = self.run.steps_run, self.run.k
        if steps["base"] and not steps["distilled"]:
            warnings.warn(
                f"this hybrid ran no step of the distilled model: the call made {steps['base']} steps, and k={k}; give it more "
                "steps or a smaller k",
                stacklevel=2,
            )

    def release(self) -> None:
        for scheduler in self.schedulers:
            restore_methods(scheduler)

    def _methods(self, kind: type, name: str, sample: str) -> dict[str, Any]:
        step, set_timesteps = getattr(kind, name), kind.set_timesteps
        signature = inspect.signature(step)

        @functools.wraps(step)
        def counting_step(scheduler, *args, **kwargs):
            samples = len(signature.bind(scheduler, *args, **kwargs).arguments[sample])
            for role, inputs, doubled in self.inputs:
                if self.scales[role] is not None and inputs != samples * (2 if doubled else 1):
                    self._refuse(f"evaluates {inputs} inputs for {samples} samples")
                if self._left_to_pipeline(role):
                    self.run.nfe[role] += inputs // samples
            self.inputs.clear()
            role, begins = self.role(scheduler), find(scheduler).begins(scheduler)
            output = step(scheduler, *args, **kwargs)
            self.run.steps_run[role] += begins
            return output

        @functools.wraps(set_timesteps)
        def resetting_set_timesteps(scheduler, *args, **kwargs):
            self.begin_call()
            return set_timesteps(scheduler, *args, **kwargs)

        return {name: counting_step, "set_timesteps": resetting_set_timesteps}
