"""Let one network be the base and, with its distillation LoRA, the distilled model.

switch = AdapterSwitch(denoiser, "dmd2", fuse=True)
with switch.active(), switch.role("distilled"):
    denoiser(...)
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin

METHODS = [name for name in vars(PeftAdapterMixin) if not name.startswith("_")]  # set_adapters, fuse_lora, ...
SCALES = (
    "cross_attention_kwargs",
    "joint_attention_kwargs",
    "attention_kwargs",
)  # arguments that may hold a LoRA scale


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
        self._taken_out = False

    @contextmanager
    def active(self) -> Iterator[None]:
        """Take the fused layers out of the network inside the block. diffusers' adapter methods still work there."""
        try:
            self._take_out()
            methods = {name: self._with_all_layers(getattr(self.denoiser, name)) for name in METHODS}
            with replaced(vars(self.denoiser), **methods):
                yield
        finally:
            self._put_back()

    @contextmanager
    def role(self, role: str, scale: float = 1.0) -> Iterator[None]:
        """Let the network have this role inside the block. `scale` multiplies every LoRA that the caller has not fused."""
        if self.distilled not in (names := list(getattr(self.denoiser, "peft_config", {}))):
            raise ValueError(f"distilled={self.distilled!r} is no longer an adapter of the base, which has {names}")
        for layer in self._fused:
            layer.use(role, scale)
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
        fuse = self.fuse and not offloaded and _fits([layer for *_, layer in layers])
        for parent, name, layer in layers:
            merged, active = layer.merged_adapters, [] if layer.disable_adapters else layer.active_adapters
            others = [one for one in dict.fromkeys([*active, *merged]) if one != self.distilled]
            names = {"base": others, "distilled": [*others, self.distilled]}
            factors = _factors(layer, {*names["distilled"], *merged}) if fuse or (merged and not offloaded) else None
            if factors is not None:
                signs = {
                    role: {one: 1 for one in on if one not in merged} | {one: -1 for one in merged if one not in on}
                    for role, on in names.items()
                }
                self._fused.append(_FusedLayer(parent, name, layer, factors, signs))
            elif merged:
                raise ValueError(
                    f"distilled={self.distilled!r}: {', '.join(merged)} is fused into a {type(layer).__name__} layer, which "
                    "cannot switch it off exactly: call unfuse_lora() before the block"
                )
            else:
                roles = {role: {"_active_adapter": on, "_disable_adapters": not on} for role, on in names.items()}
                self._left.append((vars(layer), roles))
        for layer in self._fused:
            layer.parent[layer.name] = layer.base
        self._taken_out = True

    def _put_back(self) -> None:
        for layer in self._fused:
            layer.parent[layer.name] = layer.layer
            layer.parameters["weight"] = layer.weight
        self._taken_out, self._fused, self._left = False, [], []


class _FusedLayer:
    """The plain layer inside a LoRA layer, with a weight for each role."""

    def __init__(self, parent: dict, name: str, layer: Any, factors: dict, signs: dict[str, dict[str, int]]) -> None:
        self.parent, self.name, self.layer, self.base = parent, name, layer, layer.get_base_layer()
        self.parameters, self.factors, self.signs = self.base._parameters, factors, signs
        self.weight = self.parameters["weight"]
        self.weights: dict[tuple[str, float], torch.Tensor] = {}

    def use(self, role: str, scale: float) -> None:
        if (role, scale) not in self.weights:
            self.weights[role, scale] = self._fuse(role, scale)
        self.parameters["weight"] = self.weights[role, scale]

    @torch.no_grad()
    def _fuse(self, role: str, scale: float) -> torch.Tensor:
        weight = self.weight
        for name, sign in self.signs[role].items():
            if name in self.factors:
                down, up = (factor if factor.ndim == 2 else factor.flatten(1) for factor in self.factors[name])
                flat = weight if weight.ndim == 2 else weight.flatten(1)
                strength = self.layer.scaling[name] * (scale if sign > 0 else -1)
                weight = torch.addmm(flat, up, down, alpha=strength).view(self.weight.shape)
        return weight if weight is self.weight else torch.nn.Parameter(weight, requires_grad=False)


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
    weights = [weight for layer in layers if (weight := getattr(layer.get_base_layer(), "weight", None)) is not None]
    needed, device = sum(weight.nbytes for weight in weights), weights[0].device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**32
    if needed > free / 2:
        sizes = f"{needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB that are free"
        warnings.warn(f"fuse=True would copy {sizes}: the LoRA is left to peft, as with fuse=False", stacklevel=2)
    return needed <= free / 2


def _factors(layer: Any, names: set[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]] | None:
    """Return down and up of these adapters, or None if the layer is no plain LoRA or more happens in it."""
    from peft.tuners import lora

    base = layer.base_layer
    if type(layer) not in (lora.Linear, lora.Conv2d) or type(base) not in (torch.nn.Linear, torch.nn.Conv2d):
        return None
    names = [name for name in names if name in layer.lora_A]
    special = any(name in layer.lora_variant or layer.lora_bias[name] for name in names)
    special |= getattr(base, "groups", 1) != 1 or getattr(layer, "fan_in_fan_out", False)
    special |= bool(layer._forward_hooks or layer._forward_pre_hooks)  # the caller's
    parts = [base, *(factors[name] for name in names for factors in (layer.lora_A, layer.lora_B))]
    special |= any("forward" in vars(part) for part in (layer, *parts))
    if special or len({(part.weight.dtype, part.weight.device) for part in parts}) > 1:
        return None
    return {name: (layer.lora_A[name].weight, layer.lora_B[name].weight) for name in names}
