"""The pairs that have a name: embedded ones, whose weights dtviz ships, and pairs of the model hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Spec:
    """A pair known by name: where its weights are, and the settings it was trained for."""

    name: str
    base: str  # repository or folder; a name in `data/models` for an embedded pair
    distilled: str  # the same
    file: str  # file or diffusers folder of the distilled weights
    scheduler: str  # diffusers class of the distilled model, built from the base's settings and `scheduler_settings`
    scheduler_settings: dict[str, Any]
    settings: dict[str, Any]  # arguments of `Pair`, as the distilled model was trained
    paper_settings: dict[str, Any]  # those of them that the paper's code has otherwise
    adapter: bool  # whether the distilled model is a LoRA on the base
    dtype: str  # on an accelerator
    pipeline_options: dict[str, Any]  # of `DiffusionPipeline.from_pretrained`
    licence: str
    revisions: tuple[str | None, str | None]  # commits of base and distilled model; None for the branch "main"
    variants: tuple[str | None, str | None]  # of their half-precision file names; None if there are none

    @property
    def embedded(self) -> bool:
        """Return whether dtviz ships the weights."""
        return "/" not in self.base


# Sources: model cards and defaults of pipelines; docs/pairs.md has more. Revisions: commits that public code or the hub
# shows. DMD2's timesteps are those of its training. LCM's guidance is from diffusers' documentation of LCM-SDXL.

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD35 = "stabilityai/stable-diffusion-3.5-large"
FLUX = "black-forest-labs/FLUX.1-dev"
LORA = "pytorch_lora_weights.safetensors"  # diffusers' file name

_RAIL, _STABILITY = "OpenRAIL++", "Stability AI Community"
_EMBEDDED = ("MIT (weights); drawings Apache-2.0, MIT, CC-BY-4.0", None, None)
# Licence, commit, and the variant of half-precision file names
REPOS: dict[str, tuple[str, str | None, str | None]] = {
    SDXL: (_RAIL, "462165984030d82259a11f4367a4eed129e94a7b", "fp16"),
    "tianweiy/DMD2": ("CC-BY-NC-4.0", "be22767697a1f3ca656b73c776e15fa335c86c6c", None),
    "latent-consistency/lcm-sdxl": (_RAIL, "51928f2d9c82226f71978037e7a8ffc648efe635", "fp16"),
    "latent-consistency/lcm-lora-sdxl": (_RAIL, "a18548dd4956b174ec5b0d78d340c8dae0a129cd", None),
    "stabilityai/sdxl-turbo": (_STABILITY, "71153311d3dbb46851df1931d3ca6e939de83304", "fp16"),
    "ByteDance/SDXL-Lightning": (_RAIL, "c9a24f48e1c025556787b0c58dd67a091ece2e44", None),
    "ByteDance/Hyper-SD": ("see its LICENSE.md", "07822d9cde7a6c34b8f35c169a87a9a2885fd929", None),
    "h1t/TCD-SDXL-LoRA": ("MIT", "ea69e290a201cbb9ac232be2d5c81ef6dc0fc3a2", None),
    SD15: ("CreativeML OpenRAIL-M", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "fp16"),
    "latent-consistency/lcm-lora-sdv1-5": (_RAIL, "cf2fced511dbe7e26c8d1d397e728fbab875db4b", None),
    SD35: (_STABILITY, "ceddf0a7fdf2064ea28e2213e3b84e4afa170a0f", None),
    "stabilityai/stable-diffusion-3.5-large-turbo": (_STABILITY, "ec07796fc06b096cc56de9762974a28f4c632eda", None),
    FLUX: ("FLUX.1-dev Non-Commercial", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21", None),
    "black-forest-labs/FLUX.1-schnell": ("Apache-2.0", "741f7c3ce8b383c54771c7003378a50191e9efe9", None),
}

# base: dtype, base_steps, base_guidance, batch_size, handover, pipeline_options
_BASES: dict[str, tuple[str, int, float, int, str, dict[str, Any]]] = {
    "emoji-base": ("float32", 20, 5.0, 10, "distilled-scheduler", {}),
    SDXL: ("float16", 50, 5.0, 1, "distilled-scheduler", {}),
    # The pipeline returns latents, so the image classifier of this repository is not needed
    SD15: ("float16", 50, 7.5, 4, "distilled-scheduler", {"safety_checker": None, "requires_safety_checker": False}),
    SD35: ("bfloat16", 40, 4.5, 1, "matched-sigma", {}),
    FLUX: ("bfloat16", 50, 3.5, 1, "matched-sigma", {}),
}

# Schedulers of distilled models: diffusers class and the settings that differ from the base's
_TRAILING, _UNSHIFTED = {"timestep_spacing": "trailing"}, {"shift": 1.0, "use_dynamic_shifting": False}
_LCM, _TCD = ("LCMScheduler", {}), ("TCDScheduler", {})
_EULER, _ANCESTRAL = ("EulerDiscreteScheduler", _TRAILING), ("EulerAncestralDiscreteScheduler", _TRAILING)
_DDIM = ("DDIMScheduler", _TRAILING | {"clip_sample": False, "set_alpha_to_one": False})
_FLOW, _UNSHIFTED_FLOW = (("FlowMatchEulerDiscreteScheduler", settings) for settings in ({}, _UNSHIFTED))

_DMD, _SCHNELL = {"timesteps": (999, 749, 499, 249)}, {"call": {"max_sequence_length": 256}}

# pair: base, distilled, file, scheduler, settings, paper_settings. "-lora" means a LoRA on the base.
_PAIRS: dict[str, tuple] = {
    "emoji-dmd": ("emoji-base", "emoji-dmd", "unet", _LCM, _DMD),
    "emoji-lcm": ("emoji-base", "emoji-lcm", "unet", _LCM),
    "emoji-turbo": ("emoji-base", "emoji-turbo", "unet", _ANCESTRAL),
    "emoji-lightning": ("emoji-base", "emoji-lightning", "unet", _EULER),
    "emoji-dmd-lora": ("emoji-base", "emoji-dmd", "lora", _LCM, _DMD),
    "emoji-lcm-lora": ("emoji-base", "emoji-lcm", "lora", _LCM),
    "emoji-turbo-lora": ("emoji-base", "emoji-turbo", "lora", _ANCESTRAL),
    "emoji-lightning-lora": ("emoji-base", "emoji-lightning", "lora", _EULER),
    "sdxl-dmd": (SDXL, "tianweiy/DMD2", "dmd2_sdxl_4step_unet_fp16.safetensors", _LCM, _DMD, {"timesteps": None}),
    "sdxl-lcm": (SDXL, "latent-consistency/lcm-sdxl", "", _LCM, {"guidance": 8.0}, {"guidance": 0.0}),
    "sdxl-turbo": (SDXL, "stabilityai/sdxl-turbo", "unet", _ANCESTRAL, {"size": (512, 512)}),
    "sdxl-lightning": (SDXL, "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_unet.safetensors", _EULER),
    "sdxl-dmd-lora": (SDXL, "tianweiy/DMD2", "dmd2_sdxl_4step_lora_fp16.safetensors", _LCM, _DMD),
    "sdxl-lcm-lora": (SDXL, "latent-consistency/lcm-lora-sdxl", LORA, _LCM, {"guidance": 1.0}),
    "sdxl-lightning-lora": (SDXL, "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors", _EULER),
    "sdxl-hyper-lora": (SDXL, "ByteDance/Hyper-SD", "Hyper-SDXL-4steps-lora.safetensors", _DDIM),
    "sdxl-tcd-lora": (SDXL, "h1t/TCD-SDXL-LoRA", LORA, _TCD),
    "sd15-lcm-lora": (SD15, "latent-consistency/lcm-lora-sdv1-5", LORA, _LCM, {"guidance": 1.0}),
    "sd15-hyper-lora": (SD15, "ByteDance/Hyper-SD", "Hyper-SD15-4steps-lora.safetensors", _DDIM),
    "sd35-turbo": (SD35, "stabilityai/stable-diffusion-3.5-large-turbo", "transformer", _FLOW),
    "flux-schnell": (FLUX, "black-forest-labs/FLUX.1-schnell", "transformer", _UNSHIFTED_FLOW, _SCHNELL),
}


def _spec(name, base, distilled, file, scheduler, own=None, paper_settings=None) -> Spec:
    dtype, *shared, pipeline_options = _BASES[base]
    settings = dict(zip(("base_steps", "base_guidance", "batch_size", "handover"), shared, strict=True)) | (own or {})
    licences, revisions, variants = zip(*(REPOS.get(repo, _EMBEDDED) for repo in (base, distilled)), strict=True)
    licence = licences[0] if licences[0] == licences[1] else f"{licences[0]} (base), {licences[1]} (distilled)"
    traits = (name.endswith("-lora"), dtype, pipeline_options, licence, revisions, variants)
    return Spec(name, base, distilled, file, *scheduler, settings, paper_settings or {}, *traits)


SPECS: dict[str, Spec] = {name: _spec(name, *row) for name, row in _PAIRS.items()}


def spec_of(name: str) -> Spec:
    """Return the pair of this name, or raise ValueError."""
    if name not in SPECS:
        near = difflib.get_close_matches(str(name), SPECS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"pair {name!r} is not known, there are {', '.join(SPECS)}{hint}")
    return SPECS[name]


def pairs() -> pd.DataFrame:
    """List the named pairs. `dtviz.pairs()` shows licence, kind ("embedded" or "hub") and whether the weights are here."""
    import pandas as pd

    from .load import local_folders

    table = pd.DataFrame([vars(spec) for spec in SPECS.values()]).rename(columns={"name": "pair"}).set_index("pair")
    table["kind"] = ["embedded" if spec.embedded else "hub" for spec in SPECS.values()]
    table["available"] = [None not in local_folders(spec) for spec in SPECS.values()]
    return table[["base", "distilled", "licence", "kind", "available"]]
