"""One sampler for the base, its student, and the hybrids of both (Algorithm 1 of the paper).

    trace = dtviz.generate(pair, "dog face", method="hybrid", k=1, seeds=range(8))
    trace.steps_run     # {"base": 1, "distilled": 3}

The pair's own diffusers pipeline runs, untouched but for two hooks on its instances: a `Relay` stands in for the
scheduler and hands over from one scheduler to the other, and a `Switch` sends each denoiser call to the model whose
turn it is, with its own guidance.
"""

from __future__ import annotations

import functools
import math
import operator
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import diffusers
import torch

from .adaptive import Adaptive, Parting
from .attach import Steering, steer
from .batches import batches
from .controls import Applied
from .pairs import Pair
from .recorder import Recorder
from .sampling.arguments import CONVENTIONS, ROLES, check_adaptive, check_controls, count, drawn, scale, unguided
from .sampling.plan import branches, plan
from .sampling.relay import HANDED, Relay
from .sampling.rivals import anneal, annealing_noise, repel
from .sampling.steps import ask
from .sampling.switch import Switch
from .schedule import sigma as sigma_at
from .trace import Trace

SAMPLING = 2  # part of every kept result's name: raise it when the same arguments come to mean other samples


class Progress(NamedTuple):
    """How far `generate` is: denoiser calls made and to be made, a sample's each counted, and the last one's seeds and x̂0."""

    done: int
    total: int
    seeds: tuple[int, ...]
    x0: torch.Tensor


