"""The pairs known by name: where each base and student comes from, and the settings the student was trained for."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """A pair known by name: where it comes from and the settings it was trained for.

    `file` is the student's weights: a safetensors file or a diffusers folder in `student`; of an embedded pair "unet", a
    whole network, or "lora", an adapter on the base, so that one network in memory plays both parts.
    """

    base: str
    student: str
    scheduler: str
    licence: str
    size: str
    file: str = ""
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether dtviz ships it."""
        return "/" not in self.base


SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
TRAINED = (999, 749, 499, 249)  # DMD2's generator steps
LORA = "pytorch_lora_weights.safetensors"  # diffusers' name
_TRAILING = {"timestep_spacing": "trailing"}
_SDXL = {"base_steps": 50, "base_guidance": 5.0, "batch_size": 1}

# Sources: each student's model card. DMD2: LCM scheduler at its trained timesteps, no guidance. LCM: LCM scheduler,
# guidance embedded in the network, 8. Turbo: Euler ancestral, trailing. Lightning: Euler, trailing.
_EMOJI = {"base_steps": 20, "base_guidance": 5.0, "batch_size": 10}
_DRAWN = "MIT (weights); drawings Apache-2.0, MIT, CC-BY-4.0"
_STUDENTS: dict[str, dict[str, Any]] = {
    "emoji-dmd": {"scheduler": "LCMScheduler", "settings": {"timesteps": TRAINED} | _EMOJI},
    "emoji-lcm": {"scheduler": "LCMScheduler", "settings": _EMOJI},
    "emoji-turbo": {
        "scheduler": "EulerAncestralDiscreteScheduler", "scheduler_settings": _TRAILING, "settings": _EMOJI,
    },
    "emoji-lightning": {"scheduler": "EulerDiscreteScheduler", "scheduler_settings": _TRAILING, "settings": _EMOJI},
}  # fmt: skip
SPECS: dict[str, Spec] = {
    **{n: Spec("emoji-base", n, licence=_DRAWN, size="27 MiB", file="unet", **how) for n, how in _STUDENTS.items()},
    **{
        f"{n}-lora": Spec("emoji-base", n, licence=_DRAWN, size="22 MiB", file="lora", **how)
        for n, how in _STUDENTS.items()
    },
    "sdxl-dmd": Spec(
        SDXL, "tianweiy/DMD2", "LCMScheduler", "OpenRAIL++ (base), CC-BY-NC-4.0 (student)", "12 GB",
        file="dmd2_sdxl_4step_unet_fp16.safetensors", settings=_SDXL | {"timesteps": TRAINED},
    ),
    "sdxl-lcm": Spec(
        SDXL, "latent-consistency/lcm-sdxl", "LCMScheduler", "OpenRAIL++", "12 GB", settings=_SDXL | {"guidance": 8.0}
    ),
    "sdxl-turbo": Spec(
        SDXL, "stabilityai/sdxl-turbo", "EulerAncestralDiscreteScheduler",
        "OpenRAIL++ (base), Stability AI Community (student)", "12 GB", file="unet", scheduler_settings=_TRAILING,
        settings=_SDXL | {"size": (512, 512)},  # what the student was trained at
    ),
    "sdxl-lightning": Spec(
        SDXL, "ByteDance/SDXL-Lightning", "EulerDiscreteScheduler", "OpenRAIL++", "12 GB",
        file="sdxl_lightning_4step_unet.safetensors", scheduler_settings=_TRAILING, settings=_SDXL,
    ),
}  # fmt: skip


def spec_of(name: str) -> Spec:
    """The pair of this name.

    Raises:
        ValueError: there is none; the message suggests the nearest.

    >>> spec_of("sdxl-dmd").student
    'tianweiy/DMD2'
    """
    if name not in SPECS:
        near = difflib.get_close_matches(str(name), SPECS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"pair {name!r} is not known, there are {', '.join(SPECS)}{hint}")
    return SPECS[name]
