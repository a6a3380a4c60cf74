"""Architectures that pairs are of: how many parameters their parts have, and how much memory a run takes beside them.

FAMILIES["sdxl"].denoiser      # 2567463684

Parameters are those of the published configs, counted by `tests/published.py`; `work` and `decode` are measured on the same
networks by `tests/bench/sizes.py` (figures/bench/sizes.csv) at the size they were trained for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Networks of one published architecture.

    Attributes:
        denoiser, text, vae: parameters of the denoiser, of all text encoders, of the autoencoder.
        cell: pixels that a latent cell covers on a side.
        size: (height, width) in pixels that it was trained at.
        work: bytes for each latent cell of a sample that a denoiser evaluation takes beside weights, at two bytes a number.
        decode: bytes for each pixel of an image that decoding takes beside weights, at two bytes a number.
        dtype: how it is run on an accelerator.
        doubled: whether guidance takes two evaluations; FLUX.1-dev has it as an input.
        wide: whether its autoencoder is decoded in float32 there too, since it overflows in float16.
        folder: of the denoiser in a repository.
        networks: the denoiser and the autoencoder in `tests/published.py`; the embedded pairs have their own weights.
    """

    denoiser: int
    text: int
    vae: int
    cell: int
    size: tuple[int, int]
    work: float
    decode: float
    dtype: str = "float16"
    doubled: bool = True
    wide: bool = False
    folder: str = "unet"
    networks: tuple[str, ...] = ()


_CLIP_L, _CLIP_L_PROJECTED, _CLIP_G, _T5, _GEMMA = 123_060_480, 123_650_304, 694_659_840, 4_762_310_656, 2_614_341_888

FAMILIES: dict[str, Family] = {
    "emoji": Family(7_261_488, 780_032, 1_904_307, 8, (64, 64), 5_091, 353, "float32"),
    "sd15": Family(
        859_520_964, _CLIP_L, 83_653_863, 8, (512, 512), 16_641, 1536, networks=("sd15 unet", "sd vae"),
    ),
    "sdxl": Family(
        2_567_463_684, _CLIP_L + _CLIP_G, 83_653_863, 8, (1024, 1024), 10_080, 1536, wide=True,
        networks=("sdxl unet", "sd vae"),
    ),
    "sd35": Family(
        8_056_627_520, _CLIP_L_PROJECTED + _CLIP_G + _T5, 83_819_683, 8, (1024, 1024), 16_107, 1536, "bfloat16",
        folder="transformer", networks=("sd35 transformer", "sd35 vae"),
    ),
    "flux": Family(
        11_901_408_320, _CLIP_L + _T5, 83_819_683, 8, (1024, 1024), 28_019, 1536, "bfloat16", doubled=False,
        folder="transformer", networks=("flux transformer", "sd35 vae"),
    ),
    "pixart": Family(
        611_349_152, _T5, 83_653_863, 8, (1024, 1024), 6_931, 1536, folder="transformer",
        networks=("pixart transformer", "sd vae"),
    ),
    "sana": Family(
        1_604_462_752, _GEMMA, 312_250_275, 32, (1024, 1024), 64_090, 1666, "bfloat16", folder="transformer",
        networks=("sana transformer", "sana vae"),
    ),
}  # fmt: skip
