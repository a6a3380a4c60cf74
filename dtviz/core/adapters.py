"""Let one network be the base and, with its distillation LoRA, the distilled model."""

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

METHODS = re.compile(r"(?!_)\w*(lora|adapter|attn_procs)\w*")  # diffusers' methods that see or change adapters
CPU_MEMORY = math.inf  # only a GPU's memory is asked for


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
            weights would fill more than half of a GPU's free memory. Layers that the caller has fused are always fused here.
    """

    def __init__(self, denoiser: torch.nn.Module, distilled: str, *, fuse: bool) -> None:
        self.denoiser, self.distilled, self.fuse = getattr(denoiser, "_orig_mod", denoiser), distilled, fuse
        self._layers: list[_FusedLayer | _PeftLayer] = []
        self._current: tuple[str, float] | None = None  # the role of the layers, and their scale

    @contextmanager
    def active(self, pipe: Any = None) -> Iterator[Callable]:
        """Yield `use`. Adapter methods of network and pipeline work inside the block. All is restored on every exit."""
        if "set_adapters" in vars(self.denoiser):
            raise ValueError(f"distilled={self.distilled!r} is in use by a block around this one: they do not nest")
        try:
            self._begin()
            with ExitStack() as stack:
                for owner in [self.denoiser] + [pipe] * (pipe is not None):
                    kind, values = type(owner), vars(owner)
                    names = [name for name in filter(METHODS.fullmatch, dir(kind)) if callable(getattr(kind, name))]
                    methods = {name: self._on_own_layers(getattr(owner, name)) for name in names}
                    stack.enter_context(replaced(values, **methods))
                yield self.use
        finally:
            self._end()

    def use(self, role: str, scale: float = 1.0) -> None:
        """Choose the role of the coming calls. `scale` multiplies every LoRA that the caller has not fused."""
        if self.distilled not in (names := list(getattr(self.denoiser, "peft_config", {}))):
            raise ValueError(f"distilled={self.distilled!r} is no longer an adapter of the base, which has {names}")
        if not self._layers:  # the method that was called last was refused, or deleted and loaded adapters
            self._begin()
        if self._current != (role, scale):
            with torch.no_grad():
                for layer in self._layers:
                    layer.use(role, scale)
            self._current = role, scale

    def _on_own_layers(self, method: Callable) -> Callable:
        """Return a method that sees the caller's layers and settings."""

        @functools.wraps(method)
        def call(*args, **kwargs):
            if not self._layers:  # one method calls another
                return method(*args, **kwargs)
            self._end()
            try:
                return method(*args, **kwargs)
            finally:
                self._begin()

        return call

    def _begin(self) -> None:
        if self.distilled not in getattr(self.denoiser, "peft_config", {}):
            return  # deleted: `use` refuses it
        (found, offloaded), layers = _adapter_layers(self.denoiser), []

        @functools.cache  # of a layer with these active and fused adapters
        def adapters_of_roles(active: tuple[str, ...], merged: tuple[str, ...]) -> dict[str, list[str]]:
            others = [one for one in dict.fromkeys((*active, *merged)) if one != self.distilled]
            return {"base": others, "distilled": [*others, self.distilled]}

        for parent, name, layer in found:
            merged = tuple(layer.merged_adapters)
            roles = adapters_of_roles(() if layer.disable_adapters else tuple(layer.active_adapters), merged)
            factors = _factors(layer, roles["distilled"]) if (self.fuse or merged) and not offloaded else None
            if merged and factors is None:
                problem = f"{', '.join(merged)} is fused into a {type(layer).__name__} layer, which cannot undo it"
                raise ValueError(f"distilled={self.distilled!r}: {problem}: call unfuse_lora() before the block")
            left = factors is None
            layers.append(_PeftLayer(layer, roles) if left else _FusedLayer(parent, name, layer, factors, roles))
        if self.fuse and not _fit([layer for layer in layers if isinstance(layer, _FusedLayer)]):
            self.fuse = False
            return self._begin()
        self._layers = layers
        self.use("base")

    def _end(self) -> None:
        for layer in self._layers:
            layer.restore()
        self._layers, self._current = [], None


