"""Decoding x0 three ways, and in batches: `make bench` writes figures/bench/decode.csv. Ratios within one run, in turns.

SDXL's autoencoder and the tiny one have their published sizes and random weights; so has the linear preview. Memory is the
growth of a process that decodes 8 latents, together or one by one.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler

from dtviz.core.decode import Preview, decode_latents

from .measure import beside, peak, publish

SIDE, LATENTS = 64, 8  # 512 px images


def pipe() -> SimpleNamespace:
    """All that decoding needs of a pipeline."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, scaling_factor=0.13025,
    )  # fmt: skip
    return SimpleNamespace(vae=vae.eval(), scheduler=DDIMScheduler())


def speed(name: str, vae, repeats: int = 3) -> dict:
    """One latent by a quicker decoder."""
    host, latents = pipe(), torch.randn(1, 4, SIDE, SIDE)
    decoders = (partial(decode_latents, latents, host, vae=vae), partial(decode_latents, latents, host))
    ours, instead, ratio = beside(*decoders, repeats)
    what = f"one 512 px image by {name}, against SDXL's autoencoder"
    return {"what": what, "unit": "s", "dtviz": ours, "instead": instead, "ratio": ratio}


def growth(batch_size: int) -> float:
    """GiB that a process grows by while it decodes all latents."""
    host = pipe()
    before = peak()
    decode_latents(torch.randn(LATENTS, 4, SIDE, SIDE), host, batch_size=batch_size)
    return peak() - before


def memory() -> dict:
    sizes = []
    for batch_size in (1, LATENTS):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes.append(pool.apply(growth, (batch_size,)))
    what = f"{LATENTS} images of 512 px, SDXL's autoencoder: one by one (the default there), against together"
    return {"what": what, "unit": "GiB", "dtviz": sizes[0], "instead": sizes[1], "ratio": sizes[1] / sizes[0]}


if __name__ == "__main__":
    preview = Preview(torch.randn(5, 3) / 4, 8, 1.0)
    rows = [speed("AutoencoderTiny", AutoencoderTiny().eval()), speed("linear preview", preview), memory()]
    publish(rows, "decode")
