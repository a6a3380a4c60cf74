"""What a denoiser is given beside the noisy latents: text states, pooled states, sizes, for each of a few prompts.

    texts = conditions(pair, ["man", "baby"])
    noise = predict(pair.base, x_t, timestep, texts.rows(["man", "", "baby"]))     # "": unconditional, for guidance

The pair's own pipeline prepares them, so that they are what it samples with, one text encoder or two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..networks import embeds_guidance, network
from ..pairs import Pair
from ..sampling.plan import Call, plan
from ..sampling.steps import ask


@dataclass(frozen=True)
class Conditions:
    """The denoiser's arguments of each prompt.

    Attributes:
        of: prompt -> arguments by name, tensors of one row each (dicts of such inside); "" is the unconditional one.
        shape: (channels, height, width) of the latents.
    """

    of: Mapping[str, Mapping[str, Any]]
    shape: tuple[int, ...]

    def rows(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The arguments of a batch, one row a prompt."""
        return _joined([self.of[prompt] for prompt in prompts])


@torch.no_grad()
def conditions(pair: Pair, prompts: Sequence[str], *, role: str = "base", guidance: float | None = None) -> Conditions:
    """Read what the pipeline gives its denoiser for these prompts, from one step of each.

    Args:
        pair: its denoiser must be a UNet, which takes (sample, timestep, arguments).
        prompts: texts that are not empty.
        role: "base" or "distilled", whose arguments.
        guidance: of a network that takes it as one of them (LCM); None takes the pair's.

    Raises:
        NotImplementedError: the denoiser is a transformer, whose calls differ from family to family.
        ValueError: a prompt is not a text, or empty.
    """
    if pair.denoiser_name != "unet":
        raise NotImplementedError(
            f"{type(pair.base).__name__} is not a UNet: training is for Stable Diffusion and SDXL pairs"
        )
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompt {prompt!r} must be a text that is not empty")
    pipe, seen, found, spare = pair.pipeline, [], {}, torch.Generator("cpu")  # not the caller's random numbers

    def look(_, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append((args[0], {name: value for name, value in kwargs.items() if name != "return_dict"}))

    hook = pair.base.register_forward_pre_hook(look, with_kwargs=True)
    try:
        for prompt in prompts:
            seen.clear()
            # a guidance above 1 makes it prepare both rows, the unconditional one first
            how = {"num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "latent", "generator": spare}
            pipe(prompt=prompt, **how, **_call(pair))
            found[""], found[prompt] = (_row(seen[0][1], row) for row in (0, 1))
    finally:
        hook.remove()
    denoiser = network(pair.base, pair.distilled, role)
    if embeds_guidance(denoiser):
        dim = denoiser.config.time_cond_proj_dim
        usual = pair.guidance if role == "distilled" else pair.base_guidance
        strength = torch.tensor([(usual if guidance is None else guidance) - 1.0])
        embedding = pipe.get_guidance_scale_embedding(strength, embedding_dim=dim).to(seen[0][0])
        found = {prompt: arguments | {"timestep_cond": embedding} for prompt, arguments in found.items()}
    return Conditions(found, tuple(seen[0][0].shape[1:]))


def schedule(pair: Pair, role: str, *, steps: int, guidance: float) -> list[Call]:
    """The calls of one role's own sampler, on a fresh scheduler, since schedulers count their steps."""
    scheduler = pair.base_scheduler if role == "base" else pair.distilled_scheduler
    how = {
        "k": None,
        "handover": None,
        "scales": {role: guidance},
        "device": network(pair.base, pair.distilled, role).device,
    }
    asked = {role: ask(pair.pipeline, scheduler, _call(pair))}
    return plan(pair, method=role, steps=steps, base_steps=steps, asked=asked, **how)


def predict(denoiser: torch.nn.Module, x_t: torch.Tensor, timestep, arguments: Mapping[str, Any]) -> torch.Tensor:
    """The denoiser's output (n, channels, height, width) float32 for x_t as its scheduler scales it."""
    return denoiser(x_t.to(denoiser.dtype), timestep, **arguments, return_dict=False)[0].float()


def _call(pair: Pair) -> dict[str, Any]:
    """The pair's own arguments of its pipeline's call."""
    return dict(pair.call) | ({} if pair.size is None else {"height": pair.size[0], "width": pair.size[1]})


def _row(tree: Any, row: int) -> Any:
    """One row of every tensor of two rows."""
    if isinstance(tree, torch.Tensor):
        return tree[row : row + 1].clone()
    if isinstance(tree, dict):
        return {key: _row(value, row) for key, value in tree.items()}
    return tree


def _joined(trees: Sequence[Any]) -> Any:
    """Trees of one row each as one of many."""
    first = trees[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(trees))
    if isinstance(first, Mapping):
        return {key: _joined([tree[key] for tree in trees]) for key in first}
    return first
