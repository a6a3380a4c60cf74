"""Record the predicted x0 of every step of a diffusers pipeline, without changing anything else.

with dtviz.capture(pipe) as trace:
    pipe("a dog", num_inference_steps=30)
trace.x0.shape  # (step, sample, channel, height, width)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import diffusers
import torch

from .denoisers import split_guidance
from .schedulers import active, find, prediction, space
from .trace import Trace
from .x0 import noise_level, signal_and_noise, x0_at_level

DENOISERS = ("unet", "transformer", "prior", "decoder")  # how diffusers' names for denoisers begin
DTYPES = (torch.float32, torch.float16)


@contextmanager
def capture(
    pipe,
    *,
    x_t: bool = False,
    guidance: bool = False,
    clip: bool = False,
    dtype: torch.dtype = torch.float32,
    scheduler: str = "scheduler",
) -> Iterator[Trace]:
    """Record x0 at every step of the pipeline call made inside the block.

    No denoiser call is added and no pixel changes. A pipeline that blends the last latents with an image after its last step
    (inpainting with a four-channel denoiser) does so after `trace.final`.

    Args:
        pipe: a diffusers pipeline whose scheduler class has an x0 (`dtviz.schedulers()`).
        x_t: keep the noisy latents before each step (`trace.x_t`).
        guidance: keep the x0 of the conditional and of the unconditional denoiser output (`trace.conditional`,
            `trace.unconditional`).
        clip: clip or threshold x0 as the scheduler does, if its settings say so.
        dtype: `torch.float32` or `torch.float16`, the type of x0 and x_t in the trace.
        scheduler: name of the pipeline's scheduler, if it has several ("prior_scheduler").

    Yields:
        The `Trace`, empty until the block ends. After an interruption it holds what was recorded before.

    Raises:
        NotImplementedError: the scheduler has no x0.
        RuntimeError: the pipeline is being captured already, ran twice, or made no step.
        ValueError: an argument is out of range.

        with dtviz.capture(pipe) as trace:
            pipe("picture of a dog", num_inference_steps=30)
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is not one of {', '.join(map(str, DTYPES))}")
    if not hasattr(getattr(pipe, scheduler, None), "config"):
        names = [name for name in getattr(pipe, "components", {}) if name.endswith("scheduler")]
        raise ValueError(f"scheduler={scheduler!r}: this {type(pipe).__name__} has {', '.join(names) or 'none'}")
    trace = object.__new__(Trace)
    session = _Session(pipe, scheduler, {"x_t": x_t, "guidance": guidance, "clip": clip, "dtype": dtype})
    try:
        with session.recording():
            yield trace
    except BaseException:
        with suppress(RuntimeError):
            _fill(trace, session)
        raise
    else:
        _fill(trace, session)
    finally:
        session.clear()


def _fill(trace: Trace, session: _Session) -> None:
    fields = session.finished_recorder().fields()
    scheduler = type(getattr(session.pipe, session.name)).__name__
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    provenance = {"pipeline": type(session.pipe).__name__, "scheduler": scheduler, "versions": versions}
    filled = Trace(**fields, steps_run={"denoiser": len(fields["x0"])}, provenance=provenance)
    for name, value in vars(filled).items():
        object.__setattr__(trace, name, value)


def override_methods(instance: Any, methods: dict[str, Any]) -> None:
    """Replace methods of one instance by giving it a subclass of its class with the same name.

    A deep copy keeps the class and steps itself. An attribute set on the instance would be copied and step the original.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler()
    >>> override_methods(scheduler, {"scale_model_input": lambda self, sample, timestep=None: 2 * sample})
    >>> scheduler.scale_model_input(1.5), type(scheduler).__name__, DDIMScheduler().scale_model_input(1.5)
    (3.0, 'DDIMScheduler', 1.5)
    >>> restore_methods(scheduler)
    >>> scheduler.scale_model_input(1.5)
    1.5
    """
    kind = type(instance)
    names = {part: getattr(kind, part) for part in ("__module__", "__qualname__", "__doc__")}
    instance.__class__ = type(kind.__name__, (kind,), methods | names)


def restore_methods(instance: Any) -> None:
    """Undo the last `override_methods` of the instance, or of a copy of it."""
    instance.__class__ = type(instance).__mro__[1]


