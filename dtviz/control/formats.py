"""What other people's files call the parts of a control, and what they become under dtviz's names.

lora("lego", tensors, settings)               # kohya's, diffusers' or peft's LoRA factors
custom_diffusion("toy", tensors, base=unet)   # whole tuned weights, less their base's
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from ..controls import DELTA, DOWN, UP, Control, scaled, split
from ..networks import denoiser

KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
LDM = "model.diffusion_model."  # the denoiser in the original code of Stable Diffusion
OTHERS = ("text_encoder_2.", "text_encoder.", "text_encoder_3.", "vae.")
SHOWN = 4  # names in an error


def lora(name: str, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Control:
    """From factors under kohya's, diffusers' or peft's names; `settings` are peft's, {} where there are none.

    ValueError: there are other tensors among them, or none for the denoiser.
    """
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    alphas: Mapping[str, Any] = {key: tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
    factors: Mapping[str, torch.Tensor] = {key: tensor for key, tensor in tensors.items() if key not in alphas}
    if any(key.startswith(KOHYA) for key in tensors):
        factors, alphas = _from_kohya(tensors)
    ours, others = _parted(convert_unet_state_dict_to_peft(factors))
    ours = {re.sub(r"(\.lora_[AB])\.default\.", r"\1.", key): tensor for key, tensor in ours.items()}
    strange = [key for key in ours if not key.endswith((DOWN, UP))]
    if strange:
        raise ValueError(f"{len(strange)} of its tensors are no LoRA factors, such as {', '.join(strange[:SHOWN])}")
    if not ours:
        raise ValueError(f"none of it is for the denoiser, but {'; '.join(others) or 'for nothing at all'}")
    modules = {split(key)[0] for key in ours}
    given, _ = _parted(convert_unet_state_dict_to_peft(alphas))
    given = {key.removesuffix(".alpha").removesuffix(DOWN): float(alpha) for key, alpha in given.items()}
    if settings and not given:
        usual = {_bare(key): value for key, value in settings.items()}
        given = {module: _alpha(usual, module, ours[module + UP].shape[1]) for module in modules if module + UP in ours}
    part = "transformer" if any(key.startswith("transformer.") for key in factors) else "unet"
    return Control(name, "lora", scaled(ours, given), {}, others, part)


def _from_kohya(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Factors and alphas under diffusers' names, by diffusers' own conversion."""
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    blocks = SimpleNamespace(layers_per_block=2)  # of SD 1, 2 and XL; some files number their original blocks
    factors, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=blocks)
    if alphas is None:
        strange = [key for key in tensors if not key.startswith(KOHYA)]
        raise ValueError(f"{len(strange)} tensors among kohya's have other names, such as {', '.join(strange[:SHOWN])}")
    return factors, alphas


def _alpha(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """A module's alpha as peft finds it."""
    from peft.utils.other import get_pattern_key

    patterns = settings.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns.keys(), module), settings.get("lora_alpha", rank))
    return alpha * rank**0.5 if settings.get("use_rslora") else alpha  # alpha / sqrt(rank) instead of alpha / rank


def custom_diffusion(name: str, tensors: Mapping[str, torch.Tensor], base: Any) -> Control:
    """From whole tuned weights of attention layers, under diffusers' or the original code's names, less their base's.

    ValueError: there is no base, its weights do not fit, or a bias changes.
    """
    if base is None:
        raise ValueError(
            "it holds whole tuned weights: give base=, the pair, pipeline or denoiser that they were tuned from"
        )
    tuned, left_out = {}, Counter[str]()
    for key, tensor in tensors.items():
        if "custom_diffusion" in key:
            tuned[_bare(key).replace(".processor.", ".").replace("_custom_diffusion", "")] = tensor
        elif key.startswith(LDM):
            tuned[_from_ldm(key.removeprefix(LDM))] = tensor
        else:
            left_out[key.split(".")[0]] += 1
    own = denoiser(base).state_dict()
    weights = {key: own.get(key, own.get(key.replace(".weight", ".base_layer.weight"))) for key in tuned}
    strange = [key for key, tensor in tuned.items() if weights[key] is None or weights[key].shape != tensor.shape]
    if strange:
        raise ValueError(
            f"{len(strange)} of its weights do not fit those of base, such as {', '.join(strange[:SHOWN])}"
        )
    change = {key: tensor.float() - weights[key].detach().cpu().float() for key, tensor in tuned.items()}
    biases = [key for key, difference in change.items() if not key.endswith(DELTA) and difference.any()]
    if biases:
        raise ValueError(f"it changes {', '.join(biases[:SHOWN])}: only weights can be changed")
    change = {key: difference for key, difference in change.items() if key.endswith(DELTA)}
    return Control(name, "custom-diffusion", change, {}, _counted(left_out))


def _from_ldm(key: str) -> str:
    """An attention's name in the original code of SD 1 and 2 as diffusers has it, with two layers a block.

    >>> _from_ldm("output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight")
    'up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight'
    """
    if key.startswith("middle_block.1."):
        return key.replace("middle_block.1.", "mid_block.attentions.0.")
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.1\.(.+)", key)
    if not found:
        return key
    number = int(found[2]) - (found[1] == "input")
    return f"{'down' if found[1] == 'input' else 'up'}_blocks.{number // 3}.attentions.{number % 3}.{found[3]}"


def _bare(key: str) -> str:
    """A name without the denoiser's prefix."""
    return key.removeprefix("base_model.model.").removeprefix("unet.").removeprefix("transformer.")


def _parted(named: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What is the denoiser's, under its own names, and how much there is of each other part."""
    others = Counter(key.split(".")[0] for key in named if key.startswith(OTHERS))
    return {_bare(key): value for key, value in named.items() if not key.startswith(OTHERS)}, _counted(others)


def _counted(parts: Counter[str]) -> tuple[str, ...]:
    return tuple(f"{part}, {n} tensors" for part, n in sorted(parts.items()))
