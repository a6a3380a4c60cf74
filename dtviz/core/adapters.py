"""Let one network be the base and, with its distillation LoRA, the distilled model.

switch = AdapterSwitch(denoiser, "dmd2", fuse=True)
with switch.active() as role, role("distilled"):
    denoiser(...)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin

METHODS = [name for name in vars(PeftAdapterMixin) if not name.startswith("_")]  # set_adapters, fuse_lora, ...
SCALES = (
    "cross_attention_kwargs",
    "joint_attention_kwargs",
    "attention_kwargs",
)  # arguments that may hold a LoRA scale
CPU_MEMORY = 2**32  # bytes that are taken to be free without a GPU


@contextmanager
def replaced(values: dict[str, Any], **others: Any) -> Iterator[None]:
    """Set values inside the block. What was there before, or was missing, is restored."""
    own = {name: values[name] for name in others if name in values}
    try:
        values.update(others)
        yield
    finally:
        values.update(own)
        for name in others.keys() - own.keys():
            values.pop(name, None)


class AdapterSwitch:
    """Two roles for one network: "base", and "distilled" with the distillation LoRA. Other adapters act in both.

    A LoRA layer that is fused gives way to the plain layer inside it, whose weight becomes W + s B A for the role. So the
    network is as quick as one without adapters. The same objects are put back, so nothing is rounded.

    Args:
        denoiser: the base, which has the adapter named `distilled`.
        fuse: fuse layers that have a plain LoRA. Left to peft are other kinds, offloaded networks, and all if the fused
            weights would fill more than half of the free memory. Layers that the caller has fused are always fused here.
    """

    def __init__(self, denoiser: torch.nn.Module, distilled: str, *, fuse: bool) -> None:
        self.denoiser, self.distilled, self.fuse = getattr(denoiser, "_orig_mod", denoiser), distilled, fuse
        self._fused: list[_FusedLayer] = []
        self._left: list[
            tuple[dict, dict[str, dict]]
        ] = []  # of each layer left to peft: its attributes, those of a role
        self._taken_out, self._current = False, None

    @contextmanager
    def active(self) -> Iterator[Callable]:
        """Take the fused layers out of the network inside the block, and yield `role`.

        diffusers' adapter methods still work there.
        """
        try:
            self._take_out()
            methods = {name: self._with_all_layers(getattr(self.denoiser, name)) for name in METHODS}
            with replaced(vars(self.denoiser), **methods):
                yield self.role
        finally:
            self._put_back()

    @contextmanager
    def role(self, role: str, scale: float = 1.0) -> Iterator[None]:
        """Let the network have this role inside the block. `scale` multiplies every LoRA that the caller has not fused."""
        if self.distilled not in (names := list(getattr(self.denoiser, "peft_config", {}))):
            raise ValueError(f"distilled={self.distilled!r} is no longer an adapter of the base, which has {names}")
        if self._current != (role, scale):
            with torch.no_grad():
                for layer in self._fused:
                    layer.use(role, scale)
            self._current = role, scale
        before = [(attributes, {name: attributes[name] for name in roles[role]}) for attributes, roles in self._left]
        try:
            for attributes, roles in self._left:
                attributes.update(roles[role])
            yield
        finally:
            for attributes, values in before:
                attributes.update(values)

    def _with_all_layers(self, method: Callable) -> Callable:
        @functools.wraps(method)
        def call(*args, **kwargs):
            if not self._taken_out:  # one method calls another
                return method(*args, **kwargs)
            self._put_back()
            try:
                return method(*args, **kwargs)
            finally:
                self._take_out()

        return call

    def _take_out(self) -> None:
        layers, offloaded = _adapter_layers(self.denoiser)
        if not layers and self.distilled in getattr(self.denoiser, "peft_config", {}):
            raise ValueError(
                f"distilled={self.distilled!r} is in use by another block around this one: they do not nest"
            )
        fuse, roles_of = self.fuse and not offloaded and _fits([layer for *_, layer in layers]), cache(self._roles)
        for parent, name, layer in layers:
            merged = tuple(layer.merged_adapters)
            roles = roles_of(() if layer.disable_adapters else tuple(layer.active_adapters), merged)
            factors = _factors(layer, roles) if fuse or (merged and not offloaded) else None
            if factors is not None:
                self._fused.append(_FusedLayer(parent, name, layer, factors, roles, merged))
            elif merged:
                raise ValueError(
                    f"distilled={self.distilled!r}: {', '.join(merged)} is fused into a {type(layer).__name__} layer, which "
                    "cannot switch it off exactly: call unfuse_lora() before the block"
                )
            else:
                settings = {role: {"_active_adapter": on, "_disable_adapters": not on} for role, on in roles.items()}
                self._left.append((vars(layer), settings))
        for layer in self._fused:
            layer.parent[layer.name] = layer.base
        self._taken_out = True

    def _roles(self, active: tuple[str, ...], merged: tuple[str, ...]) -> dict[str, list[str]]:
        """Return the adapters of each role, of a layer with these active and fused ones."""
        others = [one for one in dict.fromkeys((*active, *merged)) if one != self.distilled]
        return {"base": others, "distilled": [*others, self.distilled]}

    def _put_back(self) -> None:
        for layer in self._fused:
            layer.parent[layer.name] = layer.layer
            layer.parameters["weight"] = layer.weight
        self._taken_out, self._current, self._fused, self._left = False, None, [], []


@dataclass(eq=False)
class _FusedLayer:
    """The plain layer inside a LoRA layer, with a weight for each role."""

    parent: dict[str, torch.nn.Module]  # the modules among which the LoRA layer is
    name: str
    layer: torch.nn.Module
    factors: list[tuple[str, torch.Tensor, torch.Tensor]]  # name, down and up of each adapter
    roles: dict[str, list[str]]  # the adapters of each role
    merged: tuple[str, ...]  # those that the weight has already

    def __post_init__(self) -> None:
        self.base = self.layer._modules["base_layer"]
        self.parameters, self.weights = self.base._parameters, {}
        self.weight = self.parameters["weight"]

    def use(self, role: str, scale: float) -> None:
        weight = self.weights.get((role, scale))
        if weight is None:
            weight = self.weights[role, scale] = self._fuse(self.roles[role], scale)
        self.parameters["weight"] = weight

    def _fuse(self, names: list[str], scale: float) -> torch.Tensor:
        weight = self.weight
        for name, down, up in self.factors:
            if (name in names) == (name in self.merged):
                continue
            strength = self.layer.scaling[name] * (-1 if name in self.merged else scale)
            if weight.ndim == 2:
                weight = torch.addmm(weight, up, down, alpha=strength)
            else:  # a convolution
                change = torch.addmm(weight.flatten(1), up.flatten(1), down.flatten(1), alpha=strength)
                weight = change.view(weight.shape)
        return weight


def lora_scale(arguments: dict[str, Any]) -> float:
    """Return the factor of all LoRAs that a denoiser call asks for."""
    return next((arguments[name].get("scale", 1.0) for name in SCALES if arguments.get(name)), 1.0)


def _adapter_layers(denoiser: torch.nn.Module) -> tuple[list[tuple[dict, str, Any]], bool]:
    """Return each adapter layer with its parent's modules and its name there, and whether the network is offloaded."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers, modules, offloaded = [], [denoiser], False
    for module in modules:  # grows; `Module.modules` would enter the adapters, which are most of the modules
        offloaded |= "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module)
        for name, child in module._modules.items():
            if isinstance(child, BaseTunerLayer):
                layers.append((module._modules, name, child))
            elif child is not None:
                modules.append(child)
    return layers, offloaded


