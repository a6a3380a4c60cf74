"""One small random input for a denoiser, always the same: to see whether a change of its weights changes its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

TOKENS = 4  # of the text
SIDE = 4  # of a transformer's latents, in patches


def answer(denoiser: torch.nn.Module) -> torch.Tensor:
    """Its output for that input, float32.

    NotImplementedError: a class whose inputs are not known.
    """
    kind = next((base.__name__ for base in type(denoiser).__mro__ if base.__name__ in _INPUTS), None)
    if kind is None:
        raise NotImplementedError(
            f"nothing can be proved on a {type(denoiser).__name__}, whose inputs are not known; known are {', '.join(_INPUTS)}"
        )
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(denoiser.device, denoiser.dtype)

    inputs = _INPUTS[kind](denoiser.config, random)
    timestep = torch.tensor([0.5 if kind == "FluxTransformer2DModel" else 500.0], device=denoiser.device)
    with torch.no_grad():
        return denoiser(timestep=timestep, **inputs)[0].float()


def _unet(config: Any, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """Stable Diffusion 1, 2 and XL, and their students of latent consistency, which take their guidance scale as an input."""
    side = 2 ** len(config.block_out_channels)  # two positions at the lowest level
    width = config.encoder_hid_dim or config.cross_attention_dim
    inputs = {"sample": random(1, config.in_channels, side, side)}
    inputs["encoder_hidden_states"] = random(1, TOKENS, max(width) if isinstance(width, list | tuple) else width)
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = random(1, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":  # XL: the pooled text, and the image's sizes as numbers
        pooled = config.projection_class_embeddings_input_dim - config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": random(1, pooled), "time_ids": random(1, 1)}
    return inputs


def _sd3(config: Any, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    side = SIDE * config.patch_size
    return {
        "hidden_states": random(1, config.in_channels, side, side),
        "encoder_hidden_states": random(1, TOKENS, config.joint_attention_dim),
        "pooled_projections": random(1, config.pooled_projection_dim),
    }


def _flux(config: Any, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """Latents packed to a sequence, with the place of each."""
    places, texts = random(SIDE**2, 3).abs().round(), random(TOKENS, 3) * 0
    inputs = {
        "hidden_states": random(1, SIDE**2, config.in_channels),
        "encoder_hidden_states": random(1, TOKENS, config.joint_attention_dim),
        "pooled_projections": random(1, config.pooled_projection_dim),
        "img_ids": places,
        "txt_ids": texts,
    }
    return inputs | ({"guidance": random(1).abs()} if config.guidance_embeds else {})


def _sana(config: Any, random: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """SANA and SANA-Sprint."""
    side = SIDE * config.patch_size
    inputs = {
        "hidden_states": random(1, config.in_channels, side, side),
        "encoder_hidden_states": random(1, TOKENS, config.caption_channels),
    }
    return inputs | ({"guidance": random(1).abs()} if config.get("guidance_embeds") else {})


_INPUTS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "SanaTransformer2DModel": _sana,
}
