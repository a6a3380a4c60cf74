"""A control: a small change of a denoiser's weights, such as a slider or a style, as one file that says where it is from.

    smile = dtviz.control.load("smile.safetensors")
    smile.facts["prompts"], smile.fingerprint
    dtviz.generate(pair, "face", controls=[smile.at(2.0, segment="base")])

How it is put on a network is `attach`'s; other people's files are read by `control.files`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from .store import write_whole

DOWN, UP, DELTA = ".lora_A.weight", ".lora_B.weight", ".weight"
HEADER = "dtviz"  # of the file's metadata: what a control is beside its tensors, as JSON
PARTS = ("unet", "transformer")
SEGMENTS = ("both", "base", "distilled")


@dataclass(frozen=True, eq=False)
class Control:
    """A change of a denoiser's weights that can be put on any network of the same shape, at any scale.

    Attributes:
        name: for figures and files.
        kind: "slider", "style", "lora", or whatever it is called.
        tensors: of each module that changes either `<module>.lora_A.weight` (rank, in, ...) and `<module>.lora_B.weight`
            (out, rank, ...), whose product is the change at scale 1 (alpha / rank is in it already, see `scaled`); or
            `<module>.weight`, the change itself, W_tuned - W_base. Names are those of the denoiser's modules.
        facts: where it comes from, JSON-compatible. "prompts": those it is meant for; "towards": the text that it should
            bring an image nearer to; "trained_on": {"pair", "role"}; "licence"; and whatever its training tells.
        left_out: what else the file held that is no part of the denoiser, such as "text_encoder, 72 tensors".
        part: the denoiser's name in its pipeline, and so in the file: "unet" or "transformer".

    Raises:
        ValueError: no tensors, factors that do not fit each other, or names of no such form.
    """

    name: str
    kind: str
    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    part: str = "unet"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part={self.part!r} of control {self.name!r} is not one of {', '.join(PARTS)}")
        if not self.tensors:
            raise ValueError(f"control {self.name!r} has no tensors: it would change nothing")
        for key, tensor in self.tensors.items():
            module, form = split(key)
            if form == DELTA:
                continue
            other = self.tensors.get(module + (UP if form == DOWN else DOWN))
            down, up = (tensor, other) if form == DOWN else (other, tensor)
            if other is None or down.shape[0] != up.shape[1] or module + DELTA in self.tensors:
                raise ValueError(
                    f"control {self.name!r}: module {module!r} needs {DOWN[1:]} (rank, in) and {UP[1:]} (out, rank) and nothing "
                    f"else, and has {sorted(k for k in self.tensors if split(k)[0] == module)}"
                )

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that it changes, in alphabetical order."""
        return tuple(sorted({split(key)[0] for key in self.tensors}))

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change whenever a tensor does; the facts do not count."""
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
            tensor = self.tensors[key].detach().cpu().contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def at(self, scale: float = 1.0, *, segment: str = "both", window: tuple[float, float] | None = None) -> Applied:
        """This control as `generate(controls=[...])` takes it."""
        return Applied(self, scale, segment, window)

    def change(self, module: str) -> torch.Tensor:
        """What is added to this module's weight at scale 1, float32, in the weight's own shape.

        KeyError: the control does not change this module.
        """
        if module + DELTA in self.tensors:
            return self.tensors[module + DELTA].float()
        down, up = self.tensors[module + DOWN].float(), self.tensors[module + UP].float()
        return torch.einsum("or,ri...->oi...", up.flatten(1), down)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all; `dtviz.control.load` gives the same control back.

        LoRA factors have diffusers' names, such as `unet.<module>.lora_A.weight`, so that its own `load_lora_weights` reads them.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"name": self.name, "kind": self.kind, "facts": dict(self.facts)}
        told |= {"left_out": list(self.left_out), "part": self.part}
        told["fingerprint"] = self.fingerprint  # so that a damaged file is noticed
        tensors = {
            (key if split(key)[1] == DELTA else f"{self.part}.{key}"): tensor.detach().cpu().contiguous()
            for key, tensor in sorted(self.tensors.items())
        }
        write_whole(path, save(tensors, metadata={HEADER: json.dumps(told, sort_keys=True)}))
        return path

    def __repr__(self) -> str:
        n = sum(tensor.numel() for tensor in self.tensors.values())
        return f"Control({self.name!r}, {self.kind!r}, {len(self.modules)} modules, {n} numbers, {self.fingerprint})"


@dataclass(frozen=True)
class Applied:
    """A control in a run: how strongly, in whose steps, and at which noise levels.

    Attributes:
        control: what is put on.
        scale: times its change; negative turns a slider the other way, 0 is the plain model.
        segment: in whose steps it is on: "both", "base", or "distilled".
        window: (high, low) noise levels, sigma = noise / signal, between which, both included, it is on; None: all. A level
            and not a share of the steps, since that is what a base of fifty steps and a student of four have in common: the
            usual "off in early steps" of sliders is a timestep too. A step counts by the level that it starts from, so a
            student's single step may leap over a window that takes ten of the base's; `generate` tells in how many
            calls of each it was on.

    Raises:
        ValueError: an argument is out of range.
    """

    control: Control
    scale: float = 1.0
    segment: str = "both"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.control, Control):
            raise ValueError(f"control is a {type(self.control).__name__}: give what dtviz.control.load returns")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale!r} must be a finite number; 1 is the strength it was trained at")
        if self.segment not in SEGMENTS:
            raise ValueError(f"segment={self.segment!r} is not one of {', '.join(SEGMENTS)}")
        if self.window is not None:
            high, low = self.window if len(self.window) == 2 else (math.nan, math.nan)
            if not 0 <= low <= high < math.inf:
                raise ValueError(
                    f"window={self.window} must be (high, low) noise levels, finite and falling, such as (4.2, 0); None for all"
                )

    def on(self, role: str, sigma: float) -> bool:
        """Whether it is on in a step of this role, "base" or "distilled", that starts from this noise level."""
        if self.scale == 0 or self.segment not in ("both", role):
            return False
        slack = 1e-3  # two schedulers' roundings of one level are one level
        return self.window is None or self.window[1] * (1 - slack) <= sigma <= self.window[0] * (1 + slack)

    def facts(self) -> dict[str, Any]:
        """What a result has to tell, JSON-compatible."""
        return {
            "name": self.control.name,
            "fingerprint": self.control.fingerprint,
            "scale": float(self.scale),
            "segment": self.segment,
            "window": None if self.window is None else [float(level) for level in self.window],
        }

    def __str__(self) -> str:
        """As in "smile x 2 (base, sigma 4.2 to 0)"."""
        where = [self.segment] * (self.segment != "both")
        if self.window is not None:
            where.append(f"sigma {self.window[0]:g} to {self.window[1]:g}")
        return f"{self.control.name} x {self.scale:g}" + (f" ({', '.join(where)})" if where else "")


def scaled(tensors: Mapping[str, torch.Tensor], alphas: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Factors with alpha / rank multiplied into `lora_B`, so that their product is the change at scale 1.

    alphas: module -> alpha; a module without one has alpha = rank, as diffusers takes it. lora_B becomes float32 where
    its own type would round the product.

    >>> factors = {"a.lora_A.weight": torch.ones(4, 2), "a.lora_B.weight": torch.ones(3, 4)}
    >>> scaled(factors, {"a": 1.0})["a.lora_B.weight"][0, 0].item()
    0.25
    """
    result = dict(tensors)
    for module, alpha in alphas.items():
        up = tensors[module + UP]
        strength = alpha / up.shape[1]
        exact = up.float() * strength
        result[module + UP] = exact.to(up.dtype) if torch.equal(exact.to(up.dtype).float(), exact) else exact
    return result


def split(key: str) -> tuple[str, str]:
    """A tensor's module and form, one of DOWN, UP and DELTA. ValueError: neither.

    >>> split("mid_block.attentions.0.proj_in.lora_A.weight")
    ('mid_block.attentions.0.proj_in', '.lora_A.weight')
    """
    for form in (DOWN, UP, DELTA):
        if key.endswith(form) and len(key) > len(form):
            return key.removesuffix(form), form
    raise ValueError(f"tensor {key!r} is named neither <module>{DOWN}, <module>{UP} nor <module>{DELTA}")
