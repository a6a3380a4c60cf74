"""SDXL's denoiser at full size, with weights that are all the same: it costs what a trained one does."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch

UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.float16 if DEVICE == "cuda" else torch.bfloat16
WHERE = f"{str(DTYPE).removeprefix('torch.')} on {DEVICE}"


def unet() -> diffusers.UNet2DConditionModel:
    """Return the denoiser."""
    with torch.device("meta"):  # filled below: drawing 2.6 billion weights takes longer than a benchmark
        denoiser = diffusers.UNet2DConditionModel(**UNET)
    denoiser = denoiser.to(DTYPE).to_empty(device=DEVICE).eval().requires_grad_(False)
    for parameter in denoiser.parameters():
        parameter.fill_(0.01)
    return denoiser


def evaluation(denoiser: torch.nn.Module, *, side: int, batch: int = 1) -> Callable[[], torch.Tensor]:
    """Return a function that evaluates the denoiser once, on images of `side` pixels."""
    options = {"device": DEVICE, "dtype": DTYPE}
    x, text = torch.randn(batch, 4, side // 8, side // 8, **options), torch.randn(batch, 77, 2048, **options)
    added = {"text_embeds": torch.randn(batch, 1280, **options), "time_ids": torch.zeros(batch, 6, **options)}

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        return denoiser(x, torch.tensor(500, device=DEVICE), text, added_cond_kwargs=added).sample

    return evaluate
