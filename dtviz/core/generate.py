"""Sample a pair: base, distilled model, hybrid or skip, with x0 of every step recorded.

The pair's own pipeline runs: `HandoverScheduler` makes the steps, `DenoiserRouter` routes the denoiser calls, `capture` records.
"""

import operator
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from ..files import in_batches
from .adapters import replaced
from .capture import capture
from .denoisers import DenoiserRouter, embeds_guidance, network
from .handover import DenoiserCall, Guidance, HandoverScheduler, denoising_calls
from .pair import HANDOVERS, Pair
from .trace import Trace

SAMPLING = 3  # part of every cache key; raise it when the same arguments give other samples
METHODS = ("base", "distilled", "hybrid", "skip")
CONVENTIONS = ("diffusers", "formula")


def generate(
    pair: Pair, prompt: str | Sequence[str], *, method: str = "distilled", seeds: Iterable[int] = range(4), k: int = 1,
    steps: int | None = None, base_steps: int | None = None, guidance: float | Sequence[float] | None = None,
    base_guidance: float | Sequence[float] | None = None, convention: str = "diffusers", handover: str | None = None,
    scale_noise: bool = True, batch_size: int | None = None, fuse: bool = True, x_t: bool = False,
    edit_x0: Callable[[torch.Tensor, DenoiserCall], torch.Tensor] | None = None,
    on_call: Callable[[DenoiserCall, torch.Tensor | None], None] | None = None,
) -> Trace:  # fmt: skip
    """Sample a prompt, or one prompt for each seed, and record the predicted x0 of every step.

    Args:
        pair: the base and its distilled model.
        prompt: a text, or a list with one text for each seed.
        method: "base"; "distilled"; "hybrid", the base for the distilled model's first `k` steps; "skip", without them.
        seeds: one sample per seed, which depends on its prompt and seed alone, not on its batch.
        k: leading steps given to the base (hybrid) or left out (skip), 1 to steps - 1.
        steps, base_steps: steps of the distilled model's and of the base's schedule. None takes the pair's.
        guidance, base_guidance: guidance scales of the distilled model's and of the base's steps, or a list with one for each
            step that runs. None takes the pair's; a hybrid's base steps then run without guidance, as published.
        convention: meaning of `base_guidance`. "diffusers": 0 and 1 are the conditional model. "formula": u + guidance (c - u)
            for every scale, so that 0 is the unconditional model.
        handover: "distilled-scheduler" runs the base's `k` steps on the distilled model's scheduler, as published.
            "matched-sigma" runs the base on its own schedule down to the sigma at which step `k` starts. None: the pair's.
        scale_noise: whether `skip` scales the initial noise for the first step that runs. False: as in the published code.
        batch_size: samples denoised together. None takes the pair's. It is halved with a warning when memory runs out, but not
            with `edit_x0`, which may join a batch.
        fuse: how a LoRA is added, see `hybrid`.
        x_t: keep the noisy latents before each step.
        edit_x0: takes x0 (n, ...) and the `DenoiserCall` after every call but the last, and returns the x0 to carry on.
        on_call: takes the coming `DenoiserCall` and the x0 of the call before, None at first. An exception ends the run.

    Returns:
        The `Trace` of all seeds, with `steps_run` and `provenance["nfe"]`, denoiser evaluations per sample, as they ran.

    Raises:
        ValueError: an argument is out of range, or a denoiser returned nan or infinity. The message names which.
        NotImplementedError: a scheduler has no x0 rule.

        trace = dtviz.generate(pair, "dog face", method="hybrid", k=2, handover="matched-sigma", seeds=range(8))
    """
    seeds, prompts = _samples(pair, prompt, seeds)
    handover = handover or pair.handover
    choices = {"method": (method, METHODS), "convention": (convention, CONVENTIONS), "handover": (handover, HANDOVERS)}
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    counts = {"steps": steps, "base_steps": base_steps, "batch_size": batch_size}
    steps, base_steps, batch_size = (_count(pair, name, value) for name, value in counts.items())
    k = operator.index(k)
    if method in ("hybrid", "skip") and not 1 <= k < steps:
        raise ValueError(f"k={k} must be from 1 to {steps - 1}: a {method} of {steps} steps of the distilled model")
    own = float(embeds_guidance(pair.base)) if method == "hybrid" else pair.base_guidance  # as an input 1 means none
    settings = {"pair": pair.name, "method": method, "k": k if method in ("hybrid", "skip") else None}
    settings |= {"steps": steps, "base_steps": base_steps, "convention": convention}
    settings |= {"guidance": _guidance(pair, "distilled", guidance, pair.guidance)}
    settings |= {"base_guidance": _guidance(pair, "base", base_guidance, own)}
    settings |= {"handover": handover if method == "hybrid" else None}
    settings |= {"scale_noise": scale_noise if method == "skip" else None}

    formula = ("base",) if convention == "formula" else ()
    router = DenoiserRouter(pair.pipeline, pair.base, pair.distilled, formula=formula, fuse=fuse)

    def run(rows: slice) -> Trace:
        return _run(pair, router, prompts[rows], seeds[rows], settings, x_t=x_t, edit_x0=edit_x0, on_call=on_call)

    fixed = edit_x0 is not None  # it may join the samples of a batch
    with router.active():
        trace = Trace.join([part for _, part in in_batches(run, n=len(seeds), size=batch_size, fixed=fixed)])
    return replace(trace, prompt=prompt) if isinstance(prompt, str) else trace


