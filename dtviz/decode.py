"""Latents to images.

images = dtviz.decode(trace, pair)              # the x̂0 of every step: (step, sample, 3, height, width)
finals = dtviz.decode(trace, pair, what="final")
"""

from __future__ import annotations

from typing import Any

import torch

from .trace import Trace

WHAT = ("x0", "final", "x_t")


def decode(
    trace: Trace, pair: Any, *, what: str = "x0", final: bool = False, batch_size: int | None = None
) -> torch.Tensor:
    """Decode one part of a trace with the pair's VAE.

    Args:
        trace: what `generate` or `capture` recorded.
        pair: a `Pair`, or a diffusers pipeline with a `vae`.
        what: "x0", the planned image of every step; "final"; or "x_t", what a plain decode of the noisy latents shows.
        final: short for `what="final"`.
        batch_size: latents decoded together; it bounds the memory. None: 64 at 8x8, one at SDXL's 128x128.

    Returns:
        float32 in [0, 1]: (step, sample, 3, height, width) for "x0" and "x_t", (sample, 3, height, width) for "final".

    Raises:
        ValueError: `what` is unknown, or the trace holds no x_t.
    """
    what = "final" if final else what
    if what not in WHAT:
        raise ValueError(f"what={what!r} is not one of {', '.join(WHAT)}")
    latents = getattr(trace, what)
    if latents is None:
        raise ValueError("this trace holds no x_t: generate or capture it with x_t=True")
    images = decode_latents(latents.flatten(0, -4), pair, batch_size=batch_size)
    return images.unflatten(0, latents.shape[:-3])


@torch.no_grad()
def decode_latents(latents: torch.Tensor, pair: Any, *, batch_size: int | None = None) -> torch.Tensor:
    """(n, channel, height, width) latents in the pipeline's scale -> (n, 3, height, width) float32 in [0, 1]."""
    vae = getattr(pair, "pipeline", pair).vae
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    batch_size = batch_size or max(1, 4096 // (latents.shape[-2] * latents.shape[-1]))
    upcast = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if upcast:  # SDXL's VAE overflows in half precision
        vae.to(torch.float32)
    try:
        images = [
            vae.decode(part.to(vae.device, vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
            .float()
            .cpu()
            for part in latents.split(batch_size)
        ]
    finally:
        if upcast:
            vae.to(torch.float16)
    return torch.cat(images).div(2).add(0.5).clamp(0, 1)
