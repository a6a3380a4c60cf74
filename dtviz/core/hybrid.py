"""Hybrid sampling inside one's own pipeline call: the base denoises its first k steps (Algorithm 1 of the paper)."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from types import SimpleNamespace
from typing import Any

import torch

from .capture import override_methods, restore_methods
from .denoisers import DenoiserRouter, embeds_guidance, network
from .schedulers import find


@contextmanager
def hybrid(
    pipe: Any, distilled: torch.nn.Module | str, *, k: int = 1, base_guidance: float | None = 0.0,
    guidance: float | None = None, fuse: bool = True,
) -> Iterator[HybridRun]:  # fmt: skip
    """Give the first `k` steps of every pipeline call inside the block to the base, the others to the distilled model.

    The call is an ordinary few-step call with the distilled model's scheduler. This is the published hand-over.

    Args:
        pipe: a diffusers pipeline that holds the base denoiser and the distilled model's scheduler.
        distilled: the few-step denoiser, or the name of a distillation LoRA loaded on the base.
        k: leading steps given to the base, at least 1.
        base_guidance: guidance scale of the base's steps. 0 and 1: the conditional model, as published. Above 1 the call
            needs a guidance_scale above 1, so that the pipeline prepares the unconditional prompt. None: the pipeline's own.
        guidance: guidance scale of the distilled model's steps. None: the pipeline's own.
        fuse: add a LoRA to the weights, at a plain network's speed. Until the block ends this keeps a fused copy of the weights
            that it changes. False, or where half of the free memory cannot hold them: peft adds it to each output, in up to
            twice the time. The two round differently (docs/pairs.md). The network is the same after the block, to the bit.

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
    run = HybridRun(pipe, k, {"base": base_guidance, "distilled": guidance})
    run._router = DenoiserRouter(pipe, base, distilled, run._next_call, run._is_doubled, fuse=fuse, evaluations=run.nfe)
    try:
        with run._router.active():
            _check_placement(base, network(base, distilled, "distilled"))
            run._follow(pipe.scheduler)
            yield run
    finally:
        for scheduler in run._schedulers:
            restore_methods(scheduler)
    run._end_call()


def _check_placement(base: torch.nn.Module, distilled: torch.nn.Module) -> None:
    """Refuse networks of two types or on two devices. accelerate keeps an offloaded base on the CPU between its calls."""
    first = [next(module.parameters()) for module in (distilled, base)]
    if len({(one.dtype, one.device.type) for one in first}) == 1:  # the properties below walk all modules
        return
    device = getattr(getattr(base, "_hf_hook", None), "execution_device", None) or base.device
    values = {"dtype": (distilled.dtype, base.dtype), "device": (distilled.device.type, torch.device(device).type)}
    for what, (ours, theirs) in values.items():
        if ours != theirs:
            raise ValueError(f"distilled and base differ in {what}: {ours} and {theirs}")


class HybridRun:
    """What the pipeline calls inside the block ran. Methods of the pipeline's scheduler are overridden to count its steps.

    Attributes:
        k: leading steps given to the base.
        steps_run: steps of the last call by role, such as {"base": 1, "distilled": 3}.
        nfe: denoiser evaluations per sample by role, over all calls. Guidance costs two per step.
    """

    _router: DenoiserRouter

    def __init__(self, pipe: Any, k: int, scales: dict[str, float | None]) -> None:
        self.k, self.steps_run, self.nfe = k, Counter(), Counter()
        self._pipe, self._scales = pipe, scales
        self._schedulers: list[Any] = []
        # Size, and whether doubled, of each call since the last step that is not left to the pipeline
        self._calls: list[tuple[int, bool]] = []
        self._samples: int | None = None  # known after the first step of a call

    def _next_call(self) -> Any:
        self._follow(self._pipe.scheduler)
        role = self._role(self._pipe.scheduler)
        if self._calls and self._scales[role] is not None:
            self._refuse(f"calls its denoiser {len(self._calls) + 1} times in a step")
        return SimpleNamespace(role=role, guidance=self._scales[role])

    def _role(self, scheduler: Any) -> str:
        """Return the role of the coming call. All calls of one step have the same role."""
        inside_step = not find(scheduler).begins(scheduler)
        return "base" if self.steps_run.total() - inside_step < self.k else "distilled"

    def _is_doubled(self, sample: torch.Tensor) -> bool:
        """Tell whether the pipeline doubled its batch. In the first step it says so itself, or equal halves do."""
        size = len(sample)
        if self._samples is not None:
            doubled = size == 2 * self._samples
        elif (doubled := getattr(self._pipe, "do_classifier_free_guidance", None)) is None:
            doubled = size % 2 == 0 and torch.equal(*sample.chunk(2))
        if doubled and size % 2:
            self._refuse(f"evaluates {size} inputs at once")
        self._calls.append((size, bool(doubled)))
        return bool(doubled)

    def _refuse(self, reason: str) -> None:
        cure = "leave its kind of guidance to the pipeline, by base_guidance=None and guidance=None"
        raise NotImplementedError(f"{type(self._pipe).__name__} {reason}: {cure}")

    def _follow(self, scheduler: Any) -> None:
        """Count this scheduler from now on. A pipeline's scheduler may be replaced inside the block."""
        if scheduler not in self._schedulers:
            methods = self._methods(type(scheduler), find(scheduler))
            self._begin_call()
            override_methods(scheduler, methods)
            self._schedulers.append(scheduler)

    def _begin_call(self) -> None:
        self._end_call()
        for counts in (self._calls, self._router.left, self.steps_run):
            counts.clear()
        self._samples = None

    def _end_call(self) -> None:
        if self.steps_run["base"] and not self.steps_run["distilled"]:
            run = f"the call made {self.steps_run['base']} steps, and k={self.k}: give it more steps or a smaller k"
            warnings.warn(f"this hybrid ran no step of the distilled model: {run}", stacklevel=2)

    def _methods(self, kind: type, rule: Any) -> dict[str, Any]:
        """Return methods of a class like `kind` that count its steps."""
        step, set_timesteps = getattr(kind, rule.step), kind.set_timesteps
        signature = inspect.signature(step)

        @functools.wraps(step)
        def counting_step(scheduler, *args, **kwargs):
            samples = self._samples = len(signature.bind(scheduler, *args, **kwargs).arguments[rule.names[2]])
            for size, doubled in self._calls:
                if size != samples * (1 + doubled):
                    self._refuse(f"evaluates {size} inputs for {samples} samples")
            for role, inputs in self._router.left.items():
                self.nfe[role] += inputs // samples
            self._calls.clear()
            self._router.left.clear()
            role, begins = self._role(scheduler), rule.begins(scheduler)
            output = step(scheduler, *args, **kwargs)
            self.steps_run[role] += begins
            return output

        @functools.wraps(set_timesteps)
        def resetting_set_timesteps(scheduler, *args, **kwargs):
            self._begin_call()
            return set_timesteps(scheduler, *args, **kwargs)

        return {rule.step: counting_step, "set_timesteps": resetting_set_timesteps}