def generate(
    pair: Pair,
    prompt: str | Sequence[str],
    *,
    method: str = "distilled",
    seeds: Iterable[int] = range(4),
    k: int = 1,
    steps: int | None = None,
    base_steps: int | None = None,
    guidance: float | Sequence[float] | None = None,
    base_guidance: float | Sequence[float] | None = None,
    convention: str = "diffusers",
    handover: str | None = None,
    handed: str = "x0",
    scaled: bool = True,
    cads: float = 0.0,
    particles: float = 0.0,
    adaptive: Adaptive | None = None,
    controls: Sequence[Applied] = (),
    batch_size: int | None = None,
    device: str | None = None,
    x_t: bool = False,
    dtype: torch.dtype = torch.float32,
    watch: Callable[[Progress], None] | None = None,
) -> Trace:
    """Sample a prompt, or one for each seed, and record the predicted x̂0 of every step.

    Args:
        pair: the base and its student.
        prompt: the text, not empty; or a list with one for each seed, so that a batch may hold different prompts.
        method: "base"; "distilled"; "hybrid", the base for the student's first `k` steps; "skip", the student without
            its first `k` steps, noise scaled for the first step that runs; "adaptive", a hybrid whose k is decided on the
            way, by `adaptive`.
        seeds: one sample a seed; a sample depends on its prompt and seed alone, not on its batch. With a list of prompts
            a seed may come again.
        k: leading student steps given to the base (hybrid) or left out (skip), 1 to steps - 1; unused otherwise.
        steps, base_steps: steps of the student's and of the base's schedule; None takes the pair's.
        guidance, base_guidance: guidance scale of the student's and of the base's steps; None takes the pair's, and a
            hybrid's base steps then run without guidance, as published. 0 and 1 both mean the conditional model. A list
            has one for each step that is really made, such as none at the first steps, or only within an interval.
        convention: of `base_guidance`: "diffusers", where 0 and 1 are the conditional model; "formula", u + guidance (c - u)
            for every guidance, where 0 is the unconditional model.
        handover: "distilled-scheduler" runs the base's `k` steps on the student's scheduler (the published way);
            "matched-sigma" runs the base on its own scheduler, `base_steps` long, down to the noise level at which the
            student's step `k` starts. None takes the pair's.
        handed: what a hybrid hands over beside the noise, to see what the base's plan is good for: "x0", its plan; "mean", its
            plans' mean over the samples of a batch (give `batch_size=len(seeds)`); "zero", none, only noise; "own", the
            student's own plan of the same sample, at the cost of one more evaluation.
        scaled: whether `skip` scales the initial noise for the first step that runs; False is the published code, in which
            Euler students see noise of the skipped step's size.
        cads: deviation of the noise that anneals the text at high noise levels (Sadat et al. 2024); 0: none.
        particles: strength at which the plans of a batch repel each other (Corso et al. 2024); 0: none. As with "mean", a
            sample then depends on its batch.
        adaptive: the signal and thresholds of method "adaptive", which decides for all seeds together, in one batch; call
            it with one seed to decide for a sample alone. `provenance` tells k and the `signals` seen.
        controls: sliders, styles and other LoRAs, as `Control.at(scale, segment=..., window=...)` gives them: each is on in the
            steps and at the noise levels that it says. They add up; scale 0 is the plain model, to the bit. The pair is as
            before when the run ends, however it does. `provenance["controls"]` tells in how many denoiser calls each was on.
        batch_size: samples denoised together; None takes the pair's. Where so many do not fit into memory, half as many are,
            and a warning says so; not where a sample depends on its batch.
        device: moves the pair there first.
        x_t: keep the noisy latents before each step as well.
        dtype: `torch.float32` or `torch.float16`, how x̂0 and x_t are kept.
        watch: called after every denoiser call, for a progress bar or a look at the plan. An exception that it raises ends
            the run and leaves the pair ready for the next.

    Returns:
        The `Trace` of all seeds, with `steps_run` and `provenance["nfe"]`, denoiser evaluations a sample, as they ran.

    Raises:
        ValueError: an argument is out of range; the message names it and what is allowed. Or a denoiser gave nan or
            infinity; the message names which, at which step of which prompt and seed.
        NotImplementedError: a scheduler has no x̂0 rule; or the pipeline of an adaptive run cannot end it early.

        trace = dtviz.generate(pair, "dog face", method="hybrid", k=2, handover="matched-sigma", seeds=range(8))
    """
    seeds, prompts = drawn(pair, prompt, method, seeds, handover)
    for name, value, allowed in (("convention", convention, CONVENTIONS), ("handed", handed, HANDED)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    counts = {"steps": steps, "base_steps": base_steps, "batch_size": batch_size}
    steps, base_steps, size = (count(pair, name, value) for name, value in counts.items())
    k = operator.index(k)
    if method in ("hybrid", "skip") and not 1 <= k < steps:
        raise ValueError(f"k={k} is out of range: a {method} of {steps} student steps takes k from 1 to {steps - 1}")
    if method == "adaptive":
        check_adaptive(pair, adaptive, steps, len(seeds), size, handed)
    check_controls(controls, method)
    shared = method in ("hybrid", "adaptive")
    settings = {
        "pair": pair.name,
        "method": method,
        "k": k if method in ("hybrid", "skip") else None,
        "steps": steps,
        "base_steps": base_steps,
        "guidance": scale(pair, "distilled", guidance, pair.guidance),
        "base_guidance": scale(pair, "base", base_guidance, unguided(pair) if shared else pair.base_guidance),
        "convention": convention,
        "handover": (handover or pair.handover) if shared else None,
        "handed": handed if method == "hybrid" else None,
        "adaptive": asdict(adaptive) if method == "adaptive" else None,
        "scaled": scaled if method == "skip" else None,
        "cads": cads,
        "particles": particles,
    }
    for name in ("cads", "particles"):
        if not 0 <= settings[name] < math.inf:
            raise ValueError(f"{name}={settings[name]} must be a number of at least 0; 0 leaves it out")
    joined = particles or settings["handed"] == "mean" or method == "adaptive"
    if not isinstance(prompt, str) and joined:
        raise ValueError(
            f"method={method!r}, handed={handed!r}, particles={particles}: what joins the samples of a batch takes one prompt"
        )
    if device is not None:
        pair.pipeline.to(device)
        if isinstance(pair.distilled, torch.nn.Module) and not pair.offload:
            pair.distilled.to(device)
    kept = {"x_t": x_t, "dtype": dtype}
    with steer(pair, [applied for applied in controls if applied.scale != 0], roles=ROLES[method]) as steering:

        def run(rows: slice) -> Trace:
            seen = None if watch is None else functools.partial(_report, watch, rows, seeds)
            return _run(pair, prompts[rows], seeds[rows], settings, kept, steering, seen)

        trace = Trace.join([part for _, part in batches(run, n=len(seeds), size=size, fixed=bool(joined))])
    return replace(trace, prompt=prompt) if isinstance(prompt, str) else trace


def _report(
    watch: Callable[[Progress], None], rows: slice, seeds: tuple[int, ...], done: int, calls: int, x0: torch.Tensor
) -> None:
    """Tell of a call of these rows as one of all rows' calls."""
    made = rows.start * calls + done * (rows.stop - rows.start)
    watch(Progress(made, len(seeds) * calls, seeds[rows], x0))


def _run(
    pair: Pair,
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    settings: dict[str, Any],
    kept: dict[str, Any],
    steering: Steering,
    seen: Callable[[int, int, torch.Tensor], None] | None,
) -> Trace:
    pipe, recorder = pair.pipeline, Recorder(**kept)
    scales = {"base": settings["base_guidance"], "distilled": settings["guidance"]}
    call = dict(pair.call) | ({} if pair.size is None else {"height": pair.size[0], "width": pair.size[1]})
    how = {name: settings[name] for name in ("steps", "base_steps", "handover")} | {
        "scales": scales,
        "asked": {"base": ask(pipe, pair.base_scheduler, call), "distilled": ask(pipe, pair.distilled_scheduler, call)},
        "device": pipe._execution_device,
    }
    parting = None
    if settings["adaptive"] is not None:
        adaptive = Adaptive(**settings["adaptive"])
        parting = Parting(adaptive, branches(pair, ks=adaptive.ks, **how))
    calls = parting.longest if parting else plan(pair, method=settings["method"], k=settings["k"], **how)
    strength = settings["particles"]
    relay = Relay(
        calls,
        recorder,
        handed=settings["handed"] or "x0",
        scaled=settings["scaled"] is not False,
        replan=functools.partial(repel, strength=strength) if strength else None,
        parting=parting,
        finish=lambda: setattr(pipe, "_interrupt", True),  # diffusers' own way to end a run
        seen=seen,
    )
    switch = Switch(
        pipe,
        pair.base,
        pair.distilled,
        turn=lambda: relay.now,
        doubled=lambda n: n == 2 * len(seeds),
        formula=("base",) if settings["convention"] == "formula" else (),
        condition=_annealed(relay, seeds, settings["cads"]) if settings["cads"] else None,
        steer=lambda call: steering.use(call.role, lambda: sigma_at(call.scheduler, call.timestep)),
        probe=lambda: relay.probe,
        probed=relay.probed,
        offload=pair.offload,
    )
    guided = any(switch.needs_both(call) for call in calls)

    steering.restart()
    scheduler = pipe.scheduler
    try:
        pipe.scheduler = relay
        with switch.on():
            pipe(
                prompt=list(prompts),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                num_inference_steps=len(calls),
                guidance_scale=2.0 if guided else 0.0,  # only says whether the pipeline doubles its batch
                output_type="latent",
                **call,
            )
    finally:
        pipe.scheduler = scheduler
    if parting is not None:
        settings = settings | {"k": parting.k, "signals": {str(k): value for k, value in parting.signals.items()}}
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "python": platform.python_version()}
    roles = [call.role for call in relay.plan if call.starts]
    trace = Trace(
        **recorder.fields(),
        seeds=seeds,
        prompt=prompts,
        steps_run=dict(Counter(roles)),
        provenance=settings
        | {"nfe": dict(switch.evaluations), "controls": steering.facts()}
        | {"fingerprint": pair.fingerprint, "versions": versions},
    )
    _check_finite(trace, roles)
    return trace


