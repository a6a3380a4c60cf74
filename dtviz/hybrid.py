"""Varied images from one's own few-step call: the base model takes its first steps (Algorithm 1 of the paper).

with dtviz.hybrid(pipe, student, k=1):
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
from typing import Any

import torch

from .fit import check_student
from .networks import embeds_guidance
from .own_class import give_own_class, take_own_class
from .rules import find
from .sampling.switch import Switch, Turn


@dataclass
class Run:
    """What the last pipeline call inside the block ran.

    Attributes:
        k: leading steps given to the base.
        steps_run: {"base": 1, "distilled": 3}, as they really ran.
        nfe: denoiser evaluations a sample of each role, over all calls; guidance costs two a step.
    """

    k: int
    steps_run: Counter[str] = field(default_factory=Counter)
    nfe: Counter[str] = field(default_factory=Counter)

    def role(self, scheduler: Any) -> str:
        """Whose turn it is: of a step of several calls, all are the same one's."""
        within = not find(scheduler).begins(scheduler)
        return "base" if self.steps_run.total() - within < self.k else "distilled"

    def begin(self) -> None:
        """Another call begins."""
        self.end()
        self.steps_run.clear()

    def end(self) -> None:
        """Warn if the last call was no hybrid."""
        if self.steps_run["base"] and not self.steps_run["distilled"]:
            warnings.warn(
                f"this hybrid ran no student step: the call made {self.steps_run['base']} steps, and k={self.k} of them are "
                "the base's; give it more steps or a smaller k",
                stacklevel=2,
            )


@contextmanager
def hybrid(
    pipe: Any,
    student: torch.nn.Module | str,
    *,
    k: int = 1,
    base_guidance: float | None = 0.0,
    guidance: float | None = None,
    offload: bool = False,
) -> Iterator[Run]:
    """Give the first `k` steps of every pipeline call inside the block to the base, the others to the student.

    The call is one's own few-step call, its scheduler and steps the student's: text to image, image to image, inpainting,
    ControlNet. Only who denoises changes, on one scheduler (the published hand-over); `generate` also hands over from
    the base's own schedule.

    Args:
        pipe: a diffusers pipeline that holds the base denoiser and the scheduler the student is run with.
        student: the few-step denoiser, or the name of a distillation LoRA that is loaded on the base.
        k: leading steps given to the base, at least 1.
        base_guidance: guidance scale of the base's steps; 0 and 1 mean the conditional model, as published. Above 1 the
            call must have a guidance_scale above 1, whatever its value, so that the pipeline prepares the unconditional
            prompt. None leaves guidance to the pipeline.
        guidance: the same of the student's steps; None leaves it to the pipeline.
        offload: keep the network whose turn it is not in the host's memory, so that the accelerator holds one of the two.
            Have the student there already when the block begins.

    Yields:
        A `Run` with `steps_run` of the last call and `nfe` of all calls.

    Raises:
        ValueError: an argument is not what it may be, or student and base do not fit.
        NotImplementedError: the scheduler is not known.

        with dtviz.hybrid(pipe, "dmd2", k=1):  # the name of a LoRA that is loaded, or a UNet or transformer
            images = pipe("picture of a dog", num_inference_steps=4, guidance_scale=0).images
    """
    base = next((m for name in ("unet", "transformer") if (m := getattr(pipe, name, None)) is not None), None)
    if base is None:
        raise ValueError(f"pipe is a {type(pipe).__name__} without a unet or transformer")
    scales = {"base": base_guidance, "distilled": guidance}
    if base_guidance is not None and embeds_guidance(base):
        scales["base"] = base_guidance or 1.0  # an input of the network, which is no guidance at 1
    run = Run(_checked(k, base, student, scales, offload))
    batch = _Batch(pipe)
    watch = _Watch(run, batch)

    def turn() -> Turn:
        watch.follow(pipe.scheduler)
        role = run.role(pipe.scheduler)
        return Turn(role, scales[role])

    switch = Switch(pipe, base, student, turn=turn, doubled=batch.doubled, offload=offload, evaluations=run.nfe)
    watch.follow(pipe.scheduler)
    try:
        with switch.on():
            yield run
    finally:
        watch.release()
    run.end()


def _checked(
    k: int, base: torch.nn.Module, student: torch.nn.Module | str, scales: dict[str, float | None], offload: bool
) -> int:
    try:
        count = operator.index(k)
    except TypeError:
        count = 0
    if isinstance(k, bool) or count < 1:
        raise ValueError(f"k={k!r} must be an integer of at least 1: the leading steps that the base takes")
    for role, scale in scales.items():
        if scale is not None and not scale >= 0:
            name = "base_guidance" if role == "base" else "guidance"
            raise ValueError(f"{name}={scale!r} must be a number of at least 0, or None for the pipeline's own")
    check_student(base, student, name="student")
    if isinstance(student, torch.nn.Module):
        for what in ("dtype",) if offload else ("dtype", "device"):
            ours, theirs = getattr(student, what), getattr(base, what)
            if ours != theirs:
                raise ValueError(f"student and base differ in {what}: {ours} and {theirs}")
    return count


class _Batch:
    """Whether the pipeline doubles its batch for guidance, checked against the sample when it is stepped."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.seen = pipe, 0

    def doubled(self, n: int) -> bool:
        twice = bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        self.seen = n if twice else 0
        return twice

    def check(self, sample: torch.Tensor) -> None:
        if self.seen and self.seen != 2 * len(sample):
            raise NotImplementedError(
                f"{type(self.pipe).__name__} evaluates {self.seen} inputs for {len(sample)} samples; guidance of its own kind "
                "can only be left to it: base_guidance=None, guidance=None"
            )


class _Watch:
    """Counts a scheduler's steps: its instance gets a class of its own until the block ends, as in `capture`."""

    def __init__(self, run: Run, batch: _Batch) -> None:
        self.run, self.batch, self.watched = run, batch, []

    def follow(self, scheduler: Any) -> None:
        """Watch this one from now on; a pipeline's scheduler may be replaced inside the block."""
        if any(scheduler is known for known in self.watched):
            return
        rule = find(scheduler)
        self.run.begin()
        give_own_class(scheduler, self._counting(type(scheduler), rule.step, rule.names))
        self.watched.append(scheduler)

    def release(self) -> None:
        for scheduler in self.watched:
            take_own_class(scheduler)

    def _counting(self, kind: type, name: str, arguments: tuple[str, str, str]) -> dict[str, Any]:
        step, set_timesteps = getattr(kind, name), kind.set_timesteps
        signature = inspect.signature(step)

        @functools.wraps(step)
        def counting_step(scheduler, *args, **kwargs):
            self.batch.check(signature.bind(scheduler, *args, **kwargs).arguments[arguments[2]])
            role, begins = self.run.role(scheduler), find(scheduler).begins(scheduler)
            output = step(scheduler, *args, **kwargs)
            self.run.steps_run[role] += begins
            return output

        @functools.wraps(set_timesteps)
        def beginning_set_timesteps(scheduler, *args, **kwargs):
            self.run.begin()
            return set_timesteps(scheduler, *args, **kwargs)

        return {name: counting_step, "set_timesteps": beginning_set_timesteps}