def _run(pair: Pair, router: DenoiserRouter, prompts, seeds, settings, *, x_t: bool, edit_x0, on_call) -> Trace:
    """Run one batch: equation 1 is the pipeline's own loop."""
    pipe, of_run = pair.pipeline, ("method", "k", "steps", "base_steps", "handover")
    guidance = {"base": settings["base_guidance"], "distilled": settings["guidance"]}
    calls = denoising_calls(pair, guidance=guidance, **{name: settings[name] for name in of_run})
    calls, scale_noise = [replace(call, seeds=seeds) for call in calls], settings["scale_noise"] is not False
    scheduler = HandoverScheduler(calls, edit_x0=edit_x0, keep_x0=on_call is not None, scale_noise=scale_noise)

    def next_call() -> DenoiserCall:
        if on_call is not None:
            on_call(scheduler.call, scheduler.x0)
        return scheduler.call

    router.next_call, router.is_doubled = next_call, lambda sample: len(sample) == 2 * len(seeds)
    router.evaluations.clear()
    scheduler.evaluate = lambda call: router.again(call)
    guided = any(router.needs_both(call) for call in calls)
    with replaced(vars(pipe), scheduler=scheduler), capture(pipe, x_t=x_t) as trace:
        noise = {"generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds]}
        run = {"num_inference_steps": len(calls), "output_type": "latent"}
        run["guidance_scale"] = 2.0 if guided else 0.0  # only decides whether the pipeline doubles its batch
        pipe(prompt=list(prompts), **run, **noise, **pair.call_arguments)
    versions = trace.provenance["versions"] | {"python": platform.python_version()}
    facts = {"nfe": dict(router.evaluations), "fingerprint": pair.fingerprint, "versions": versions}
    facts |= {"fuse": router.fuse} if isinstance(pair.distilled, str) else {}
    roles = [call.role for call in calls if call.starts_step]
    trace = replace(trace, seeds=seeds, prompt=prompts, steps_run=dict(Counter(roles)), provenance=settings | facts)
    _check_finite(trace, roles)
    return trace


def _check_finite(trace: Trace, roles: Sequence[str]) -> None:
    """Refuse a run with nan or infinity. Done at the end, so that no step waits for the device."""
    finite = torch.cat([trace.x0.flatten(2), trace.final[None].flatten(2)]).isfinite().all(dim=2)  # (step, sample)
    if finite.all():
        return
    step, sample = (~finite).nonzero()[0].tolist()
    step = min(step, len(roles) - 1)  # the last step made the final latents
    where = f"step {step + 1} of {len(roles)} (sigma {trace.sigmas[step]:.3g}), prompt {trace.prompt[sample]!r}"
    model = f"the {roles[step]} model of {trace.provenance['pair']} gave nan or infinity at {where}, seed {trace.seeds[sample]}"
    raise ValueError(f"{model}: did half precision overflow, or are its weights damaged?")


def _samples(pair: Pair, prompt: str | Sequence[str], seeds: Iterable[int]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the seeds, and the prompt of each."""
    if not isinstance(pair, Pair):
        raise ValueError(f"pair is a {type(pair).__name__}: give what dtviz.load(name) or dtviz.Pair(...) returns")
    one = isinstance(prompt, str)
    prompts = (prompt,) if one or not isinstance(prompt, Sequence) else tuple(prompt)
    for text in prompts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"prompt={text!r} must be a text that is not empty, or a list with one for each seed")
    try:
        numbers = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"seeds={seeds!r} must be a list or range of integers") from None
    if not numbers or min(numbers) < 0 or (one and len(set(numbers)) != len(numbers)):
        raise ValueError(f"seeds={numbers} must be one or more different integers, none negative")
    if not one and len(prompts) != len(numbers):
        raise ValueError(f"prompt has {len(prompts)} texts for {len(numbers)} seeds: give one, or one for each seed")
    return numbers, prompts * len(numbers) if one else prompts


def _count(pair: Pair, name: str, value: int | None) -> int:
    """Return a number of steps or samples, the pair's own for None."""
    own = getattr(pair, name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}={value!r} must be an integer of at least 1, or None for the pair's {own}")
    return own if value is None else value


def _guidance(pair: Pair, role: str, value: float | Sequence[float] | None, default: float) -> Guidance:
    """Return a role's guidance, one number or one per step."""
    scales = default if value is None else tuple(value) if isinstance(value, Sequence) else value
    lowest = min(scales, default=0) if isinstance(scales, tuple) else scales
    embedded = embeds_guidance(network(pair.base, pair.distilled, role))
    if not lowest >= (1 if embedded and not pair.paper_settings else 0):
        name = "guidance" if role == "distilled" else "base_guidance"
        least = "1, the least this network was trained for" if lowest >= 0 else "0"
        raise ValueError(f"{name}={value} must be at least {least}")
    return scales
