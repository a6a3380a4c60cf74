"""Hybrid sampling inside one's own pipeline call: the base denoises its first k steps (Algorithm 1 of the paper).

with dtviz.hybrid(pipe, distilled, k=1):
    images = pipe("a dog", num_inference_steps=4, guidance_scale=0).images
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from types import SimpleNamespace
from typing import Any

import torch

from .capture import override_methods, restore_methods
from .denoisers import DenoiserRouter, embeds_guidance, network
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


@contextmanager
def hybrid(
    pipe: Any,
    distilled: torch.nn.Module | str,
    *,
    k: int = 1,
    base_guidance: float | None = 0.0,
    guidance: float | None = None,
    fuse: bool = True,
) -> Iterator[HybridRun]:
    """Give the first `k` steps of every pipeline call inside the block to the base, the others to the distilled model.

    The call is an ordinary few-step call with the distilled model's scheduler: text to image, image to image, inpainting,
    ControlNet. This is the published hand-over. `generate` also offers the one at matched sigma.

    Args:
        pipe: a diffusers pipeline that holds the base denoiser and the distilled model's scheduler.
        distilled: the few-step denoiser, or the name of a distillation LoRA loaded on the base.
        k: leading steps given to the base, at least 1.
        base_guidance: guidance scale of the base's steps. 0 and 1: the conditional model, as published. Above 1 the call
            needs a guidance_scale above 1, so that the pipeline prepares the unconditional prompt. None: the pipeline's own.
        guidance: guidance scale of the distilled model's steps. None: the pipeline's own.
        fuse: add a LoRA to each weight as it is used, at the speed of a plain network. This rounds otherwise than
            `fuse=False`, where peft adds it to each output (docs/pairs.md). Neither writes a weight or keeps memory.

    Yields:
        A `HybridRun` with `steps_run` of the last call and `nfe` of all calls.

    Raises:
        ValueError: an argument is out of range, or distilled model and base are not compatible.
        NotImplementedError: the scheduler has no x0 rule, or only the pipeline itself can apply its kind of guidance.

        with dtviz.hybrid(pipe, "dmd2", k=1):
            images = pipe("picture of a dog", num_inference_steps=4, guidance_scale=0).images
    """
    base = next((m for name in ("unet", "transformer") if (m := getattr(pipe, name, None)) is not None), None)
    if base is None:
        raise ValueError(f"pipe is a {type(pipe).__name__} without a unet or transformer")
    if not isinstance(k, Integral) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} must be an integer of at least 1: the leading steps that the base takes")
    for name, scale in (("base_guidance", base_guidance), ("guidance", guidance)):
        if scale is not None and not scale >= 0:
            raise ValueError(f"{name}={scale!r} must be a number of at least 0, or None for the pipeline's own")
    if base_guidance is not None and embeds_guidance(base):
        base_guidance = base_guidance or 1.0  # an input of the network, for which 1 means none
    run = HybridRun(k)
    counter = _StepCounter(pipe, run, {"base": base_guidance, "distilled": guidance})
    router = DenoiserRouter(
        pipe, base, distilled, counter.next_call, counter.is_doubled, fuse=fuse, evaluations=run.nfe
    )
    try:
        with router.active():
            _check_placement(base, distilled)
            counter.own = {
                role for role, scale in counter.scales.items()
                if scale is None and not embeds_guidance(network(base, distilled, role))
            }  # fmt: skip
            counter.follow(pipe.scheduler)
            yield run
    finally:
        for scheduler in counter.schedulers:
            restore_methods(scheduler)
    counter.end_call()


def _check_placement(base: torch.nn.Module, distilled: torch.nn.Module | str) -> None:
    """Refuse networks of two types or on two devices. accelerate keeps an offloaded base on the CPU between its calls."""
    device = getattr(getattr(base, "_hf_hook", None), "execution_device", None) or base.device
    other = network(base, distilled, "distilled")
    values = {"dtype": (other.dtype, base.dtype), "device": (other.device.type, torch.device(device).type)}
    for what, (of_distilled, of_base) in values.items():
        if other is not base and of_distilled != of_base:
            raise ValueError(f"distilled and base differ in {what}: {of_distilled} and {of_base}")


class _StepCounter:
    """Count the steps of the pipeline's scheduler, whose `step` is overridden on the instance as in `capture`."""

    def __init__(self, pipe: Any, run: HybridRun, scales: dict[str, float | None]) -> None:
        self.pipe, self.run, self.scales = pipe, run, scales
        self.own: set[str] = set()  # roles whose guidance is the pipeline's own
        self.schedulers: list[Any] = []
        self.calls: list[tuple[str, int, bool]] = []  # since the last step: role, size, whether the batch is doubled
        self.samples: int | None = None  # known after the first step of a call

    def next_call(self) -> Any:
        self.follow(self.pipe.scheduler)
        role = self.role(self.pipe.scheduler)
        if self.calls and self.scales[role] is not None:
            self._refuse(f"calls its denoiser {len(self.calls) + 1} times in a step")
        return SimpleNamespace(role=role, guidance=self.scales[role])

    def role(self, scheduler: Any) -> str:
        """Return the role of the coming call. All calls of one step have the same role."""
        inside_step = not find(scheduler).begins(scheduler)
        return "base" if self.run.steps_run.total() - inside_step < self.run.k else "distilled"

    def is_doubled(self, sample: torch.Tensor) -> bool:
        """Tell whether the pipeline doubled its batch. In the first step it says so itself, or equal halves do."""
        role, size = self.role(self.pipe.scheduler), len(sample)
        if self.samples is not None:
            doubled = size == 2 * self.samples
        elif (doubled := getattr(self.pipe, "do_classifier_free_guidance", None)) is None:
            doubled = size % 2 == 0 and torch.equal(*sample.chunk(2))
        if doubled and size % 2 and role not in self.own:
            self._refuse(f"evaluates {size} inputs at once")
        self.calls.append((role, size, bool(doubled)))
        return bool(doubled)

    def _refuse(self, reason: str) -> None:
        raise NotImplementedError(
            f"{type(self.pipe).__name__} {reason}: its kind of guidance can only be left to the pipeline, by "
            "base_guidance=None and guidance=None"
        )

    def follow(self, scheduler: Any) -> None:
        """Count this scheduler from now on. A pipeline's scheduler may be replaced inside the block."""
        if not any(scheduler is other for other in self.schedulers):
            methods = self._methods(type(scheduler), find(scheduler))
            self.begin_call()
            override_methods(scheduler, methods)
            self.schedulers.append(scheduler)

    def begin_call(self) -> None:
        self.end_call()
        self.calls.clear()
        self.run.steps_run.clear()
        self.samples = None

    def end_call(self) -> None:
        steps, k = self.run.steps_run, self.run.k
        if steps["base"] and not steps["distilled"]:
            warnings.warn(
                f"this hybrid ran no step of the distilled model: the call made {steps['base']} steps, and k={k}; give it more "
                "steps or a smaller k",
                stacklevel=2,
            )

    def _methods(self, kind: type, rule: Any) -> dict[str, Any]:
        step, set_timesteps = getattr(kind, rule.step), kind.set_timesteps
        signature = inspect.signature(step)

        @functools.wraps(step)
        def counting_step(scheduler, *args, **kwargs):
            samples = self.samples = len(signature.bind(scheduler, *args, **kwargs).arguments[rule.names[2]])
            for role, inputs, doubled in self.calls:
                if self.scales[role] is not None and inputs != samples * (2 if doubled else 1):
                    self._refuse(f"evaluates {inputs} inputs for {samples} samples")
                if role in self.own:
                    self.run.nfe[role] += inputs // samples
            self.calls.clear()
            role, begins = self.role(scheduler), rule.begins(scheduler)
            output = step(scheduler, *args, **kwargs)
            self.run.steps_run[role] += begins
            return output

        @functools.wraps(set_timesteps)
        def resetting_set_timesteps(scheduler, *args, **kwargs):
            self.begin_call()
            return set_timesteps(scheduler, *args, **kwargs)

        return {rule.step: counting_step, "set_timesteps": resetting_set_timesteps}
