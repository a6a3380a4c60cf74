"""Pairs whose weights are on the model hub: the paper's own, and the ones people use now.

Sources, for every line of the tables below:

- Files, steps, schedulers and guidance: the students' model cards on the hub. DMD2: LCM scheduler at the four timesteps it was
  trained on. LCM: LCM scheduler, guidance is an input of the network, 8 (diffusers' documentation of LCM-SDXL; trained for 3 to
  13). LCM-LoRA: guidance is baked in, 1 to 2 (its card); 1 here. Turbo: Euler ancestral, trailing, 512 px. Lightning: Euler,
  trailing. Hyper-SD: DDIM, trailing. TCD: its own scheduler, eta .3, the scheduler's own default. SD 3.5 large turbo, FLUX.1-schnell
  (256 text tokens): four Euler steps on the flow. PixArt-LCM: LCM scheduler. SANA-Sprint: two steps at TrigFlow's angles pi/2
  and 1.3 (diffusers' `SanaSprintPipeline`).
- Bases: the defaults of their pipelines or cards (SDXL 50 steps at 5, SD 1.5 50 at 7.5, SD 3.5 large 40 at 4.5, FLUX.1-dev 50 at
  3.5, PixArt and SANA 20 at 4.5).
- `published`: what the paper's code runs otherwise: LCM's own grid 999, 759, 499, 259 in place of DMD2's timesteps, and guidance
  0 for LCM-SDXL, which is w = -1, outside of what it was trained for.
- Revisions: commits that public code pins, or that the hub's own pages show with these files; `None` where none was found, see docs/pairs.md. Licences: the cards.

SANA-Sprint is SANA's flow model in TrigFlow's coordinates (Chen et al. 2025, section 3.1): with s = sin t / (sin t + cos t), its
pipeline gives the network x_t / (sin t + cos t) = (1 - s) x0 + s noise and time s, and turns the velocity that comes back
into TrigFlow's. Run in flow's coordinates, base and student speak of the same sample at the same s; SCM's step, x̂0 and
fresh noise, is then `FlowMatchLCMScheduler`'s.
"""

from __future__ import annotations

import math
from typing import Any

from .spec import Repo, Spec

TRAINED = (999, 749, 499, 249)  # DMD2's generator steps
LORA = "pytorch_lora_weights.safetensors"  # diffusers' name

# The bases
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD35 = "stabilityai/stable-diffusion-3.5-large"
FLUX = "black-forest-labs/FLUX.1-dev"
PIXART = "PixArt-alpha/PixArt-XL-2-1024-MS"
SANA = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"

_RAIL, _STABILITY = "OpenRAIL++", "Stability AI Community"
_FLUX_DEV = "FLUX.1-dev Non-Commercial"

REPOS: dict[str, Repo] = {
    SDXL: Repo(_RAIL, "462165984030d82259a11f4367a4eed129e94a7b", "fp16"),
    "tianweiy/DMD2": Repo("CC-BY-NC-4.0", "be22767697a1f3ca656b73c776e15fa335c86c6c"),
    "latent-consistency/lcm-sdxl": Repo(_RAIL, "51928f2d9c82226f71978037e7a8ffc648efe635", "fp16"),
    "latent-consistency/lcm-lora-sdxl": Repo(_RAIL, "a18548dd4956b174ec5b0d78d340c8dae0a129cd"),
    "stabilityai/sdxl-turbo": Repo(_STABILITY, "71153311d3dbb46851df1931d3ca6e939de83304", "fp16"),
    "ByteDance/SDXL-Lightning": Repo(_RAIL, "c9a24f48e1c025556787b0c58dd67a091ece2e44"),
    "ByteDance/Hyper-SD": Repo("see its LICENSE.md", "07822d9cde7a6c34b8f35c169a87a9a2885fd929"),
    "h1t/TCD-SDXL-LoRA": Repo("MIT", "ea69e290a201cbb9ac232be2d5c81ef6dc0fc3a2"),
    SD15: Repo("CreativeML OpenRAIL-M", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "fp16"),
    "latent-consistency/lcm-lora-sdv1-5": Repo(_RAIL, "cf2fced511dbe7e26c8d1d397e728fbab875db4b"),
    SD35: Repo(_STABILITY, "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f"),
    "stabilityai/stable-diffusion-3.5-large-turbo": Repo(_STABILITY, "ec07796fc06b096cc56de9762974a28f4c632eda"),
    FLUX: Repo(_FLUX_DEV, "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"),
    "black-forest-labs/FLUX.1-schnell": Repo("Apache-2.0", "741f7c3ce8b383c54771c7003378a50191e9efe9"),
    PIXART: Repo(_RAIL, "b89adadeccd9ead2adcb9fa2825d3fabec48d404"),
    "PixArt-alpha/PixArt-LCM-XL-2-1024-MS": Repo(_RAIL, "071672639aede86a974efb75a346acc54f62e8df"),
    SANA: Repo("see its card", "e18f82ddb8233fa4d979c2613f41a3ca4c5fc730"),
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": Repo("see its card"),
}