def _fits(layers: list) -> bool:
    """Tell whether a second copy of the layers' weights fills less than half of the free memory. Warn if not."""
    weights = [layer._modules["base_layer"]._parameters.get("weight") for layer in layers]
    weights = [weight for weight in weights if weight is not None]
    devices, needed = {weight.device for weight in weights}, sum(weight.nbytes for weight in weights)
    free = min((torch.cuda.mem_get_info(device)[0] for device in devices if device.type == "cuda"), default=CPU_MEMORY)
    if needed > free / 2:
        sizes = f"{needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB that are free"
        warnings.warn(f"fuse=True would copy {sizes}: the LoRA is left to peft, as with fuse=False", stacklevel=2)
    return needed <= free / 2


def _factors(layer: Any, roles: dict[str, list[str]]) -> list[tuple[str, torch.Tensor, torch.Tensor]] | None:
    """Return name, down and up of each adapter, or None if the layer is no plain LoRA or more happens in it."""
    from peft.tuners import lora

    modules = layer._modules  # quicker than attributes, and SDXL has 800 layers
    base = modules["base_layer"]
    if type(layer) not in (lora.Linear, lora.Conv2d) or type(base) not in (torch.nn.Linear, torch.nn.Conv2d):
        return None
    special = vars(base).get("groups", 1) != 1 or vars(layer).get("fan_in_fan_out", False)
    special |= "forward" in vars(base) or "forward" in vars(layer)  # the caller's own, and so are hooks
    special |= bool(layer._forward_hooks or layer._forward_pre_hooks)
    downs, ups, weight, factors = modules["lora_A"]._modules, modules["lora_B"]._modules, base._parameters["weight"], []
    for name in roles["distilled"]:
        if name in downs:
            down, up = downs[name]._parameters["weight"], ups[name]._parameters["weight"]
            special |= name in layer.lora_variant or layer.lora_bias[name] or down.dtype != weight.dtype
            special |= not down.device == up.device == weight.device
            factors.append((name, down, up))
    return None if special else factors
