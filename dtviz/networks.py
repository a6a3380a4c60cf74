"""The networks of a pair: base and student, or one that plays both parts with an adapter; which is active, and where.

network(pipe.unet, "dmd2", "distilled") is pipe.unet
"""

from __future__ import annotations

from typing import Any

import torch

GUIDANCE_INPUTS = ("timestep_cond", "guidance")  # what `guidance_input` may give


def network(base: torch.nn.Module, student: torch.nn.Module | str, role: str) -> torch.nn.Module:
    """The one that plays this role, "base" or "distilled": one and the same where the student is an adapter."""
    return base if role == "base" or isinstance(student, str) else student


def embeds_guidance(denoiser: torch.nn.Module) -> bool:
    """Whether it takes its guidance scale as an input (LCM's UNet, FLUX.1-dev, SANA-Sprint) instead of two evaluations."""
    return _by_time(denoiser) or bool(denoiser.config.get("guidance_embeds"))


def guidance_input(pipe: Any, denoiser: torch.nn.Module, scale: float, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument that tells such a denoiser its guidance scale, one a sample of `like`, as its own pipeline makes it."""
    if _by_time(denoiser):  # Luo et al. 2023: w = scale - 1
        strength = torch.full((len(like),), scale - 1.0)
        embedding = pipe.get_guidance_scale_embedding(strength, embedding_dim=denoiser.config.time_cond_proj_dim)
        return {"timestep_cond": embedding.to(like)}
    scale *= denoiser.config.get("guidance_embeds_scale", 1.0)
    return {"guidance": torch.full((len(like),), scale, device=like.device, dtype=torch.float32)}


def _by_time(denoiser: torch.nn.Module) -> bool:
    return denoiser.config.get("time_cond_proj_dim") is not None


class Adapters:
    """Which LoRA adapters of one network are active: the caller's own stay on, the student's only for its steps."""

    def __init__(self, denoiser: torch.nn.Module, student: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self.before = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
        self.student, self.role = student, None

    def use(self, role: str) -> None:
        """Switch for `role`, if it is not its turn already."""
        if role == self.role:
            return
        self.role = role
        for layer, active, disabled in self.before:
            others = [] if disabled else [name for name in active if name != self.student]
            self._set(layer, [*others, self.student] if role == "distilled" else others)

    def restore(self) -> None:
        """As it was before the run."""
        for layer, active, disabled in self.before:
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)

    @staticmethod
    def _set(layer, names: list[str]) -> None:
        layer.enable_adapters(bool(names))
        if names:
            layer.set_adapter(names)


class Offload:
    """Which of two networks is on the accelerator: the one whose turn it is; the other waits in the host's memory."""

    def __init__(self, base: torch.nn.Module, student: torch.nn.Module, device: torch.device | None = None) -> None:
        self.networks, self.device, self.role = {"base": base, "distilled": student}, device or base.device, None

    def use(self, role: str) -> None:
        """Move both for `role`, if it is not its turn already; the other goes first, so that they never meet."""
        if role == self.role:
            return
        self.role = role
        for name, module in sorted(self.networks.items(), key=lambda item: item[0] == role):
            module.to(self.device if name == role else "cpu")

    def restore(self) -> None:
        """The base where the pipeline expects it."""
        self.use("base")


def denoiser(target: Any) -> torch.nn.Module:
    """The network of a pair (its base), of a pipeline, or the target itself.

    Raises:
        ValueError: it is none of these.
    """
    found = [target, *(getattr(target, name, None) for name in ("base", "unet", "transformer"))]
    for module in found:
        if isinstance(module, torch.nn.Module):
            return module
    raise ValueError(
        f"a {type(target).__name__} holds no denoiser: give a dtviz.Pair, a diffusers pipeline or a network"
    )