def _check_finite(trace: Trace, roles: Sequence[str]) -> None:
    """Refuse a run with nan or infinity in it; done when it is over, so that no step waits for the device."""
    sound = torch.cat([trace.x0.flatten(2), trace.final[None].flatten(2)]).isfinite().all(dim=2)  # (step, sample)
    if sound.all():
        return
    step, sample = (~sound).nonzero()[0].tolist()
    step = min(step, len(roles) - 1)  # what is wrong with the final latents alone, the last step did
    raise ValueError(
        f"the {roles[step]} model of {trace.provenance['pair']} gave nan or infinity at step {step + 1} of {len(roles)} "
        f"(sigma {trace.sigmas[step]:.3g}) of prompt {trace.prompt[sample]!r}, seed {trace.seeds[sample]}: "
        "did half precision overflow, or are its weights damaged?"
    )


def _annealed(relay: Relay, seeds: tuple[int, ...], scale: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """What CADS makes of the text of the call whose turn it is; its noise is the seed's own, apart from the sample's."""
    generators = [annealing_noise(seed) for seed in seeds]

    def condition(text: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.randn(text.shape[1:], generator=generator) for generator in generators])
        time = float(relay.now.timestep) / relay.now.scheduler.config.num_train_timesteps
        return anneal(text, time=time, scale=scale, noise=noise)

    return condition
