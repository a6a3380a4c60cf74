"""Collects what a scheduler's steps see, in memory that its numbers need and no more.

The recorder is passive: `capture` feeds it from a pipeline's own scheduler, `generate` from its relay of schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .guidance import split
from .rules import find, space
from .schedule import coefficients, noise_level, planned

DTYPES = (torch.float32, torch.float16)


class Rows:
    """Tensors of one shape, one after the other in a single host block; copies leave a GPU without waiting for it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.block: torch.Tensor | None = None
        self.count = 0

    def add(self, x: torch.Tensor, expected: int) -> None:
        """Append `x`; `expected` rows are set aside at the first call."""
        on_gpu = x.device.type == "cuda"
        if self.block is None:
            # page-locked, so that the copy is asynchronous; one block, since locking pages waits for the device
            self.block = torch.empty((max(expected, 1), *x.shape), dtype=self.dtype, pin_memory=on_gpu)
        if x.shape != self.block.shape[1:]:
            raise RuntimeError(
                f"the sample changed its shape from {tuple(self.block.shape[1:])} to {tuple(x.shape)} in one run: capture its stages apart"
            )
        if self.count == len(self.block):
            _wait()
            more = torch.empty_like(self.block, pin_memory=on_gpu)
            self.block = torch.cat([self.block, more])
        self.block[self.count].copy_(x.detach(), non_blocking=on_gpu)
        self.count += 1

    def tensor(self) -> torch.Tensor | None:
        """(row, ...) in ordinary memory, None when nothing was added."""
        if self.block is None:
            return None
        whole = self.count == len(self.block) and not self.block.is_pinned()
        return self.block if whole else self.block[: self.count].clone()


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Recorder:
    """The calls of one sampling run, in order.

    Args:
        x_t: keep the noisy samples too.
        guidance: keep the conditional and the unconditional x̂0 too; the denoiser's outputs go to `outputs`.
        clip: record x̂0 as the scheduler clips it.
        dtype: float32 or float16, how x̂0 and x_t are kept.
    """

    def __init__(
        self, *, x_t: bool = False, guidance: bool = False, clip: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self.clip, self.outputs = clip, [] if guidance else None
        self.x0, self.later = Rows(dtype), Rows(dtype)
        self.x_t = Rows(dtype) if x_t else None
        self.parts = {"conditional": Rows(dtype), "unconditional": Rows(dtype)} if guidance else {}
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # the step it belongs to, sigma, timestep
        self.pending: list[tuple[Rows, torch.Tensor, int]] = []  # of the last call, which may be taken back
        self.final: torch.Tensor | None = None

    def before(
        self,
        scheduler,
        model_output: torch.Tensor,
        timestep,
        sample: torch.Tensor,
        *,
        arguments: Mapping[str, Any] | None = None,
        expected: int | None = None,
    ) -> torch.Tensor:
        """Record, and return, x̂0 of the step about to be made; `arguments` are the step's others."""
        arguments = arguments or {}
        expected = expected or _remaining(scheduler)
        guided = arguments.get("pred_original_sample")
        if guided is None:
            self._keep()
        elif self.calls:  # Cosmos guides x̂0 itself: it steps to get it, takes that step back, and steps with it
            self.pending.clear()
            self.calls.pop()
        kept = self.pending

        level = noise_level(scheduler, timestep, arguments)

        def x0_of(output: torch.Tensor) -> torch.Tensor:
            return planned(scheduler, output, timestep, sample, level, clip=self.clip)

        x0 = x0_of(model_output) if guided is None else guided.float()
        starts = find(scheduler).begins(scheduler)
        step = (self.calls[-1][0] if self.calls else -1) + starts
        self.calls.append((step, level.max(), torch.as_tensor(timestep).flatten()[0]))
        kept.append((self.x0 if starts else self.later, x0, expected))
        if starts and self.x_t is not None:
            a, b = coefficients(scheduler, level)
            unit = 1.0 if space(scheduler) != "ve" else (a**2 + b**2).rsqrt().to(sample.device, torch.float32)
            kept.append((self.x_t, sample.float() * unit, expected))
        if starts and self.outputs is not None:
            for name, output in zip(self.parts, split(self.outputs, model_output), strict=True):
                part = torch.full_like(x0, torch.nan) if output is None else x0_of(output)
                kept.append((self.parts[name], part, expected))
        if self.outputs is not None:
            self.outputs.clear()
        return x0

    def _keep(self) -> None:
        """Move what the last call planned off the device."""
        for rows, values, expected in self.pending:
            rows.add(values, expected)
        self.pending.clear()

    def after(self, output) -> None:
        """Record the sample that the step made."""
        self.final = output[0] if isinstance(output, tuple) else output.prev_sample

    def starts(self) -> list[int]:
        """The number of the first call of each step."""
        steps = [step for step, _, _ in self.calls]
        return [steps.index(step) for step in range(steps[-1] + 1)]

    def restart(self) -> None:
        """Called when a scheduler is given new timesteps: a second run in one recording is a mistake."""
        if self.calls:
            raise RuntimeError(
                f"one capture holds one run of the pipeline, and its scheduler got new timesteps after {len(self.calls)} "
                "calls: open a new `with dtviz.capture(...)` for each pipeline call, and turn off what runs it again (FreeInit)"
            )

    def fields(self) -> dict[str, Any]:
        """What was recorded under `Trace`'s names.

        Raises:
            RuntimeError: nothing was recorded.
        """
        if self.final is None:
            raise RuntimeError("nothing was captured: the pipeline made no scheduler step inside the block")
        self._keep()
        _wait()
        steps, sigmas, timesteps = zip(*self.calls, strict=True)
        sigmas, timesteps = (torch.stack([v.cpu().float() for v in values]) for values in (sigmas, timesteps))
        first = self.starts()
        several = len(steps) > len(first)
        return {
            "x0": self.x0.tensor(),
            "sigmas": sigmas[first],
            "timesteps": timesteps[first],
            # a copy: the pipeline's own may be changed in place
            "final": self.final.detach().to("cpu", torch.float32, copy=True),
            "x_t": None if self.x_t is None else self.x_t.tensor(),
            **{name: rows.tensor() for name, rows in self.parts.items()},
            "later_x0": self.later.tensor(),
            "call_steps": torch.tensor(steps) if several else None,
            "call_sigmas": sigmas if several else None,
            "call_timesteps": timesteps if several else None,
        }


def _remaining(scheduler) -> int:
    """How many steps the run will take at most."""
    begin = getattr(scheduler, "begin_index", None) or 0
    return -(-(len(scheduler.timesteps) - begin) // getattr(scheduler, "order", 1))
