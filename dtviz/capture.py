"""Record the predicted x̂0 of every step of a diffusers pipeline, changing nothing else.

with dtviz.capture(pipe) as trace:
    pipe("a dog", num_inference_steps=30)
trace.x0.shape      # (step, sample, channel, height, width)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import diffusers
import torch

from .own_class import give_own_class, take_own_class
from .recorder import DTYPES, Recorder
from .rules import find, prediction
from .trace import Trace

DENOISERS = ("unet", "transformer", "prior", "decoder")  # the beginnings of diffusers' names for them


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
    """Record x̂0 at every step of the pipeline call made inside the block.

    Args:
        pipe: any diffusers pipeline whose scheduler class has an x̂0 (`dtviz.schedulers()`).
        x_t: keep the noisy latents before each step as well (`trace.x_t`).
        guidance: keep the x̂0 of the conditional and of the unconditional denoiser output as well
            (`trace.conditional`, `trace.unconditional`), from the outputs that guidance mixed.
        clip: x̂0 as the scheduler clips or thresholds it, if its settings say so; raw otherwise.
        dtype: `torch.float32` or `torch.float16`, how x̂0 and x_t are kept.
        scheduler: the name of the pipeline's scheduler, where it has several ("prior_scheduler").

    Yields:
        The `Trace`, empty until the block ends; what was recorded before an interruption is in it. No denoiser call is
        added and no pixel changes. A pipeline that blends the last latents with an image after its last step (inpainting
        with a four-channel denoiser) does so after `trace.final`.

    Raises:
        NotImplementedError: the scheduler has no x̂0.
        RuntimeError: the pipeline is being captured already, ran twice, or made no step.
        ValueError: an argument is not what it may be.

        with dtviz.capture(pipe) as trace:
            pipe("picture of a dog", num_inference_steps=30)
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} is not one of {', '.join(map(str, DTYPES))}")
    if not hasattr(getattr(pipe, scheduler, None), "config"):
        names = [name for name in getattr(pipe, "components", {}) if name.endswith("scheduler")]
        raise ValueError(f"scheduler={scheduler!r}: this {type(pipe).__name__} has {', '.join(names) or 'none'}")
    options = {"x_t": x_t, "guidance": guidance, "clip": clip, "dtype": dtype}
    trace = object.__new__(Trace)
    session = _Session(pipe, scheduler, options)
    try:
        with session.watching():
            yield trace
    except BaseException:
        with suppress(RuntimeError):
            _fill(trace, session)
        raise
    else:
        _fill(trace, session)
    finally:
        session.forget()


def _fill(trace: Trace, session: _Session) -> None:
    fields = session.recorded().fields()
    provenance = {
        "pipeline": type(session.pipe).__name__,
        "scheduler": type(getattr(session.pipe, session.name)).__name__,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    done = Trace(**fields, steps_run={"denoiser": len(fields["x0"])}, provenance=provenance)
    for name, value in vars(done).items():
        object.__setattr__(trace, name, value)


class _Session:
    """One capture: the pipeline's scheduler instance, its copies, and whatever the pipeline puts in its place.

    A watched instance gets a class of its own, made for this session, whose `step` records. So a deep copy that the
    pipeline makes steps itself, not the original, and is recorded apart; and nothing is left on the instance.
    """

    def __init__(self, pipe, name: str, options: dict[str, Any]) -> None:
        self.pipe, self.name, self.options = pipe, name, options
        self.main = Recorder(**options)
        self.watched: list[Any] = []  # schedulers of the pipeline; all of them feed `main`
        self.copies: list[tuple[Any, Recorder]] = []
        self.open = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record until the block ends, however it ends."""
        self._follow()
        self.open = True
        with ExitStack() as stack:
            stack.callback(self._release)
            for name, module in self.pipe.components.items():
                if isinstance(module, torch.nn.Module):
                    stack.callback(module.register_forward_pre_hook(self._follow).remove)
                    if self.options["guidance"] and name.startswith(DENOISERS):
                        stack.callback(module.register_forward_hook(self._keep_output).remove)
            yield

    def _follow(self, *_) -> None:
        """Watch the pipeline's present scheduler: it may be another one by the time its denoiser is called."""
        scheduler = getattr(self.pipe, self.name)
        if any(scheduler is known for known in self.watched):
            return
        prediction(scheduler)  # refuses what has no x̂0
        kind, step = type(scheduler), find(scheduler).step
        session = getattr(kind, "_dtviz_session", None)
        if session not in (None, self) or step in vars(scheduler):
            raise RuntimeError(f"this {kind.__name__} is being captured or patched already: captures do not nest")
        if session is None:  # otherwise a copy of one that is watched, now in its place
            give_own_class(scheduler, _recording(kind, step, self))
        self.watched.append(scheduler)

    def _keep_output(self, _, __, output) -> None:
        if self.main.outputs is not None:
            output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
            self.main.outputs.append(output)

    def _release(self) -> None:
        self.open = False
        for scheduler in (*self.watched, *(copy for copy, _ in self.copies)):
            if hasattr(scheduler, "_dtviz_session"):
                take_own_class(scheduler)

    def forget(self) -> None:
        """Let go of the run: schedulers' classes and the session hold each other until the next garbage collection."""
        self.main, self.watched, self.copies = Recorder(), [], []

    def recorder(self, scheduler) -> Recorder:
        """Where this instance's steps go."""
        if any(scheduler is known for known in self.watched):
            return self.main
        for known, recorder in self.copies:
            if scheduler is known:
                return recorder
        self.copies.append((scheduler, Recorder(**self.options | {"guidance": False})))
        return self.copies[-1][1]

    def recorded(self) -> Recorder:
        """The run to report: the pipeline's own scheduler's, or that of the one copy that stepped in its place.

        Raises:
            RuntimeError: several copies stepped, each on a part of the sample.
        """
        stepped = [recorder for _, recorder in self.copies if recorder.calls]
        if self.main.calls or not stepped:
            return self.main
        if len(stepped) > 1:
            raise RuntimeError(
                f"{type(self.pipe).__name__} stepped {len(stepped)} copies of its scheduler, each on a part of the "
                "sample: they do not make one trace"
            )
        return stepped[0]


def _recording(kind: type, name: str, session: _Session) -> dict[str, Any]:
    """The members of a class like `kind` that records."""
    step, set_timesteps = getattr(kind, name), kind.set_timesteps
    signature = inspect.signature(step)

    # functools.wraps keeps the signature: pipelines look in it for `generator` and `eta` and drop the seed otherwise
    @functools.wraps(step)
    def recording_step(self, *args, **kwargs):
        if not session.open:  # a copy that outlived the block
            return step(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        recorder = session.recorder(self)
        model_output, timestep, sample = (given[argument] for argument in find(self).names)
        recorder.before(self, model_output, timestep, sample, arguments=given)
        output = step(self, *args, **kwargs)
        recorder.after(output)
        return output

    @functools.wraps(set_timesteps)
    def recording_set_timesteps(self, *args, **kwargs):
        if session.open:
            session.recorder(self).restart()
        return set_timesteps(self, *args, **kwargs)

    return {name: recording_step, "set_timesteps": recording_set_timesteps, "_dtviz_session": session}
