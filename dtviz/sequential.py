"""Hybrids of many prompts with one denoiser in memory: all go through the base, it is dropped, all go through the student.

traces = dtviz.sequential.hybrid("flux-schnell", ["a dog", "a cat"], seeds=range(4))     # a trace a prompt
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .models.loading import Place, base_pipeline, place, settings_of, student_of
from .models.spec import Spec
from .networks import embeds_guidance
from .pairs import Pair
from .recorder import Recorder
from .sampling.plan import plan
from .sampling.relay import Relay
from .sampling.steps import ask
from .sampling.switch import Switch
from .trace import Trace


@dataclass
class _Batch:
    """Samples of one prompt on their way: what made and saw them, and the latents that the base left."""

    prompt: str
    seeds: tuple[int, ...]
    relay: Relay
    generators: list[torch.Generator]
    latents: torch.Tensor | None = None
    nfe: Counter[str] = field(default_factory=Counter)


def hybrid(
    name: str,
    prompts: Sequence[str],
    *,
    seeds: Iterable[int],
    k: int = 1,
    steps: int | None = None,
    base_steps: int | None = None,
    guidance: float | None = None,
    base_guidance: float | None = None,
    handover: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    published: bool = False,
) -> list[Trace]:
    """What `generate(load(name), prompt, method="hybrid", ...)` gives for each prompt, with one denoiser in memory at a time.

    The latents of all prompts wait in the host's memory between base and student.

    Args:
        name: a pair of two networks; one whose student is a LoRA has one network in memory anyway.
        prompts: at least one.
        seeds, k, steps, base_steps, guidance, base_guidance, handover, batch_size: as for `generate`.
        device, dtype, published: as for `load`.

    Returns:
        A `Trace` for each prompt.

    Raises:
        ValueError: there is no prompt or seed, `k` or a guidance is out of range, or the pair's student is a LoRA.
        Unavailable: the pair is not on this machine and the hub is out of reach.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts={prompts!r} is one string: give a list, [{prompts!r}]")
    seeds, prompts = tuple(seeds), tuple(prompts)
    if not prompts or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"prompts={prompts}, seeds={seeds}: give at least one of each, and no seed twice")
    spec, where = place(name, device=device, dtype=dtype)
    if spec.adapter:
        raise ValueError(f"pair {name!r} is one network with a LoRA: there is no second one to wait; use `generate`")
    pipe = base_pipeline(spec, where)
    # the base stands for its student until that is loaded: a plan needs their schedulers alone
    settings = settings_of(spec, pipe, where, published=published)
    pair = Pair(pipe, getattr(pipe, _slot(pipe)), name=name, **settings)
    size = batch_size or pair.batch_size
    call = dict(pair.call) | ({} if pair.size is None else {"height": pair.size[0], "width": pair.size[1]})
    chosen = {
        "method": "hybrid",
        "k": k,
        "steps": steps or pair.steps,
        "base_steps": base_steps or pair.base_steps,
        "handover": handover or pair.handover,
    }
    if not 1 <= k < chosen["steps"]:
        raise ValueError(
            f"k={k} is out of range: a hybrid of {chosen['steps']} student steps takes k from 1 to {chosen['steps'] - 1}"
        )
    unguided = 1.0 if embeds_guidance(pair.base) else 0.0
    scales = {
        "base": unguided if base_guidance is None else base_guidance,
        "distilled": pair.guidance if guidance is None else guidance,
    }
    asked = {"base": ask(pipe, pair.base_scheduler, call), "distilled": ask(pipe, pair.distilled_scheduler, call)}

    def batch(prompt: str, part: tuple[int, ...]) -> _Batch:
        calls = plan(pair, **chosen, scales=scales, asked=asked, device=pipe._execution_device)
        return _Batch(prompt, part, Relay(calls, Recorder()), [torch.Generator("cpu").manual_seed(s) for s in part])

    parts = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    made = [[batch(prompt, part) for part in parts] for prompt in prompts]
    for role in ("base", "distilled"):
        if role == "distilled":
            del pair
            least = 1 if embeds_guidance(_replace(pipe, spec, where)) and not published else 0
            if scales["distilled"] < least:
                raise ValueError(f"guidance={guidance} must be at least {least}, what this student was trained for")
        for each in itertools.chain(*made):
            _go(pipe, each, role, call)

    told = chosen | {"pair": name, "guidance": scales["distilled"], "base_guidance": scales["base"], "sequential": True}
    told |= {"fingerprint": settings["fingerprint"]}
    return [
        replace(Trace.join([_trace(each, told) for each in batches]), prompt=prompt)
        for prompt, batches in zip(prompts, made, strict=True)
    ]


def _slot(pipe: Any) -> str:
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def _replace(pipe: Any, spec: Spec, where: Place) -> torch.nn.Module:
    """Drop the base's denoiser, and only then put the student in its place."""
    slot = _slot(pipe)
    base = getattr(pipe, slot)
    with torch.device("meta"):  # its kind and settings, without its weights
        setattr(pipe, slot, type(base).from_config(base.config))
    del base
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    student = student_of(spec, pipe, where).to(where.device).eval().requires_grad_(False)
    setattr(pipe, slot, student)
    return student


def _go(pipe: Any, batch: _Batch, role: str, call: dict[str, Any]) -> None:
    """Run a batch's calls of one role; the denoiser in the pipeline is the one whose they are."""
    relay, network = batch.relay, getattr(pipe, _slot(pipe))
    turns = [turn for turn in relay.plan if turn.role == role]
    relay.timesteps = torch.stack([turn.timestep for turn in turns])
    switch = Switch(pipe, network, network, turn=lambda: relay.now, doubled=lambda n: n == 2 * len(batch.seeds))
    guided = any(switch.needs_both(turn) for turn in turns)
    scheduler, pipe.scheduler = pipe.scheduler, relay
    try:
        with switch.on():
            batch.latents = pipe(
                prompt=[batch.prompt] * len(batch.seeds),
                generator=batch.generators,
                num_inference_steps=len(turns),
                guidance_scale=2.0 if guided else 0.0,  # only says whether the pipeline doubles its batch
                output_type="latent",
                latents=batch.latents,
                **call,
            ).images.cpu()
    finally:
        pipe.scheduler = scheduler
    batch.nfe += switch.evaluations


def _trace(batch: _Batch, told: dict[str, Any]) -> Trace:
    return Trace(
        **batch.relay.recorder.fields(),
        seeds=batch.seeds,
        prompt=(batch.prompt,) * len(batch.seeds),
        steps_run=dict(Counter(turn.role for turn in batch.relay.plan if turn.starts)),
        provenance=told | {"nfe": dict(batch.nfe)},
    )