_TRAILING = {"timestep_spacing": "trailing"}
_DDIM = _TRAILING | {"clip_sample": False, "set_alpha_to_one": False}
_SDXL = {"base_steps": 50, "base_guidance": 5.0, "batch_size": 1}
_SD15 = {"base_steps": 50, "base_guidance": 7.5, "batch_size": 4}
_FLOW = {"handover": "matched-sigma", "batch_size": 1}
_EULER, _ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
_DMD = {"timesteps": TRAINED}
# TrigFlow's angles as flow's timesteps, 1000 s
_SPRINT = tuple(1000 * math.sin(t) / (math.sin(t) + math.cos(t)) for t in (math.pi / 2, 1.3))


def _sdxl(student: str, scheduler: str, file: str, **how: Any) -> Spec:
    settings = _SDXL | how.pop("settings", {})
    return Spec(SDXL, student, "sdxl", scheduler, file, settings=settings, **how)


def _lora(size: int, item: int = 2) -> dict[str, Any]:
    """Of a LoRA whose file takes `size` bytes, `item` a number."""
    return {"adapter": True, "parameters": size // item, "item": item}


HUB: dict[str, Spec] = {
    "sdxl-dmd": _sdxl(
        "tianweiy/DMD2", "LCMScheduler", "dmd2_sdxl_4step_unet_fp16.safetensors", settings=_DMD,
        published={"timesteps": None},
    ),
    "sdxl-lcm": _sdxl(
        "latent-consistency/lcm-sdxl", "LCMScheduler", "", settings={"guidance": 8.0}, published={"guidance": 0.0}
    ),
    "sdxl-turbo": _sdxl(
        "stabilityai/sdxl-turbo", _ANCESTRAL, "unet", scheduler_settings=_TRAILING,
        settings={"size": (512, 512)},  # what the student was trained at
    ),
    "sdxl-lightning": _sdxl(
        "ByteDance/SDXL-Lightning", _EULER, "sdxl_lightning_4step_unet.safetensors", scheduler_settings=_TRAILING
    ),
    "sdxl-dmd-lora": _sdxl(
        "tianweiy/DMD2", "LCMScheduler", "dmd2_sdxl_4step_lora_fp16.safetensors", **_lora(393_736_496), settings=_DMD
    ),
    "sdxl-lcm-lora": _sdxl(
        "latent-consistency/lcm-lora-sdxl", "LCMScheduler", LORA, **_lora(394_000_000), settings={"guidance": 1.0}
    ),
    "sdxl-lightning-lora": _sdxl(
        "ByteDance/SDXL-Lightning", _EULER, "sdxl_lightning_4step_lora.safetensors", **_lora(393_854_592),
        scheduler_settings=_TRAILING,
    ),
    "sdxl-hyper-lora": _sdxl(
        "ByteDance/Hyper-SD", "DDIMScheduler", "Hyper-SDXL-4steps-lora.safetensors", **_lora(787_000_000, 4),
        scheduler_settings=_DDIM,
    ),
    "sdxl-tcd-lora": _sdxl("h1t/TCD-SDXL-LoRA", "TCDScheduler", LORA, **_lora(394_000_000)),
    "sd15-lcm-lora": Spec(
        SD15, "latent-consistency/lcm-lora-sdv1-5", "sd15", "LCMScheduler", LORA, **_lora(135_000_000),
        settings=_SD15 | {"guidance": 1.0},
    ),
    "sd15-hyper-lora": Spec(
        SD15, "ByteDance/Hyper-SD", "sd15", "DDIMScheduler", "Hyper-SD15-4steps-lora.safetensors",
        **_lora(269_000_000, 4), scheduler_settings=_DDIM, settings=_SD15,
    ),
    "sd35-turbo": Spec(
        SD35, "stabilityai/stable-diffusion-3.5-large-turbo", "sd35", "FlowMatchEulerDiscreteScheduler", "transformer",
        settings=_FLOW | {"base_steps": 40, "base_guidance": 4.5},
    ),
    "flux-schnell": Spec(
        FLUX, "black-forest-labs/FLUX.1-schnell", "flux", "FlowMatchEulerDiscreteScheduler", "transformer",
        scheduler_settings={"shift": 1.0, "use_dynamic_shifting": False},
        settings=_FLOW | {"base_steps": 50, "base_guidance": 3.5, "call": {"max_sequence_length": 256}},
    ),
    "pixart-lcm": Spec(
        PIXART, "PixArt-alpha/PixArt-LCM-XL-2-1024-MS", "pixart", "LCMScheduler", "transformer",
        settings={"base_steps": 20, "base_guidance": 4.5, "batch_size": 1},
    ),
    "sana-sprint": Spec(
        SANA, "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "sana", "FlowMatchLCMScheduler", "transformer",
        scheduler_settings={"shift": 1.0, "use_dynamic_shifting": False}, time=1 / 1000,
        settings=_FLOW | {"base_steps": 20, "base_guidance": 4.5, "guidance": 4.5, "steps": 2, "timesteps": _SPRINT},
    ),
}  # fmt: skip
