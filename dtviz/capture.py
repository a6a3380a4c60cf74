"""Record the predicted x̂0 of every step of a diffusers pipeline, changing nothing else.

with dtviz.capture(pipe) as trace:
    pipe("a dog", num_inference_steps=30)
trace.x0.shape      # (step, sample, channel, height, width)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .schedule import predict_x0, rule
from .schedule import sigma as sigma_at
from .trace import Trace


class Recorder:
    """Collects what each call of a scheduler's `step` sees; one recorder may watch several schedulers in turn."""

    def __init__(self, *, x_t: bool = False) -> None:
        self.keep_x_t = x_t
        self.x0: list[torch.Tensor] = []
        self.x_t: list[torch.Tensor] = []
        self.sigmas: list[float] = []
        self.timesteps: list[float] = []
        self.final: torch.Tensor | None = None

    def before(self, scheduler, model_output: torch.Tensor, timestep, sample: torch.Tensor) -> torch.Tensor:
        """Record, and return, x̂0 of the step about to be made."""
        x0 = predict_x0(scheduler, model_output, timestep, sample)
        self.x0.append(x0.cpu())
        level = sigma_at(scheduler, timestep)
        self.sigmas.append(level)
        self.timesteps.append(float(timestep))
        if self.keep_x_t:
            unit = 1.0 if rule(scheduler).variance_preserving else (1 + level**2) ** -0.5
            self.x_t.append((sample.float() * unit).cpu())
        return x0

    def after(self, output) -> None:
        """Record the sample that the step made."""
        self.final = output[0] if isinstance(output, tuple) else output.prev_sample

    def restart(self) -> None:
        """Called when a scheduler is given new timesteps: a second run in one recording is a mistake."""
        if self.x0:
            raise RuntimeError(
                "one capture holds one run of the pipeline: open a new `with dtviz.capture(...)` for the next"
            )

    @contextmanager
    def watch(self, scheduler) -> Iterator[None]:
        """Wrap this scheduler instance's `step` until the block ends, however it ends.

        Raises:
            NotImplementedError: x̂0 is not known for this scheduler class.
            RuntimeError: the scheduler is being watched already.
        """
        rule(scheduler)
        if "step" in vars(scheduler):
            raise RuntimeError(f"this {type(scheduler).__name__} is being captured already: captures do not nest")
        step, set_timesteps = scheduler.step, scheduler.set_timesteps
        arguments = inspect.signature(step)

        # functools.wraps keeps the signature: pipelines look in it for `generator` and `eta` and drop the seed otherwise
        @functools.wraps(step)
        def recording_step(*args, **kwargs):
            given = arguments.bind(*args, **kwargs).arguments
            self.before(scheduler, given["model_output"], given["timestep"], given["sample"])
            output = step(*args, **kwargs)
            self.after(output)
            return output

        @functools.wraps(set_timesteps)
        def recording_set_timesteps(*args, **kwargs):
            self.restart()
            return set_timesteps(*args, **kwargs)

        scheduler.step, scheduler.set_timesteps = recording_step, recording_set_timesteps
        try:
            yield
        finally:
            del scheduler.step, scheduler.set_timesteps

    def fields(self) -> dict[str, torch.Tensor | None]:
        """The recorded tensors under `Trace`'s names.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if self.final is None:
            raise RuntimeError("nothing was captured: the pipeline made no scheduler step inside the block")
        return {
            "x0": torch.stack(self.x0),
            "sigmas": torch.tensor(self.sigmas, dtype=torch.float32),
            "timesteps": torch.tensor(self.timesteps, dtype=torch.float32),
            "final": self.final.float().cpu(),
            "x_t": torch.stack(self.x_t) if self.keep_x_t else None,
        }


@contextmanager
def capture(pipe, *, x_t: bool = False) -> Iterator[Trace]:
    """Record x̂0 at every step of the pipeline call made inside the block.

    Args:
        pipe: any diffusers pipeline whose scheduler class `predict_x0` knows.
        x_t: keep the noisy latents before each step as well (`trace.x_t`).

    Yields:
        The `Trace`, empty until the block ends. No denoiser call is added and no pixel changes.

    Raises:
        NotImplementedError: the scheduler class has no x̂0 rule.
        RuntimeError: the pipeline is being captured already, ran twice, or made no step.
    """
    recorder = Recorder(x_t=x_t)
    trace = object.__new__(Trace)
    with recorder.watch(pipe.scheduler):
        yield trace
    done = Trace(**recorder.fields(), steps_run={"denoiser": len(recorder.x0)})
    for name, value in vars(done).items():
        object.__setattr__(trace, name, value)