class _PeftLayer:
    """A layer whose adapters peft adds to its output."""

    def __init__(self, layer: torch.nn.Module, roles: dict[str, list[str]]) -> None:
        self.values, self.roles = vars(layer), roles
        self.own = {name: self.values[name] for name in ("_active_adapter", "_disable_adapters")}

    def use(self, role: str, _: float) -> None:
        self.values.update(_active_adapter=self.roles[role], _disable_adapters=not self.roles[role])

    def restore(self) -> None:
        self.values.update(self.own)


class _FusedLayer:
    """A LoRA layer, replaced among its parent's modules by the plain layer inside it."""

    def __init__(self, parent: dict[str, Any], name: str, layer: Any, factors: list[tuple], roles: dict) -> None:
        self.parent, self.name, self.layer, self.factors, self.roles = parent, name, layer, factors, roles
        self.base, self.weights = layer._modules["base_layer"], {}
        self.parameters, self.weight = self.base._parameters, self.base._parameters["weight"]

    def use(self, role: str, scale: float) -> None:
        if role not in self.weights or self.weights[role][0] != scale:  # one a role, however often the scale changes
            self.weights[role] = scale, self._fuse(role, scale)
        self.parent[self.name], self.parameters["weight"] = self.base, self.weights[role][1]

    def changes(self, role: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Return the adapters to add to the weight for a role, and those to take out of it that the caller has fused."""
        names, merged = self.roles[role], self.layer.merged_adapters
        return [factor for factor in self.factors if (factor[0] in names) != (factor[0] in merged)]

    def _fuse(self, role: str, scale: float) -> torch.Tensor:
        weight, merged = self.weight, self.layer.merged_adapters
        for name, down, up in self.changes(role):
            strength = self.layer.scaling[name] * (-1 if name in merged else scale)
            weight = torch.addmm(weight.flatten(1), up, down, alpha=strength).view(weight.shape)
        return weight

    def restore(self) -> None:
        self.parent[self.name], self.parameters["weight"] = self.layer, self.weight


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


def _fit(layers: list[_FusedLayer]) -> bool:
    """Tell whether the fused weights of all roles fill less than half of a GPU's free memory. Warn if not."""
    needed = sum(layer.weight.nbytes * sum(map(bool, map(layer.changes, layer.roles))) for layer in layers)
    gpus = {layer.weight.device for layer in layers if layer.weight.is_cuda}
    free = min((torch.cuda.mem_get_info(gpu)[0] for gpu in gpus), default=CPU_MEMORY)
    if needed > free / 2:
        copies = f"{needed / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB that are free"
        warnings.warn(f"fuse=True would copy {copies}: the LoRA is left to peft, as with fuse=False", stacklevel=2)
    return needed <= free / 2


def _factors(layer: Any, names: list[str]) -> list[tuple[str, torch.Tensor, torch.Tensor]] | None:
    """Return name, down and up of each adapter, or None if the layer is no plain LoRA or more happens in it."""
    from peft.tuners import lora

    modules, own = layer._modules, vars(layer)  # quicker than attributes, and SDXL has 800 layers
    base = modules["base_layer"]
    if {lora.Linear: torch.nn.Linear, lora.Conv2d: torch.nn.Conv2d}.get(type(layer)) is not type(base):
        return None
    special = vars(base).get("groups", 1) != 1 or own.get("fan_in_fan_out", False)
    # the caller's own, as hooks are
    special |= "forward" in vars(base) or "forward" in own or bool(own["_forward_hooks"] or own["_forward_pre_hooks"])
    downs, ups, weight, factors = modules["lora_A"]._modules, modules["lora_B"]._modules, base._parameters["weight"], []
    for name in names:
        if name in downs:
            down, up = downs[name]._parameters["weight"], ups[name]._parameters["weight"]
            special |= name in own["lora_variant"] or own["lora_bias"][name] or down.dtype != weight.dtype
            special |= not down.device == up.device == weight.device
            factors.append((name, down.flatten(1), up.flatten(1)))
    return None if special else factors
