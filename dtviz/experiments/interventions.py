"""Change what a run carries from step to step: ablations of the hybrid, particle guidance and CADS.

generate(pair, prompt, method="hybrid", edit_x0=edit_named("mean"))
with cads(pair, 0.25) as on_call:
    generate(pair, prompt, method="distilled", on_call=on_call)
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.handover import DenoiserCall
from ..core.pair import Pair

EditX0 = Callable[[torch.Tensor, DenoiserCall], torch.Tensor]
# Name -> what the base hands over in place of its x0. Its noise is kept.
HANDED_OVER: dict[str, EditX0] = {
    "zero": lambda x0, call: torch.zeros_like(x0),  # noise only
    "mean": lambda x0, call: x0.mean(dim=0, keepdim=True).expand_as(x0),  # the batch's mean in every sample
    "own": lambda x0, call: call.predict("distilled"),  # the distilled model's of the same sample: one more evaluation
}


def edit_named(edit: str | Sequence[Any]) -> EditX0:
    """Return the `edit_x0` of a setting: "zero", "mean" or "own" at the hand-over, or ("repel", strength)."""
    match edit:
        case "zero" | "mean" | "own":
            return lambda x0, call: HANDED_OVER[edit](x0, call) if call.hands_over else x0
        case ("repel", strength):
            return repel(strength)
    raise ValueError(f"edit={edit!r} is not one of 'zero', 'mean', 'own', ('repel', strength)")


def repel(strength: float) -> EditX0:
    """Return an edit that moves the x0 of a batch apart after every call (particle guidance, Corso et al. 2024).

    x_i + strength log(n) sum_j exp(-d_ij² log(n) / m²) (x_i - x_j), with m the median distance of the batch: the gradient
    of the log potential with their RBF kernel, in units of m² / 2.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength} must be a number of at least 0; 0 changes nothing")

    def edit(x0: torch.Tensor, call: DenoiserCall) -> torch.Tensor:
        n, flat = len(x0), x0.flatten(1)
        square = torch.cdist(flat, flat) ** 2
        median = square[*torch.triu_indices(n, n, offset=1)].median()  # nan of a single sample
        if not median > 0:
            return x0
        kernel = torch.exp(-square * math.log(n) / median)
        return x0 + strength * math.log(n) * (kernel.sum(dim=1, keepdim=True) * flat - kernel @ flat).view_as(x0)

    return edit


@contextmanager
def cads(pair: Pair, scale: float) -> Iterator[Callable[[DenoiserCall, torch.Tensor | None], None]]:
    """Anneal the text of every denoiser call inside the block (CADS, Sadat et al. 2024). Yields the `on_call` to pass.

    `scale` is the deviation of the noise. A denoiser without `encoder_hidden_states` is a NotImplementedError.
    """
    # A PipelineCallback runs after a step, too late for the first. The pre-hook hands over a copy that `on_call` anneals.
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale={scale} must be a number of at least 0; 0 changes nothing")
    text, generators = None, []

    def copy_text(denoiser: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        nonlocal text
        if kwargs.get("encoder_hidden_states") is None:
            raise NotImplementedError(f"{type(denoiser).__name__} is not given its text as encoder_hidden_states")
        text = kwargs["encoder_hidden_states"].clone()
        return args, kwargs | {"encoder_hidden_states": text}

    def on_call(call: DenoiserCall, x0: torch.Tensor | None) -> None:
        if call.index == 0:
            generators[:] = [annealing_noise(seed) for seed in call.seeds]
        noise = torch.stack([torch.randn(text.shape[1:], generator=generator) for generator in generators])
        time = float(call.timestep) / call.scheduler.config.num_train_timesteps
        conditional = text[-len(call.seeds) :]  # diffusers puts the prompt second in a doubled batch
        conditional.copy_(anneal(conditional, time=time, scale=scale, noise=noise))

    with pair.base.register_forward_pre_hook(copy_text, with_kwargs=True):
        yield on_call


def anneal(text: torch.Tensor, *, time: float, scale: float, noise: torch.Tensor) -> torch.Tensor:
    """Return annealed text states (sample, token, channel) (Sadat et al. 2024, equations 4 to 6).

    sqrt(gamma) y + scale sqrt(1 - gamma) noise, rescaled to the mean and deviation of y. Time 1 is pure noise.
    gamma falls from 1 at time 0.6 to 0 at 0.9 (section 4.1).
    """
    gamma = min(max((0.9 - time) / (0.9 - 0.6), 0.0), 1.0)
    if gamma == 1:  # unchanged to the bit
        return text
    mixed = math.sqrt(gamma) * text + scale * math.sqrt(1 - gamma) * noise.to(text)
    mean, deviation = (f(mixed, dim=(1, 2), keepdim=True) for f in (torch.mean, torch.std))
    return (mixed - mean) / deviation * text.std(dim=(1, 2), keepdim=True) + text.mean(dim=(1, 2), keepdim=True)


def annealing_noise(seed: int) -> torch.Generator:
    """Return the generator of a sample's annealing noise, independent of the sample's own."""
    # A hash, because torch's CPU generator takes the low 32 bits of a seed only: seed + 2**32 would be the sample's noise.
    digest = hashlib.sha256(f"annealing {seed}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "big"))
