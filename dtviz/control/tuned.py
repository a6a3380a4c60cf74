"""A network with something to train put on it, and taken off again without a trace: a LoRA, or some of its own weights.

    with lora(pair, on="base", modules=ATTENTION, rank=4, alpha=1.0, seed=0) as tuned:
        tuned.parameters         # to be optimised
        tuned.scale(-1)          # a slider, turned the other way
        tensors = tuned.tensors()

`tensors` are those of a `Control`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..attached import attached
from ..controls import DELTA, DOWN, UP, Control
from ..networks import Adapters, network
from ..pairs import Pair

ROLES = ("base", "distilled")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # of self- and cross-attention, as DreamBooth-LoRA
CROSS = ("attn2.to_k", "attn2.to_v")  # where the text comes in: Custom Diffusion's


@dataclass(frozen=True)
class Tuned:
    """What is trained on a network.

    Attributes:
        network: the denoiser that it is on.
        parameters: by name, trainable.
        tensors: the change as a `Control` has it, on the CPU.
        scale: sets how strongly a LoRA is on, negative the other way; at 0 the network is the plain one. It begins at 1.
    """

    network: torch.nn.Module
    parameters: Mapping[str, torch.nn.Parameter]
    tensors: Callable[[], dict[str, torch.Tensor]]
    scale: Callable[[float], None] | None = None


def trained_network(pair: Pair, on: str, modules: Sequence[str]) -> torch.nn.Module:
    """The network of a pair that is trained on.

    Raises:
        ValueError: no such role, weights in half precision, whose small gradients vanish, or no such modules.
    """
    if on not in ROLES:
        raise ValueError(f"on={on!r} is not one of {', '.join(ROLES)}: whose weights the control is trained with")
    denoiser = network(pair.base, pair.distilled, on)
    if denoiser.dtype == torch.float16:
        raise ValueError(
            f"on={on!r}: that network is in float16, whose small gradients vanish; load it in bfloat16 or float32"
        )
    matching(denoiser, modules)
    return denoiser


def origin(pair: Pair, on: str) -> dict[str, str]:
    """What a control tells about where it was trained: pair, role, and the fingerprint of that network."""
    return {"pair": pair.name, "role": on, "fingerprint": pair.base_fingerprint if on == "base" else pair.fingerprint}


def matching(denoiser: torch.nn.Module, modules: Sequence[str]) -> dict[str, torch.nn.Module]:
    """The linear and convolution modules whose name is, or ends in, one of `modules`, by name.

    What a LoRA that is loaded already wraps counts by its own name, as the `base_layer` that it is inside.

    Raises:
        ValueError: one of `modules` matches nothing.
    """
    layers = {
        name.removesuffix(".base_layer"): module
        for name, module in denoiser.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and ".lora_" not in name
    }
    found = {}
    for wanted in modules:
        hits = {name: layer for name, layer in layers.items() if f".{name}".endswith(f".{wanted}")}
        if not hits:
            ends = sorted({name.rpartition(".")[-1] for name in layers if not name[-1].isdigit()})
            raise ValueError(
                f"modules: no name in {type(denoiser).__name__} ends in {wanted!r}; some end in {', '.join(ends)}"
            )
        found |= hits
    return found


@contextmanager
def lora(pair: Pair, *, on: str, modules: Sequence[str], rank: int, alpha: float, seed: int) -> Iterator[Tuned]:
    """A new LoRA on one of the pair's networks; taken off on every way out.

    The first factors are random and the second zero, as Hu et al. 2022 begin: its change is zero at first. A student that
    is an adapter itself stays on beneath it, and so do adapters that the caller has switched on.
    """
    denoiser, strength = trained_network(pair, on, modules), alpha / rank
    layers, generator = matching(denoiser, modules), torch.Generator("cpu").manual_seed(seed)
    zero = {}
    for name, layer in layers.items():
        out, size = layer.weight.shape[0], layer.weight.shape[1:]
        bound = 1 / math.sqrt(math.prod(size))  # torch's own for a linear layer of so many inputs
        zero[name + DOWN] = (2 * torch.rand(rank, *size, generator=generator) - 1) * bound
        zero[name + UP] = torch.zeros(out, rank, *(1 for _ in size[1:]))
    with _frozen(denoiser), _student_on(pair, on), attached(denoiser, Control("untrained", "lora", zero)) as put:
        parameters = {}
        for name in layers:
            wrapped = denoiser.get_submodule(name)
            for key, factors in ((DOWN, wrapped.lora_A), (UP, wrapped.lora_B)):
                parameters[name + key] = factors[put.adapter].float().weight.requires_grad_(True)

        def tensors() -> dict[str, torch.Tensor]:
            values = {key: parameter.detach().cpu().clone() for key, parameter in parameters.items()}
            return {key: strength * value if key.endswith(UP) else value for key, value in values.items()}

        put.scale(strength)
        yield Tuned(denoiser, parameters, tensors, lambda value: put.scale(value * strength))


@contextmanager
def weights(pair: Pair, *, on: str, modules: Sequence[str]) -> Iterator[Tuned]:
    """Some of a network's own weights, to be trained in full; as they were, to the bit, on every way out."""
    denoiser = trained_network(pair, on, modules)
    own = {name: layer.weight for name, layer in matching(denoiser, modules).items()}
    kept = {name: weight.detach().clone() for name, weight in own.items()}

    def tensors() -> dict[str, torch.Tensor]:
        return {name + DELTA: (weight - kept[name]).detach().cpu() for name, weight in own.items()}

    with _frozen(denoiser), _student_on(pair, on):
        try:
            yield Tuned(denoiser, {name + DELTA: weight.requires_grad_(True) for name, weight in own.items()}, tensors)
        finally:
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(kept[name])


@contextmanager
def _student_on(pair: Pair, on: str) -> Iterator[None]:
    """Of a pair of one network, the student's adapter on, or off, whichever is trained on."""
    if not isinstance(pair.distilled, str):
        yield
        return
    cast = Adapters(pair.base, pair.distilled)
    cast.use(on)
    try:
        yield
    finally:
        cast.restore()


@contextmanager
def _frozen(denoiser: torch.nn.Module) -> Iterator[None]:
    """No parameter with a gradient, but those that are given one inside; afterwards as before."""
    wanted = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    denoiser.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in wanted.items():
            parameter.requires_grad_(needed)
            parameter.grad = None
