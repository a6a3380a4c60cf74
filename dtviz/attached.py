"""One control on one network: put on, scaled, taken off; nothing of it is left behind.

with attached(unet, control) as on:
    on.scale(2.0)
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional as F

from .controls import DELTA, DOWN, UP, Control, scaled, split

SHOWN = 3  # modules named in an error


class Attached:
    """A control on a network, off until it is given a scale.

    Attributes:
        network: the denoiser.
        adapter: the name that its LoRA factors have there, "" without any.
    """

    def __init__(self, network: torch.nn.Module, control: Control) -> None:
        self.network, self.strength, self.adapter = network, 0.0, ""
        layers = _matched(network, control)
        factors = {f"unet.{key}": tensor for key, tensor in control.tensors.items() if split(key)[1] != DELTA}
        deltas = {module: control.tensors[module + DELTA] for module in layers if module + DELTA in control.tensors}
        self._before = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in _lora(network)]
        self._trained = [(p, p.requires_grad) for layer, *_ in self._before for p in layer.parameters()]
        self._changed: list[Any] = []
        if factors:
            self._inject(factors)
        self._hooks = [layers[module].register_forward_hook(self._adding(delta)) for module, delta in deltas.items()]

    def scale(self, scale: float) -> None:
        """How many times its change is added from now on; 0 leaves the network's own output."""
        if scale == self.strength:
            return
        self.strength = scale
        for layer in self._changed:
            layer.set_scale(self.adapter, scale)

    def remove(self) -> None:
        """The network as it was: its modules, its other adapters, which of them are active."""
        for hook in self._hooks:
            hook.remove()
        if not self.adapter:
            return
        for layer, active, disabled in self._before:
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        ours = set(self._changed) - {layer for layer, *_ in self._before}
        for name, layer in [(name, module) for name, module in self.network.named_modules() if module in ours]:
            self.network.set_submodule(name, layer.base_layer)
        self.network.delete_adapters(self.adapter)
        for parameter, wanted in self._trained:
            parameter.requires_grad_(wanted)

    def _inject(self, factors: Mapping[str, torch.Tensor]) -> None:
        """Through diffusers' loader, beside what is loaded already: each layer's active adapters stay active."""
        taken = getattr(self.network, "peft_config", {})
        self.adapter = next(name for i in itertools.count() if (name := f"control_{i}") not in taken)
        like = next(self.network.parameters())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what we want
            self.network.load_lora_adapter(
                {key: tensor.to(like) for key, tensor in factors.items()},
                prefix="unet",
                adapter_name=self.adapter,
                low_cpu_mem_usage=True,  # draws no random numbers to begin with
            )
        self._changed = [layer for layer in _lora(self.network) if self.adapter in layer.lora_A]
        for layer, active, disabled in self._before:
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        others = {layer: [] if disabled else active for layer, active, disabled in self._before}
        for layer in self._changed:
            layer.enable_adapters(True)
            layer.set_adapter([*others.get(layer, []), self.adapter], inference_mode=True)
            layer.set_scale(self.adapter, 0.0)

    def _adding(self, delta: torch.Tensor):
        """A hook that adds D x, scaled, to a linear layer's W x."""

        def hook(layer, inputs, output):
            nonlocal delta
            if self.strength == 0:
                return None
            delta = delta.to(inputs[0])  # once, and again only when the network moved
            return output + self.strength * F.linear(inputs[0], delta)

        return hook


@contextlib.contextmanager
def attached(network: torch.nn.Module, control: Control) -> Iterator[Attached]:
    """A control on a network, at scale 0, until the block ends.

    ValueError: the control changes modules that the network lacks, or that have another shape there.
    """
    one = Attached(network, control)
    try:
        yield one
    finally:
        one.remove()


def from_adapter(
    denoiser: torch.nn.Module, adapter: str, *, name: str, kind: str = "lora", facts: Mapping[str, Any] | None = None
) -> Control:
    """A LoRA that is loaded on a denoiser, or was trained there by peft, as a control.

    ValueError: there is no adapter of this name.
    """
    from peft.utils import get_peft_model_state_dict

    known = getattr(denoiser, "peft_config", {})
    if adapter not in known:
        raise ValueError(f"adapter={adapter!r} is not loaded on the {type(denoiser).__name__}, which has {list(known)}")
    tensors = get_peft_model_state_dict(denoiser, adapter_name=adapter)
    layers = {name: m for name, m in denoiser.named_modules() if adapter in getattr(m, "lora_alpha", {})}
    alphas = {  # rsLoRA scales by alpha / sqrt(rank)
        name: layer.lora_alpha[adapter] * (layer.r[adapter] ** 0.5 if layer.use_rslora[adapter] else 1)
        for name, layer in layers.items()
    }
    kept = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
    part = "unet" if isinstance(denoiser, UNet2DConditionModel) else "transformer"
    return Control(name, kind, scaled(kept, alphas), facts or {}, part=part)


def _lora(network: torch.nn.Module) -> list[Any]:
    """The layers that peft has wrapped."""
    from peft.tuners.lora import LoraLayer

    return [module for module in network.modules() if isinstance(module, LoraLayer)]


def _matched(network: torch.nn.Module, control: Control) -> dict[str, torch.nn.Module]:
    """The control's modules in the network, without what peft has wrapped around them."""
    modules = dict(network.named_modules())
    whose = f"control {control.name!r} is not for this {type(network).__name__}"
    gone = [name for name in control.modules if name not in modules]
    if gone:
        there = [name for name, module in modules.items() if isinstance(module, torch.nn.Linear)][:SHOWN]
        raise ValueError(
            f"{whose}: {len(gone)} of its {len(control.modules)} modules are not there, such as {', '.join(gone[:SHOWN])}; "
            f"the network has {', '.join(there)} and so on"
        )
    layers = {name: modules[name] for name in control.modules}
    layers = {name: getattr(layer, "base_layer", layer) for name, layer in layers.items()}
    for name, layer in layers.items():
        full = name + DELTA in control.tensors
        if not isinstance(layer, torch.nn.Linear if full else torch.nn.Linear | torch.nn.Conv2d):
            raise ValueError(f"{whose}: {name} is a {type(layer).__name__} there, which takes no such change")
        shape = _shape(control, name)
        if shape != tuple(layer.weight.shape):
            raise ValueError(
                f"{whose}: it changes {name} by {shape}, whose weight is {tuple(layer.weight.shape)} there"
            )
    return layers


def _shape(control: Control, module: str) -> tuple[int, ...]:
    """Of what the control adds to this module's weight."""
    if module + DELTA in control.tensors:
        return tuple(control.tensors[module + DELTA].shape)
    return (len(control.tensors[module + UP]), *control.tensors[module + DOWN].shape[1:])
