"""Decoding plans three ways, and in pieces: `make bench` writes figures/bench/decode.csv. Ratios within one run, in turns.

SDXL's autoencoder and the tiny one have their published sizes and random weights; so has the linear preview.
Memory is what the process grows by, of 8 latents decoded together and one by one, each in a process of its own.
"""

from __future__ import annotations

import multiprocessing
from functools import partial
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.schedulers import DDIMScheduler

from dtviz.decode import Preview, decode_latents

from .measure import beside, peak, publish

SIDE, LATENTS = 64, 8  # 512 px images


def pipe() -> SimpleNamespace:
    """All that decoding needs of a pipeline."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.13025,
    )
    return SimpleNamespace(vae=vae.eval(), scheduler=DDIMScheduler())


def speed(repeats: int = 3) -> list[dict]:
    """One latent each."""
    host, latents = pipe(), torch.randn(1, 4, SIDE, SIDE)
    ways = {
        "AutoencoderTiny": AutoencoderTiny().eval(),
        "linear preview": Preview(torch.randn(5, 3) / 4, 8, 1.0),
    }
    rows = []
    for name, vae in ways.items():
        quick = partial(decode_latents, latents, host, vae=vae)
        ours, instead, ratio = beside(quick, lambda: decode_latents(latents, host), repeats)
        what = f"one 512 px plan by {name}, against SDXL's autoencoder"
        rows.append({"what": what, "unit": "s", "dtviz": ours, "instead": instead, "ratio": ratio})
    return rows


def growth(batch_size: int) -> float:
    """GiB that a process grows by while it decodes all latents."""
    host = pipe()
    before = peak()
    decode_latents(torch.randn(LATENTS, 4, SIDE, SIDE), host, batch_size=batch_size)
    return peak() - before


def memory() -> dict:
    fresh = multiprocessing.get_context("spawn")
    sizes = []
    for batch_size in (1, LATENTS):
        with fresh.Pool(1) as pool:
            sizes.append(pool.apply(growth, (batch_size,)))
    what = f"{LATENTS} plans of 512 px, SDXL's autoencoder: one by one (the default there), against together"
    return {"what": what, "unit": "GiB", "dtviz": sizes[0], "instead": sizes[1], "ratio": sizes[1] / sizes[0]}


def main() -> None:
    publish([*speed(), memory()], "decode")


if __name__ == "__main__":
    main()
