"""Record the predicted x0 of every step of a diffusers pipeline, without changing anything else."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import diffusers
import torch

from .denoisers import split_guidance
from .schedulers import active, find, prediction, space
from .trace import Trace
from .x0 import noise_level, on, same_timestep, x0_at_level

ASYNCHRONOUS = ("cuda",)  # devices that copy to page-locked host memory while the host goes on


@contextmanager
def capture(pipe, *, x_t: bool = False, guidance: bool = False, scheduler: str = "scheduler") -> Iterator[Trace]:
    """Record x0 at every step of the pipeline call made inside the block. No denoiser call is added and no pixel changes.

    Args:
        pipe: a diffusers pipeline whose scheduler class has an x0 (`dtviz.schedulers()`).
        x_t: keep the noisy latents before each step (`trace.x_t`).
        guidance: keep x0 of the conditional and the unconditional denoiser output (`trace.conditional`, `.unconditional`).
        scheduler: name of the pipeline's scheduler, if it has several ("prior_scheduler").

    Yields:
        The `Trace`, empty until the block ends. After an interruption it holds what was recorded before.

    Raises:
        NotImplementedError: the scheduler has no x0, or `guidance=True` and the outputs cannot be told apart. If only the
            call shows that, the error comes when the block ends, with the trace filled.
        RuntimeError: the pipeline is being captured already, ran twice, made no step, or steps parts of its sample apart.
        ValueError: the pipeline has no scheduler of this name.

        with dtviz.capture(pipe) as trace:
            pipe("picture of a dog", num_inference_steps=30)
    """
    if not hasattr(getattr(pipe, scheduler, None), "config"):
        names = [name for name in vars(pipe) if name.endswith("scheduler")]
        raise ValueError(f"scheduler={scheduler!r}: this {type(pipe).__name__} has {', '.join(names) or 'none'}")
    trace = object.__new__(Trace)
    session = _Session(pipe, scheduler, x_t=x_t, guidance=guidance)
    try:
        session.start()
        yield trace
    except BaseException:
        with suppress(RuntimeError):
            session.fill(trace)
        raise
    else:
        session.fill(trace)
        if session.main.refusal is not None:
            raise session.main.refusal
    finally:
        session.close()


def _denoisers(pipe, scheduler: str) -> list[torch.nn.Module]:
    """Return the modules whose outputs this scheduler steps: `unet` of "scheduler", `prior_prior` of "prior_scheduler"."""
    kind, stage = type(pipe).__name__, scheduler.removesuffix("scheduler")
    names = re.compile(rf"{stage}(unet|transformer|prior|decoder)(_\d+)?|{stage[:-1] or '-'}")
    modules = {m: name for name, m in vars(pipe).items() if isinstance(m, torch.nn.Module) and names.fullmatch(name)}
    if not modules:
        raise NotImplementedError(f"guidance=True: {kind} has no denoiser of its {scheduler} by a known name")
    if hasattr(pipe, "set_pag_applied_layers") or "InstructPix2Pix" in kind:
        raise NotImplementedError(f"guidance=True: {kind} guides by three outputs, not two: capture it without")
    return list(modules)


class _EqualClass(type):
    """A class equal to the one it extends: some pipelines compare `type(self.scheduler)`."""

    def __eq__(cls, other: Any) -> bool:
        return other is cls or other == cls.__mro__[1]

    def __hash__(cls) -> int:
        return hash(cls.__mro__[1])


def override_methods(instance: Any, methods: dict[str, Any]) -> None:
    """Replace methods of one instance by giving it a subclass of its class, with the same name and equal to it.

    A copy keeps the class and steps itself. An attribute set on the instance would be copied and step the original.
    """
    kind = type(instance)
    names = {part: getattr(kind, part) for part in ("__module__", "__qualname__", "__doc__")}
    instance.__class__ = _EqualClass(kind.__name__, (kind,), methods | names)


def restore_methods(instance: Any) -> None:
    """Undo the last `override_methods` of the instance, or of a copy of it."""
    instance.__class__ = type(instance).__mro__[1]


class _Session:
    """One capture: the pipeline's scheduler, copies of it, and schedulers that the pipeline puts in its place."""

    def __init__(self, pipe, name: str, *, x_t: bool, guidance: bool) -> None:
        self.pipe, self.name, self.x_t, self.open = pipe, name, x_t, False
        self.denoisers = _denoisers(pipe, name) if guidance else []
        self.main = Recorder(x_t=x_t, guidance=guidance)  # of the pipeline's own schedulers; each copy has its own
        self.recorders: dict[int, tuple[Any, Recorder]] = {}  # by id of the scheduler
        self.hooks: list[Any] = []

    def start(self) -> None:
        self._follow()
        self.open = True
        # Each hook is kept in the line that registers it: Ctrl-C may come between two lines
        for module in [part for part in vars(self.pipe).values() if isinstance(part, torch.nn.Module)]:
            self.hooks.append(module.register_forward_pre_hook(self._follow))
        for module in self.denoisers:
            self.hooks.append(module.register_forward_hook(self._keep_output))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        for scheduler, _ in self.recorders.values():
            if hasattr(scheduler, "_dtviz_session"):
                restore_methods(scheduler)
        # The schedulers' classes and the session refer to each other
        self.main, self.recorders, self.open = Recorder(), {}, False

    def _follow(self, *_) -> None:
        """Record the pipeline's present scheduler. It may have been replaced when the denoiser is called."""
        scheduler = getattr(self.pipe, self.name)
        if id(scheduler) in self.recorders and self.recorders[id(scheduler)][1] is self.main:
            return
        prediction(active(scheduler))  # refuses what has no x0
        kind, step = type(scheduler), "step" if active(scheduler) is not scheduler else find(scheduler).step
        session = getattr(kind, "_dtviz_session", None)
        if session not in (None, self) or step in vars(scheduler):
            raise RuntimeError(f"this {kind.__name__} is being captured or patched already: captures do not nest")
        if session is None:  # otherwise a copy of a recorded one, now in its place
            override_methods(scheduler, _recording_methods(kind, step, self))
        self.recorders[id(scheduler)] = scheduler, self.main

    def _keep_output(self, _, __, output) -> None:
        self.main.outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    def recorder(self, scheduler) -> Recorder:
        """Return the recorder of this scheduler's steps."""
        return self.recorders.setdefault(id(scheduler), (scheduler, Recorder(x_t=self.x_t)))[1]

    def fill(self, trace: Trace) -> None:
        """Fill the trace with the steps of the pipeline's own scheduler, or of the one copy that stepped in its place."""
        kind = type(self.pipe).__name__
        copies = [recorder for _, recorder in self.recorders.values() if recorder.calls and recorder is not self.main]
        if len(copies) > 1 and not self.main.calls:
            raise RuntimeError(f"{kind} stepped {len(copies)} copies of its scheduler on parts of a sample: no trace")
        recorder = self.main if self.main.calls or not copies else copies[0]
        values, versions = recorder.fields(), {"torch": torch.__version__, "diffusers": diffusers.__version__}
        scheduler = type(getattr(self.pipe, self.name)).__name__
        provenance = {"pipeline": kind, "scheduler": scheduler, "versions": versions}
        filled = Trace(**values, steps_run={"denoiser": len(values["x0"])}, provenance=provenance)
        for field in fields(Trace):
            object.__setattr__(trace, field.name, getattr(filled, field.name))


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
        names = find(self).names if scheduler is self else ("model_output", "timestep", "sample")
        values = [given[argument] for argument in names]
        if scheduler is not self:
            values[1] = self.call.timestep
        left = len(self.timesteps) - (getattr(self, "begin_index", None) or 0)
        expected = -(-left // getattr(self, "order", 1))  # rounded up
        recorder.before_step(scheduler, *values, expected=expected, arguments=given)
        output = step(self, *args, **kwargs)
        recorder.final = output[0] if isinstance(output, tuple) else output.prev_sample
        return output

    @functools.wraps(set_timesteps)
    def recording_set_timesteps(self, *args, **kwargs):
        if session.open and (count := len(session.recorder(self).calls)):
            kind, cure = type(session.pipe).__name__, "open a capture for each run, and turn off FreeInit or segments"
            raise RuntimeError(f"{kind} set new timesteps after {count} recorded calls: {cure}")
        return set_timesteps(self, *args, **kwargs)

    return {name: recording_step, "set_timesteps": recording_set_timesteps, "_dtviz_session": session}


class Rows:
    """Tensors of one shape in host memory, float32. Copies leave a GPU without waiting for it."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []
        self.count = 0  # rows in the last block

    def add(self, x: torch.Tensor, expected: int) -> None:
        """Append `x`. The first call allocates `expected` rows, because locking pages waits for the device."""
        locked = x.device.type in ASYNCHRONOUS
        if not self.blocks or self.count == len(self.blocks[-1]):
            self.blocks.append(torch.empty((max(expected, 1), *x.shape), dtype=torch.float32, pin_memory=locked))
            self.count = 0
        before, now = tuple(self.blocks[0].shape[1:]), tuple(x.shape)
        if before != now:
            raise RuntimeError(f"the sample changed its shape from {before} to {now}: capture its stages apart")
        self.blocks[-1][self.count].copy_(x.detach(), non_blocking=locked)
        self.count += 1

    def tensor(self) -> torch.Tensor:
        """Return (row, ...) in ordinary memory."""
        *full, last = self.blocks
        whole = not full and self.count == len(last) and not last.is_pinned()
        return last if whole else torch.cat([*full, last[: self.count]])


class Recorder:
    """The scheduler steps of one run, in order. Options as in `capture`; denoiser outputs are appended to `outputs`."""

    def __init__(self, *, x_t: bool = False, guidance: bool = False) -> None:
        names = ["x0", "later_x0"] + ["x_t"] * x_t + ["conditional", "unconditional"] * guidance
        self.rows = {name: Rows() for name in names}
        self.outputs: list[torch.Tensor] = []
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, sigma, timestep
        self.pending: dict[str, torch.Tensor] = {}  # rows of the last call, which may be taken back
        self.expected = 0  # rows
        self.position: tuple[Any, ...] = ()  # of the last step: scheduler's id, its counter, timestep
        self.final: torch.Tensor | None = None  # the sample that the last step made
        self.refusal: NotImplementedError | None = None  # of guidance

    def before_step(self, scheduler, model_output, timestep, sample, *, expected: int, arguments: Mapping) -> None:
        """Record x0 of the step that comes. `arguments` are all arguments of the step, `expected` the number of rows."""
        guided, starts = arguments.get("pred_original_sample"), find(scheduler).begins(scheduler)
        if guided is not None and self.calls:
            # Cosmos guides x0: it steps to get it, takes that step back, and steps with the guided x0
            self.pending.clear()
            self.calls.pop()
        elif starts:
            self._refuse_parts(scheduler, timestep, sample)
        self._store_pending()
        self.expected = expected
        level = noise_level(scheduler, timestep, arguments)

        def x0_of(output: torch.Tensor) -> torch.Tensor:
            return x0_at_level(scheduler, output, timestep, sample, level, arguments)

        x0 = x0_of(model_output) if guided is None else guided.float()
        step = (self.calls[-1][0] if self.calls else -1) + starts
        self.calls.append((step, level.max(), torch.as_tensor(timestep).flatten()[0]))
        self.pending["x0" if starts else "later_x0"] = x0
        if starts and "x_t" in self.rows:
            unit = on(sample, (1 + level**2).rsqrt()) if space(scheduler) == "ve" else 1.0
            self.pending["x_t"] = sample.float() * unit
        if starts and "conditional" in self.rows:
            try:
                outputs = split_guidance(self.outputs, model_output)
            except NotImplementedError as error:  # raised when the block ends, because the call can go on
                outputs, self.refusal = (None, None), error
            for name, output in zip(("conditional", "unconditional"), outputs, strict=True):
                self.pending[name] = torch.full_like(x0, torch.nan) if output is None else x0_of(output)
        self.outputs.clear()

    def _refuse_parts(self, scheduler, timestep, sample: torch.Tensor) -> None:
        """Refuse views or tiles of one sample that are stepped one after the other: they would be recorded as steps."""
        before, self.position = self.position, (id(scheduler), getattr(scheduler, "step_index", None), timestep)
        repeated = before[:2] == self.position[:2] and same_timestep(before[2], timestep, read=False)
        if not repeated or hasattr(scheduler, "undo_step"):
            return
        # Time travel steps a sample that was made from the last one. Then their fine details correlate.
        details = [x.float().flatten().diff() for x in (sample, self.final)]
        if sample.shape != self.final.shape or not float(torch.corrcoef(torch.stack(details))[0, 1]) > 0.2:
            parts = f"timestep {float(torch.as_tensor(timestep).max()):g}, on parts of one sample (views or tiles)"
            raise RuntimeError(f"the pipeline stepped twice at {parts}: no trace. Capture a sample of one view")

    def _store_pending(self) -> None:
        """Copy the rows of the last call off the device."""
        for name, values in self.pending.items():
            self.rows[name].add(values, self.expected)
        self.pending.clear()

    def fields(self) -> dict[str, Any]:
        """Return what was recorded under the names of `Trace`."""
        if self.final is None:
            raise RuntimeError("nothing was captured: the pipeline made no scheduler step inside the block")
        self._store_pending()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        steps, sigmas, timesteps = zip(*self.calls, strict=True)
        sigmas, timesteps = (torch.stack([v.cpu().float() for v in values]) for values in (sigmas, timesteps))
        first = [steps.index(step) for step in range(steps[-1] + 1)]
        final = self.final.detach().to("cpu", torch.float32, copy=True)  # the pipeline may change its own in place
        values = {"sigmas": sigmas[first], "timesteps": timesteps[first], "final": final}
        if len(steps) > len(first):
            values |= {"call_steps": torch.tensor(steps), "call_sigmas": sigmas, "call_timesteps": timesteps}
        return values | {name: rows.tensor() for name, rows in self.rows.items() if rows.blocks}
