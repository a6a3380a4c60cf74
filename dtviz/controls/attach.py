"""Attach controls to networks while a block lasts. Forward hooks compute (W + s D) x = W x + s D x. No weight is written.

with dtviz.controls.attach(pair, smile.at(2.0, segment="base"), age.at(0.5)) as attached:
    trace = dtviz.generate(pair, "face", method="hybrid", on_call=attached.on_call)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from torch.nn import functional as F

from ..core.denoisers import denoiser_of, network
from ..core.handover import DenoiserCall
from ..core.pair import Pair
from .control import DOWN, SHOWN, UP, Applied, Control

ROLES = ("base", "distilled")


@contextmanager
def attach(target: Any, *controls: Control | Applied, scale: float = 1.0) -> Iterator[Attached]:
    """Attach controls for the length of the block. Their changes add up.

    Args:
        target: a `Pair`, a diffusers pipeline or a denoiser. Of a pair both networks, or that of the control's segment.
        controls: a `Control` is on at `scale`. One of `Control.at(scale, segment=..., window=...)` has its own scale; with a
            segment or window it is off until `Attached.on_call` switches it on, and needs a pair as target.
        scale: factor of the change of each plain `Control`. Negative turns a slider the other way.
    """
    attached = Attached([one if isinstance(one, Applied) else Applied(one, scale) for one in controls])
    with ExitStack() as stack:
        for applied, hooks in zip(attached.controls, attached.hooks, strict=True):
            always = applied.segment == "both" and applied.window is None
            networks, name = [target], applied.control.name
            if isinstance(target, Pair):
                roles = ROLES if applied.segment == "both" else (applied.segment,)
                networks = dict.fromkeys(network(target.base, target.distilled, role) for role in roles)
            elif not always:
                raise ValueError(f"control {name!r}: a segment or window needs a dtviz.Pair as target")
            for denoiser in map(denoiser_of, networks):
                hooks.append(LayerHooks(denoiser, applied.control, stack))
                hooks[-1].scale = applied.scale if always else 0.0
            if not any(tensor.any() for key, tensor in applied.control.tensors.items() if key.endswith(UP)):
                raise ValueError(f"control {name!r} changes nothing: its weights are 0, is it untrained?")
        yield attached


class Attached:
    """The controls of an `attach` block. For each: its `LayerHooks`, one a network, and the calls of each role it was on in."""

    def __init__(self, controls: list[Applied]) -> None:
        self.controls = controls
        self.hooks: list[list[LayerHooks]] = [[] for _ in controls]
        self.calls: list[Counter[str]] = [Counter() for _ in controls]  # of the latest batch

    def on_call(self, call: DenoiserCall, x0: torch.Tensor | None = None) -> None:
        """Set the strength of each control for a denoiser call. For `generate(on_call=...)`."""
        if call.index == 0:
            self.calls = [Counter() for _ in self.controls]
        for applied, hooks, calls in zip(self.controls, self.hooks, self.calls, strict=True):
            on = applied.on(call.role, 0.0 if applied.window is None else call.sigma)
            calls[call.role] += on
            for one in hooks:
                one.scale = applied.scale if on else 0.0

    def facts(self) -> list[dict[str, Any]]:
        """Return name, fingerprint, scale, segment, window and calls of each control, JSON-compatible."""
        return [one.facts() | {"calls": dict(calls)} for one, calls in zip(self.controls, self.calls, strict=True)]


class LayerHooks:
    """A control on one network: a forward hook on each changed layer, until `stack` is closed. Off at scale 0.

    `tensors` are cast to the layer's input when used. A `Parameter` in training is not cast.
    """

    def __init__(self, denoiser: torch.nn.Module, control: Control, stack: ExitStack) -> None:
        self.scale, self.tensors, self.layers = 0.0, dict(control.tensors), _layers(denoiser, control)
        for name, layer in self.layers.items():
            stack.enter_context(layer.register_forward_hook(partial(self._add, name)))

    def _add(self, module: str, layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        if self.scale == 0:
            return None
        keys = (module + DOWN, module + UP)
        if not isinstance(self.tensors[keys[0]], torch.nn.Parameter):
            self.tensors |= {key: self.tensors[key].to(inputs[0]) for key in keys}
        down, up = (self.tensors[key] for key in keys)
        x = inputs[0].to(down.dtype)
        if isinstance(layer, torch.nn.Linear):
            change = F.linear(F.linear(x, down), up)
        else:
            change = F.conv2d(layer._conv_forward(x, down, None), up)
        return (output + self.scale * change).to(output.dtype)


def _layers(denoiser: torch.nn.Module, control: Control) -> dict[str, torch.nn.Module]:
    """Return the layers that a control changes, by its own module names, after checking that they fit."""
    modules = dict(denoiser.named_modules())
    if any(module._compiled_call_impl is not None for module in modules.values()) or "_orig_mod" in modules:
        raise ValueError("the network is compiled, which skips hooks: attach to one that torch.compile has not seen")
    flat = Counter(name.replace(".", "_") for name in modules)  # kohya's files have underscores for dots
    names = {name.replace(".", "_"): name for name in modules} | {name: name for name in modules}
    problem = f"control {control.name!r} is not for this {type(denoiser).__name__}"
    if missing := [name for name in control.modules if name not in names or flat[name] > 1]:
        count = f"{len(missing)} of its {len(control.modules)} modules are not there"
        raise ValueError(f"{problem}: {count}, such as {', '.join(missing[:SHOWN])}")
    layers = {name: getattr(modules[names[name]], "base_layer", modules[names[name]]) for name in control.modules}
    for name, layer in layers.items():
        if not isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) or getattr(layer, "groups", 1) != 1:
            raise ValueError(f"{problem}: {name} is a {type(layer).__name__} there, which takes no such change")
        shape, own = (len(control.tensors[name + UP]), *control.tensors[name + DOWN].shape[1:]), layer.weight.shape
        if shape != own:
            raise ValueError(f"{problem}: it changes {name} by {shape}, whose weight is {tuple(own)} there")
        attention = modules[names[name].rpartition(".")[0]]
        processor = type(getattr(attention, "processor", None)).__name__  # UNets leave the flag when they unfuse
        fused = isinstance(attention, AttentionModuleMixin) or "Fused" in processor
        if fused and getattr(attention, "fused_projections", False):
            raise ValueError(f"attention is fused and does not evaluate {name}: call unfuse_qkv_projections() first")
    return layers