class _Session:
    """One capture: the pipeline's scheduler, copies of it, and schedulers that the pipeline puts in its place."""

    def __init__(self, pipe, name: str, options: dict[str, Any]) -> None:
        self.pipe, self.name, self.options, self.open = pipe, name, options, False
        self.main = Recorder(**options)  # of the pipeline's own schedulers; each copy has a recorder of its own
        self.recorders: list[tuple[Any, Recorder]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.callback(self._release)
            self._follow()
            self.open = True
            for name, module in self.pipe.components.items():
                if isinstance(module, torch.nn.Module):
                    stack.callback(module.register_forward_pre_hook(self._follow).remove)
                    if self.options["guidance"] and name.startswith(DENOISERS):
                        stack.callback(module.register_forward_hook(self._keep_output).remove)
            yield

    def _follow(self, *_) -> None:
        """Record the pipeline's present scheduler. It may have been replaced when the denoiser is called."""
        scheduler = getattr(self.pipe, self.name)
        if any(scheduler is other and recorder is self.main for other, recorder in self.recorders):
            return
        prediction(active(scheduler))  # refuses what has no x0
        kind, step = type(scheduler), "step" if active(scheduler) is not scheduler else find(scheduler).step
        session = getattr(kind, "_dtviz_session", None)
        if session not in (None, self) or step in vars(scheduler):
            raise RuntimeError(f"this {kind.__name__} is being captured or patched already: captures do not nest")
        if session is None:  # otherwise a copy of a recorded one, now in its place
            override_methods(scheduler, _recording_methods(kind, step, self))
        self.recorders.insert(0, (scheduler, self.main))

    def _keep_output(self, _, __, output) -> None:
        if self.main.outputs is not None:
            self.main.outputs.append(output[0] if isinstance(output, tuple) else getattr(output, "sample", output))

    def _release(self) -> None:
        self.open = False
        for scheduler, _ in self.recorders:
            if hasattr(scheduler, "_dtviz_session"):
                restore_methods(scheduler)

    def clear(self) -> None:  # the schedulers' classes and the session refer to each other
        self.main, self.recorders = Recorder(), []

    def recorder(self, scheduler) -> Recorder:
        """Return the recorder of this scheduler's steps."""
        for other, recorder in self.recorders:
            if scheduler is other:
                return recorder
        self.recorders.append((scheduler, Recorder(**self.options | {"guidance": False})))
        return self.recorders[-1][1]

    def finished_recorder(self) -> Recorder:
        """Return the recorder of the pipeline's own scheduler, or of the one copy that stepped in its place."""
        copies = [recorder for _, recorder in self.recorders if recorder.calls and recorder is not self.main]
        if self.main.calls or not copies:
            return self.main
        if len(copies) > 1:
            raise RuntimeError(
                f"{type(self.pipe).__name__} stepped {len(copies)} copies of its scheduler, each on a part of the sample: "
                "they do not make one trace"
            )
        return copies[0]


def _recording_methods(kind: type, name: str, session: _Session) -> dict[str, Any]:
    """Return the methods of a class like `kind` that records its steps."""
    step, set_timesteps = getattr(kind, name), kind.set_timesteps
    signature = inspect.signature(step)

    # functools.wraps keeps the signature. Pipelines look in it for `generator` and `eta`, and drop the seed without it.
    @functools.wraps(step)
    def recording_step(self, *args, **kwargs):
        if not session.open:  # a copy that outlived the block
            return step(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        recorder, scheduler = session.recorder(self), active(self)
        if scheduler is self:
            model_output, timestep, sample = (given[argument] for argument in find(self).names)
        else:
            model_output, timestep, sample = given["model_output"], self.call.timestep, given["sample"]
        expected = _remaining_steps(self)
        recorder.before_step(scheduler, model_output, timestep, sample, expected=expected, arguments=given)
        output = step(self, *args, **kwargs)
        recorder.after_step(output)
        return output

    @functools.wraps(set_timesteps)
    def recording_set_timesteps(self, *args, **kwargs):
        if session.open:
            session.recorder(self).check_empty()
        return set_timesteps(self, *args, **kwargs)

    return {name: recording_step, "set_timesteps": recording_set_timesteps, "_dtviz_session": session}


def _remaining_steps(scheduler) -> int:
    """Return how many steps the run makes at most."""
    begin = getattr(scheduler, "begin_index", None) or 0
    return -(-(len(scheduler.timesteps) - begin) // getattr(scheduler, "order", 1))


class Rows:
    """Tensors of one shape in a single host block. Copies leave a GPU without waiting for it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.block: torch.Tensor | None = None
        self.count = 0

    def add(self, x: torch.Tensor, expected: int) -> None:
        """Append `x`. The first call allocates `expected` rows."""
        on_gpu = x.device.type == "cuda"
        if self.block is None:
            # Page-locked, so that the copy is asynchronous. One block, because locking pages waits for the device.
            self.block = torch.empty((max(expected, 1), *x.shape), dtype=self.dtype, pin_memory=on_gpu)
        if x.shape != self.block.shape[1:]:
            shapes = tuple(self.block.shape[1:]), tuple(x.shape)
            raise RuntimeError(
                f"the sample changed its shape from {shapes[0]} to {shapes[1]} in one run: capture its stages apart"
            )
        if self.count == len(self.block):
            _synchronize()
            larger = torch.empty((2 * self.count, *x.shape), dtype=self.dtype, pin_memory=on_gpu)
            larger[: self.count] = self.block
            self.block = larger
        self.block[self.count].copy_(x.detach(), non_blocking=on_gpu)
        self.count += 1

    def tensor(self) -> torch.Tensor | None:
        """Return (row, ...) in ordinary memory, or None if nothing was added."""
        if self.block is None:
            return None
        whole = self.count == len(self.block) and not self.block.is_pinned()
        return self.block if whole else self.block[: self.count].clone()


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Recorder:
    """The scheduler steps of one run, in order. Options as in `capture`; denoiser outputs are appended to `outputs`."""

    def __init__(
        self, *, x_t: bool = False, guidance: bool = False, clip: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self.clip, self.outputs = clip, [] if guidance else None
        self.x0, self.later = Rows(dtype), Rows(dtype)
        self.x_t = Rows(dtype) if x_t else None
        self.parts = {"conditional": Rows(dtype), "unconditional": Rows(dtype)} if guidance else {}
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, sigma, timestep
        self.pending: list[tuple[Rows, torch.Tensor, int]] = []  # rows of the last call, which may be taken back
        self.final: torch.Tensor | None = None

    def before_step(
        self,
        scheduler,
        model_output: torch.Tensor,
        timestep,
        sample: torch.Tensor,
        *,
        expected: int,
        arguments: Mapping[str, Any],
    ) -> None:
        """Record x0 of the step that comes. `arguments` are all arguments of the step, `expected` the number of rows."""
        guided = arguments.get("pred_original_sample")
        if guided is None:
            self._store_pending()
        elif self.calls:  # Cosmos guides x0: it steps to get it, takes that step back, and steps with the guided x0
            self.pending.clear()
            self.calls.pop()
        level = noise_level(scheduler, timestep, arguments)

        def x0_of(output: torch.Tensor) -> torch.Tensor:
            return x0_at_level(scheduler, output, timestep, sample, level, clip=self.clip)

        x0 = x0_of(model_output) if guided is None else guided.float()
        starts = find(scheduler).begins(scheduler)
        step = (self.calls[-1][0] if self.calls else -1) + starts
        self.calls.append((step, level.max(), torch.as_tensor(timestep).flatten()[0]))
        self.pending.append((self.x0 if starts else self.later, x0, expected))
        if starts and self.x_t is not None:
            a, b = signal_and_noise(scheduler, level)
            unit = 1.0 if space(scheduler) != "ve" else (a**2 + b**2).rsqrt().to(sample.device, torch.float32)
            self.pending.append((self.x_t, sample.float() * unit, expected))
        if starts and self.outputs is not None:
            for name, output in zip(self.parts, split_guidance(self.outputs, model_output), strict=True):
                part = torch.full_like(x0, torch.nan) if output is None else x0_of(output)
                self.pending.append((self.parts[name], part, expected))
        if self.outputs is not None:
            self.outputs.clear()

    def _store_pending(self) -> None:
        """Copy the rows of the last call off the device."""
        for rows, values, expected in self.pending:
            rows.add(values, expected)
        self.pending.clear()

    def after_step(self, output) -> None:
        """Record the sample that the step made."""
        self.final = output[0] if isinstance(output, tuple) else output.prev_sample

    def check_empty(self) -> None:
        """Refuse new timesteps after steps were recorded: one capture holds one run."""
        if self.calls:
            raise RuntimeError(
                f"one capture holds one run of the pipeline, and its scheduler got new timesteps after {len(self.calls)} "
                "calls: open a new `with dtviz.capture(...)` for each pipeline call, and turn off what runs it again (FreeInit)"
            )

    def fields(self) -> dict[str, Any]:
        """Return what was recorded under the names of `Trace`."""
        if self.final is None:
            raise RuntimeError("nothing was captured: the pipeline made no scheduler step inside the block")
        self._store_pending()
        _synchronize()
        steps, sigmas, timesteps = zip(*self.calls, strict=True)
        sigmas, timesteps = (torch.stack([v.cpu().float() for v in values]) for values in (sigmas, timesteps))
        first = [steps.index(step) for step in range(steps[-1] + 1)]
        several = len(steps) > len(first)
        return {
            "x0": self.x0.tensor(),
            "sigmas": sigmas[first],
            "timesteps": timesteps[first],
            "final": self.final.detach().to(
                "cpu", torch.float32, copy=True
            ),  # the pipeline may change its own in place
            "x_t": None if self.x_t is None else self.x_t.tensor(),
            **{name: rows.tensor() for name, rows in self.parts.items()},
            "later_x0": self.later.tensor(),
            "call_steps": torch.tensor(steps) if several else None,
            "call_sigmas": sigmas if several else None,
            "call_timesteps": timesteps if several else None,
        }
