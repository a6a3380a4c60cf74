"""How much memory a pair takes before it is loaded, what this machine has, and the fastest way that fits.

dtviz.memory.choose("sdxl-dmd")         # Way("offload", accelerator=..., host=..., options={"offload": True})
pair = dtviz.load("sdxl-dmd", **dtviz.memory.choose("sdxl-dmd").options)

Weights are counted to the byte; what a run takes beside them is that of `families.FAMILIES`, measured on tensors alone. For an
accelerator's own context, its allocator and scratch memory `RESERVED` and `SPARE` are set aside: usual values, not measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .families import FAMILIES, Family
from .spec import Spec
from .specs import spec_of

RESERVED = 600 * 2**20  # bytes of an accelerator's context and libraries
SPARE = 1.2  # of what a run takes beside weights: fragments and kernels' scratch
TILE = 512  # pixels on a side that a tiled autoencoder decodes at a time
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Way:
    """One way to run a pair, and the memory that it takes at its peak.

    Attributes:
        name: "together", "tiled", "offload", "model offload" or "sequential".
        accelerator, host: bytes; on a CPU all of it is the host's.
        options: what to give `dtviz.load`.
        how: what else to do, in a sentence.
    """

    name: str
    accelerator: int
    host: int
    options: dict[str, Any] = field(default_factory=dict)
    how: str = ""

    def fits(self, accelerator: int | None, host: int) -> bool:
        """Whether a machine with so many free bytes can do it; `accelerator` None: it has none."""
        if accelerator is None:
            return self.accelerator + self.host <= host
        return self.accelerator <= accelerator and self.host <= host


def weights(spec: Spec, *, item: int) -> dict[str, int]:
    """Bytes of each part's weights at `item` bytes a number: base, student (a LoRA's beside its base), text, vae."""
    of = FAMILIES[spec.family]
    student = spec.parameters if spec.adapter else of.denoiser
    return {"base": of.denoiser * item, "student": student * item, "text": of.text * item, "vae": of.vae * item}


def size(name: str) -> str:
    """What a pair weighs at two bytes a parameter, which is about what has to be downloaded; of a shipped one, its files.

    >>> size("sdxl-dmd")
    '12.1 GB'
    """
    spec = spec_of(name)
    if spec.embedded:
        from .available import models

        folders = models() / spec.base, models() / spec.student / spec.file
        files = sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))
        return f"{files / 2**20:.0f} MiB"
    return f"{sum(weights(spec, item=2).values()) / 1e9:.1f} GB"


def ways(
    name: str,
    *,
    dtype: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    guided: bool = True,
) -> list[Way]:
    """The ways to run a pair, fastest first, on an accelerator.

    Args:
        name: one of `dtviz.pairs()`.
        dtype: "float32", "float16" or "bfloat16"; None takes the family's own.
        size: (height, width) of the images in pixels; None takes the pair's.
        batch_size: samples denoised together; None takes the pair's.
        guided: whether the base runs with guidance, which doubles its batch.

    Raises:
        ValueError: no pair has this name, or there is no such dtype.
    """
    spec, of = spec_of(name), FAMILIES[spec_of(name).family]
    dtype = dtype or of.dtype
    if dtype not in ITEM:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(ITEM)}")
    height, width = size or spec.settings.get("size") or of.size
    batch = batch_size or spec.settings.get("batch_size", 8)
    item = ITEM[dtype]
    part = weights(spec, item=item)
    work = _work(of, height, width, batch * (1 + guided), item)
    decode, tiled = (_decode(of, h, w, item) for h, w in ((height, width), (min(height, TILE), min(width, TILE))))
    both, others = part["base"] + part["student"], part["text"] + part["vae"]
    one = both if spec.adapter else part["base"]

    def peak(*stages: int) -> int:
        return max(stages) + RESERVED

    tiling = "call pair.pipeline.vae.enable_tiling()"
    found = [
        Way("together", peak(both + others + max(work, decode)), 0),
        Way("tiled", peak(both + others + max(work, tiled)), 0, how=tiling),
    ]
    if not spec.adapter:
        found.append(
            Way("offload", peak(one + others + max(work, tiled)), part["student"], {"offload": True}, f"{tiling}")
        )
    found.append(
        Way(
            "model offload",
            peak(part["text"], one + work, part["vae"] + tiled),
            both + others,
            {"offload": "model"},
            tiling,
        )
    )
    if not spec.adapter:
        found.append(
            Way(
                "sequential", peak(part["text"], one + work, part["vae"] + tiled), one + others, {},
                "call dtviz.sequential.hybrid: all prompts through the base, then all through the student",
            )
        )  # fmt: skip
    return found


def _work(of: Family, height: int, width: int, samples: int, item: int) -> int:
    """Bytes of one evaluation of so many samples beside weights."""
    cells = (height // of.cell) * (width // of.cell)
    return int(of.work * cells * samples * item / 2 * SPARE)


def _decode(of: Family, height: int, width: int, item: int) -> int:
    """Bytes of decoding one image beside weights; dtviz decodes large ones one by one."""
    return int(of.decode * height * width * (4 if of.wide else item) / 2 * SPARE)


def room() -> tuple[int | None, int]:
    """Bytes free on the first accelerator, None where there is none, and of the host's memory."""
    import torch

    accelerator = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return accelerator, _free()


def _free() -> int:
    import psutil

    return psutil.virtual_memory().available
