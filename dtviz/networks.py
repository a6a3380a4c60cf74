"""The networks of a pair: base and student, or one that plays both parts with an adapter; which is active, and where.

network(pipe.unet, "dmd2", "distilled") is pipe.unet
"""

from __future__ import annotations

from typing import Any

import torch


def network(base: torch.nn.Module, student: torch.nn.Module | str, role: str) -> torch.nn.Module:
    """The one that plays this role, "base" or "distilled": one and the same where the student is an adapter."""
    return base if role == "base" or isinstance(student, str) else student


def check_student(base: torch.nn.Module, student: Any, *, name: str) -> None:
    """Refuse what cannot be a student of this base; `name` is the argument that it was given as.

    Raises:
        ValueError: no denoiser, no adapter that is loaded on the base, or one of other latents.
    """
    if isinstance(student, str):
        adapters = list(getattr(base, "peft_config", {}))
        if student not in adapters:
            raise ValueError(f"{name}={student!r} is not an adapter of the base denoiser, which has {adapters}")
    elif not isinstance(student, torch.nn.Module):
        raise ValueError(f"{name} is a {type(student).__name__}: give a denoiser module or an adapter's name")
    elif student.config.in_channels != base.config.in_channels:
        channels = student.config.in_channels, base.config.in_channels
        raise ValueError(f"{name} takes {channels[0]} latent channels, the base {channels[1]}: not a pair")


def embeds_guidance(denoiser: torch.nn.Module) -> bool:
    """Whether it takes its guidance scale as an input (LCM) instead of two evaluations."""
    return getattr(denoiser.config, "time_cond_proj_dim", None) is not None


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

    def __init__(self, base: torch.nn.Module, student: torch.nn.Module) -> None:
        self.networks, self.device, self.role = {"base": base, "distilled": student}, base.device, None

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
