"""How much memory a pair takes before it is loaded, what this machine has, and the fastest way that fits.

way = dtviz.memory.choose("sdxl-dmd")             # Way("together", ...), or what else fits
pair = dtviz.load("sdxl-dmd", **way.options)

Weights are counted to the byte; what a run takes beside them is that of `families.FAMILIES`, measured on tensors alone. For an
accelerator's context and libraries `RESERVED`, for its allocator and its kernels' scratch `SPARE` is added: usual values, not
measured here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .models.available import models
from .models.families import FAMILIES, Family
from .models.spec import Spec
from .models.specs import spec_of

RESERVED = 600 * 2**20  # bytes
SPARE = 1.2
TILE = 512  # pixels on a side that a tiled autoencoder decodes at a time
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Way:
    """One way to run a pair, and the memory that it takes at its peak.

    Attributes:
        name: "together", "tiled", "offload", "model offload" or "sequential".
        accelerator, host: bytes on each; without an accelerator the host holds both.
        options: what to give `dtviz.load`.
        how: what to do, in a line of code.
    """

    name: str
    accelerator: int
    host: int
    options: dict[str, Any] = field(default_factory=dict)
    how: str = ""

    def fits(self, accelerator: int | None, host: int) -> bool:
        """Whether it goes into so many free bytes; `accelerator` None: there is none, and nothing to offload from."""
        if accelerator is None:
            return "offload" not in self.name and self.accelerator - RESERVED + self.host <= host
        return self.accelerator <= accelerator and self.host <= host

    def told(self, accelerator: int | None) -> str:
        """One line for people; `accelerator` as in `fits`."""
        if accelerator is None:
            return f"{self.name}: {(self.accelerator - RESERVED + self.host) / 1e9:.1f} GB; {self.how}"
        return f"{self.name}: {self.accelerator / 1e9:.1f} GB on the accelerator, {self.host / 1e9:.1f} GB in the host; {self.how}"


def weights(spec: Spec, *, item: int) -> dict[str, int]:
    """Bytes of each part's weights at `item` bytes a number: base, student (a LoRA beside its base), text, vae."""
    of = FAMILIES[spec.family]
    student = spec.parameters if spec.adapter else of.denoiser
    return {"base": of.denoiser * item, "student": student * item, "text": of.text * item, "vae": of.vae * item}


def size(name: str) -> str:
    """What a pair weighs at two bytes a parameter, which is about what has to be downloaded; of a shipped one, its files.

    >>> size("sdxl-dmd")
    '12.1 GB'
    """
    spec = spec_of(name)
    if not spec.embedded:
        return f"{sum(weights(spec, item=2).values()) / 1e9:.1f} GB"
    folders = models() / spec.base, models() / spec.student / spec.file
    files = sum(file.stat().st_size for folder in folders for file in folder.rglob("*.safetensors"))
    return f"{files / 2**20:.0f} MiB"


def ways(
    name: str,
    *,
    dtype: str | None = None,
    size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    guided: bool = True,
) -> list[Way]:
    """The ways to run a pair, fastest first, and what each takes on an accelerator.

    Args:
        name: one of `dtviz.pairs()`.
        dtype: "float32", "float16" or "bfloat16"; None takes the family's own.
        size: (height, width) of the images in pixels; None takes the pair's.
        batch_size: samples denoised together; None takes the pair's.
        guided: whether the base runs with guidance, which doubles the batch of all but FLUX.1-dev.

    Raises:
        ValueError: no pair has this name, or there is no such dtype.

    >>> [way.name for way in ways("sdxl-dmd-lora")]
    ['together', 'tiled', 'model offload']
    """
    spec, of = spec_of(name), FAMILIES[spec_of(name).family]
    dtype = dtype or of.dtype
    if dtype not in ITEM:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(ITEM)}")
    item = ITEM[dtype]
    height, width = size or spec.settings.get("size") or of.size
    batch = batch_size or spec.settings["batch_size"]
    part = weights(spec, item=item)
    evaluation = work(of, height, width, batch * (2 if guided and of.doubled else 1), item)
    decoding, tiled = (decode(of, h, w, item) for h, w in ((height, width), (min(height, TILE), min(width, TILE))))
    both, rest = part["base"] + part["student"], part["text"] + part["vae"]
    one = both if spec.adapter else part["base"]
    load, tiling = f"dtviz.load({name!r})", "pair.pipeline.vae.enable_tiling()"
    # with everything waiting for its turn, one part at a time is on the accelerator
    turns = RESERVED + max(part["text"], one + evaluation, part["vae"] + tiled)
    found = [
        Way("together", RESERVED + both + rest + max(evaluation, decoding), 0, how=load),
        Way("tiled", RESERVED + both + rest + max(evaluation, tiled), 0, how=f"{load}; {tiling}"),
        Way(
            "offload", RESERVED + one + rest + max(evaluation, tiled), part["student"], {"offload": True},
            f"dtviz.load({name!r}, offload=True); {tiling}",
        ),
        Way(
            "model offload", turns, both + rest, {"offload": "model"},
            f"dtviz.load({name!r}, offload='model'); {tiling}",
        ),
        Way(
            "sequential", RESERVED + one + rest + max(evaluation, tiled), 0, {}, f"dtviz.sequential.hybrid({name!r}, prompts, ...)",
        ),
    ]  # fmt: skip
    return [way for way in found if not spec.adapter or way.name not in ("offload", "sequential")]


def choose(name: str, *, room: tuple[int | None, int] | None = None, **run: Any) -> Way:
    """The fastest way that this machine has the memory for.

    Args:
        name: one of `dtviz.pairs()`.
        room: free bytes (of the accelerator or None, of the host); None asks the machine.
        run: as for `ways`.

    Raises:
        MemoryError: none fits; the message says what the most frugal one takes.
    """
    accelerator, host = free() if room is None else room
    if accelerator is None:
        run = {"dtype": "float32"} | run
    found = ways(name, **run)
    fit = [way for way in found if way.fits(accelerator, host)]
    if not fit:
        least = min(found, key=lambda way: way.accelerator + way.host if accelerator is None else way.accelerator)
        have = f"{host / 1e9:.1f} GB of memory" + (
            f" and {accelerator / 1e9:.1f} GB on the accelerator" if accelerator else ""
        )
        raise MemoryError(
            f"pair {name!r} does not fit: {have} are free, and the most frugal way takes more: {least.told(accelerator)}"
        )
    return fit[0]


def work(of: Family, height: int, width: int, samples: int, item: int) -> int:
    """Bytes of one evaluation of so many samples beside weights."""
    cells = (height // of.cell) * (width // of.cell)
    return int(of.work * cells * samples * item / 2 * SPARE)


def decode(of: Family, height: int, width: int, item: int) -> int:
    """Bytes of decoding one image beside weights; dtviz decodes large ones one by one."""
    return int(of.decode * height * width * (4 if of.wide else item) / 2 * SPARE)


def free() -> tuple[int | None, int]:
    """Bytes free on the accelerator, None where there is none, and in the host's memory."""
    import psutil
    import torch

    accelerator = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return accelerator, psutil.virtual_memory().available
