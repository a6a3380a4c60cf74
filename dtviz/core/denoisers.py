"""Send each denoiser call of a pipeline to the base, the distilled model or a LoRA, with its own guidance scale.

router = DenoiserRouter(pipe, base, distilled, next_call=lambda: scheduler.call, is_doubled=lambda x: len(x) == 2 * batch)
with router.active():
    pipe(...)

The base denoiser's `forward` is replaced on the instance while the block lasts, so that everything that the pipeline
passes (prompts, ControlNet residuals, masks) reaches the network that denoises.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from .pair import check_compatible

GUIDANCE_INPUTS = ("timestep_cond", "guidance")  # arguments that `guidance_input` may return
PROMPT_FIRST = (
    "LuminaPipeline",
    "LuminaText2ImgPipeline",
    "AceStepPipeline",
)  # in a doubled batch; others: prompt second


def denoiser_of(target: Any) -> torch.nn.Module:
    """Return the denoiser of a pair (its base) or pipeline, or the target itself if it is a module."""
    for module in (target, *(getattr(target, name, None) for name in ("base", "unet", "transformer"))):
        if isinstance(module, torch.nn.Module):
            return module
    kind = type(target).__name__
    raise ValueError(f"target is a {kind} without a denoiser: give a dtviz.Pair, a diffusers pipeline or a denoiser")


def network(base: torch.nn.Module, distilled: torch.nn.Module | str, role: str) -> torch.nn.Module:
    """Return the network of a role, "base" or "distilled". It is the base for both if `distilled` names an adapter."""
    return base if role == "base" or isinstance(distilled, str) else distilled


def embeds_guidance(denoiser: torch.nn.Module) -> bool:
    """Tell whether the denoiser takes its guidance scale as an input (LCM, FLUX.1-dev, SANA-Sprint)."""
    return _embeds_in_time(denoiser) or bool(denoiser.config.get("guidance_embeds"))


def guidance_input(pipe: Any, denoiser: torch.nn.Module, scale: float, like: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the guidance argument of such a denoiser, one value per sample of `like`, as its own pipeline makes it."""
    if _embeds_in_time(denoiser):  # Luo et al. 2023: w = scale - 1
        strength = torch.full((len(like),), scale - 1.0)
        embedding = pipe.get_guidance_scale_embedding(strength, embedding_dim=denoiser.config.time_cond_proj_dim)
        return {"timestep_cond": embedding.to(like)}
    scale *= denoiser.config.get("guidance_embeds_scale", 1.0)
    return {"guidance": torch.full((len(like),), scale, device=like.device, dtype=torch.float32)}


def _embeds_in_time(denoiser: torch.nn.Module) -> bool:
    return denoiser.config.get("time_cond_proj_dim") is not None


@dataclass
class DenoiserRouter:
    """Decide for every denoiser call which network answers it.

    Attributes:
        pipe: the pipeline. Its `transformer_2`, which denoises the lower noise levels of Wan 2.2, is routed as well.
        base: the denoiser that the pipeline calls.
        distilled: the other denoiser, or the name of an adapter loaded on the base.
        next_call: returns the coming call: any object with `role` and `guidance`. Guidance None leaves it to the pipeline.
        is_doubled: takes the input of a call and tells whether the pipeline doubled its batch for guidance.
        formula: roles whose guidance is u + scale (c - u) for every scale, so that 0 is the unconditional model. For the
            other roles 0 and 1 both mean the conditional model, as in diffusers.
        before_call: called before each evaluation.
        fuse: see `AdapterSwitch`.
        evaluations: denoiser evaluations per sample, by role.
        again: evaluates the inputs of the last call once more. Takes a call, returns the denoiser's output.
    """

    pipe: Any
    base: torch.nn.Module
    distilled: torch.nn.Module | str
    next_call: Callable[[], Any]
    is_doubled: Callable[[torch.Tensor], bool]
    formula: tuple[str, ...] = ()
    before_call: Callable[[], None] = lambda: None
    fuse: bool = True
    evaluations: Counter[str] = field(default_factory=Counter)
    again: Callable[[Any], torch.Tensor] | None = None
    _inputs: dict[Any, dict[str, torch.Tensor]] = field(default_factory=dict)  # guidance inputs that were made

    def needs_both(self, call: Any) -> bool:
        """Tell whether this call's guidance needs the unconditional prediction, which the pipeline has to prepare."""
        if call.guidance is None or embeds_guidance(network(self.base, self.distilled, call.role)):
            return False
        return call.guidance > 1 or (call.role in self.formula and call.guidance < 1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Route the calls of the pipeline's denoisers inside the block. Everything is restored on every exit.

        Guidance is applied here. A pipeline that doubles its batch for guidance receives the same guided output in both
        halves. Its own formula u + g (c - u) then leaves that output as it is.
        """
        second = getattr(self.pipe, "transformer_2", None)
        with ExitStack() as stack:
            for base in [self.base, second] if isinstance(second, torch.nn.Module) else [self.base]:
                check_compatible(base, self.distilled, name="distilled")
                switch = None
                if isinstance(self.distilled, str):
                    switch = AdapterSwitch(base, self.distilled, fuse=self.fuse)
                    stack.callback(switch.restore)
                stack.enter_context(replaced(vars(base), forward=self._routed(base, switch)))
            yield
            self.again = None

    def _routed(self, base: torch.nn.Module, switch: AdapterSwitch | None) -> Callable:
        forward = base.forward
        plain = getattr(base, "_orig_mod", base)  # of a compiled module
        first = next(iter(inspect.signature(plain.forward).parameters))  # "sample", or "hidden_states" of transformers

        def answer(call: Any, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
            if switch is not None:
                switch.use(call.role)
            target = network(base, self.distilled, call.role)
            if target is not base:  # the pipeline made them for the base
                kwargs = {name: value for name, value in kwargs.items() if name not in GUIDANCE_INPUTS}
            return self._evaluate(target, forward if target is base else target, call, sample, args, kwargs)

        @functools.wraps(forward)
        def routed_forward(*args, **kwargs):
            sample, args = (args[0], args[1:]) if args else (kwargs.pop(first), ())
            self.before_call()
            self.again = lambda call: answer(call, sample, args, kwargs)[0]
            return answer(self.next_call(), sample, args, kwargs)

        return routed_forward

    def _evaluate(
        self, target, denoiser: Callable, call: Any, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]
    ):
        n, role, scale = len(sample), call.role, call.guidance
        embedded, both, doubled = embeds_guidance(target), self.needs_both(call), self.is_doubled(sample)
        if scale is None and not embedded:  # left to the pipeline, and counted by the caller
            return denoiser(sample, *args, **kwargs)
        if both and not doubled:
            raise ValueError(
                f"{role} guidance {scale:g} needs the unconditional prediction, and this call of "
                f"{type(self.pipe).__name__} has none in its batch: pass it a guidance_scale above 1, or give {role} guidance 0"
            )
        if embedded:
            scale = self.pipe.guidance_scale if scale is None else scale
            rows = sample[: n // 2] if doubled else sample
            key = (target, scale, len(rows), rows.dtype)
            if key not in self._inputs:  # a copy to the device makes the host wait
                self._inputs[key] = guidance_input(self.pipe, target, scale, rows)
            kwargs = kwargs | self._inputs[key]
        twice = both and scale != 0
        prompt_first = type(self.pipe).__name__ in PROMPT_FIRST
        if doubled and not isinstance(sample, torch.Tensor):
            raise NotImplementedError(
                f"{type(self.pipe).__name__} passes a list of samples, whose guidance can only be left to the pipeline: give "
                "guidance_scale 0, or dtviz.hybrid base_guidance=None and guidance=None"
            )
        if doubled and not twice:
            first_half = both != prompt_first  # that of the unconditional prediction, but if the prompt is first
            sample, args, kwargs = _rows((sample, args, kwargs), n, slice(n // 2) if first_half else slice(n // 2, n))
        result = denoiser(sample, *args, **kwargs)
        output = result[0]
        if twice:
            unconditional, conditional = output.chunk(2)[:: -1 if prompt_first else 1]
            output = unconditional + scale * (conditional - unconditional)
        self.evaluations[role] += 2 if twice else 1
        output = torch.cat([output, output]) if doubled else output
        return (output,) if isinstance(result, tuple) else type(result)(sample=output)


@contextmanager
def replaced(values: dict[str, Any], **others: Any) -> Iterator[None]:
    """Set values inside the block. What was there before, or was missing, is restored."""
    own = {name: values[name] for name in others if name in values}
    try:
        values.update(others)
        yield
    finally:
        for name in others:
            values.pop(name, None)
        values.update(own)


def _rows(tree: Any, n: int, rows: slice) -> Any:
    """Return these rows of every tensor whose first dimension is the doubled batch."""
    return tree_map_only(torch.Tensor, lambda x: x[rows] if x.ndim and len(x) == n else x, tree)


class AdapterSwitch:
    """Let one network be the base and, with its distillation LoRA, the distilled model.

    The caller's other adapters act in both roles. No weight and no setting of an adapter is written: each LoRA layer has its
    `forward` replaced on the instance until `restore`.

    Args:
        denoiser: the base, which has the adapter.
        distilled: name of the adapter.
        fuse: add adapters to the weight of a layer each time it runs. This costs one small matrix product instead of two
            more layers, and the memory of one layer's weight. False leaves them to peft, which adds them to the layer's output.
            So are layers that are no plain LoRA on a linear layer or convolution, or are offloaded one by one.
    """

    def __init__(self, denoiser: torch.nn.Module, distilled: str, *, fuse: bool = False) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.denoiser, self.distilled, self.fuse, self.state = denoiser, distilled, fuse, None
        self.layers = {layer: {} for layer in denoiser.modules() if isinstance(layer, BaseTunerLayer)}
        self.use("base")
        self.stack = ExitStack()
        for layer, roles in self.layers.items():
            self.stack.enter_context(replaced(vars(layer), forward=self._forward(layer, roles)))

    def use(self, role: str) -> None:
        """Choose the role of the coming calls. Adapters may have been loaded, fused or switched since the last one."""
        self.role, layer, names = role, next(iter(self.layers)), list(getattr(self.denoiser, "peft_config", {}))
        fused = sum(len(layer.merged_adapters) for layer in self.layers)
        state = (names, layer.disable_adapters, list(layer.active_adapters), fused)
        if state == self.state:
            return
        if self.distilled not in names:
            raise ValueError(f"distilled={self.distilled!r} is no longer an adapter of the base, which has {names}")
        for layer, roles in self.layers.items():
            self._read(layer, roles)
        self.state = state

    def _read(self, layer: Any, roles: dict[str, Any]) -> None:
        """Find the adapters of each role, and the factors whose products turn the layer's weight into theirs."""
        active = [*([] if layer.disable_adapters else layer.active_adapters), *layer.merged_adapters]
        others, merged = [name for name in dict.fromkeys(active) if name != self.distilled], layer.merged_adapters
        for role, names in (("base", others), ("distilled", [*others, self.distilled])):
            added = [(name, 1) for name in names if name not in merged]
            signs = added + [(name, -1) for name in merged if name not in names]
            roles[role] = names, _factors(layer, signs) if self.fuse or merged else None
            if merged and roles[role][1] is None:
                raise ValueError(
                    f"distilled={self.distilled!r}: {', '.join(merged)} is fused into a {type(layer).__name__} layer, which "
                    "cannot switch it off exactly: call unfuse_lora() before the block"
                )

    def _forward(self, layer: Any, roles: dict[str, Any]) -> Callable:
        """Return the `forward` of a LoRA layer in the present role."""
        peft_forward, base = layer.forward, layer.base_layer

        def forward(x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
            names, factors = roles[self.role]
            if factors is None:
                with replaced(vars(layer), _active_adapter=names, _disable_adapters=not names):
                    return peft_forward(x, *args, **kwargs)
            weight = base.weight
            for name, sign, down, up in factors:
                scale = sign * layer.scaling[name]
                weight = torch.addmm(_flat(weight), _flat(up), _flat(down), alpha=scale).view(weight.shape)
            own = base._parameters["weight"]
            try:
                base._parameters["weight"] = weight
                return base(x, *args, **kwargs)
            finally:
                base._parameters["weight"] = own

        return forward

    def restore(self) -> None:
        self.stack.close()


def _flat(weight: torch.Tensor) -> torch.Tensor:
    return weight if weight.ndim == 2 else weight.flatten(1)


def _factors(layer: Any, signs: list[tuple[str, int]]) -> list[tuple[str, int, torch.Tensor, torch.Tensor]] | None:
    """Return name, sign, down and up of each adapter, or None if the layer is no plain LoRA whose weights are at hand."""
    from peft.tuners import lora

    base = layer.base_layer
    if type(layer) not in (lora.Linear, lora.Conv2d) or type(base) not in (torch.nn.Linear, torch.nn.Conv2d):
        return None
    signs = [(name, sign) for name, sign in signs if name in layer.lora_A]
    parts = [base, *(factors[name] for name, _ in signs for factors in (layer.lora_A, layer.lora_B))]
    special = any(name in layer.lora_variant or layer.lora_bias[name] for name, _ in signs)
    special |= getattr(base, "groups", 1) != 1 or getattr(layer, "fan_in_fan_out", False)
    offloaded = any("forward" in vars(part) for part in parts)
    if special or offloaded or len({(part.weight.dtype, part.weight.device) for part in parts}) > 1:
        return None
    return [(name, sign, layer.lora_A[name].weight, layer.lora_B[name].weight) for name, sign in signs]


def split_guidance(outputs: list[torch.Tensor], guided: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the conditional and the unconditional denoiser output behind a guided one.

    Pipelines run classifier-free guidance in one doubled batch or in two calls, in either order. Some turn the sign or rescale
    the result. All of them make g = s (u + w (c - u)) with w > 1 per sample, so c has the larger share in g.

    Args:
        outputs: the denoiser's outputs since the last step: (n, ...) or (2n, ...), any number of calls.
        guided: (n, ...) what the pipeline passed to its scheduler.

    Returns:
        Both in the shape of `guided`. The unconditional output is None if the pipeline computed none.
    """
    n = len(guided)
    parts = [part for output in outputs for part in (output.split(n) if len(output) % n == 0 else [output])]
    parts = [part[:, : guided.shape[1]] for part in parts]  # without a learned variance or a reference image's tokens
    if not 1 <= len(parts) <= 2 or any(part.shape != guided.shape for part in parts):
        shapes = [tuple(output.shape) for output in outputs]
        raise NotImplementedError(
            f"guidance=True needs one or two denoiser outputs per step of shape {tuple(guided.shape)}; this pipeline's "
            f"have {shapes}: capture it without"
        )
    if len(parts) == 1:
        return guided, None
    shares = _shares(parts, guided)
    if shares.sum() < 0:
        parts, shares = [-part for part in parts], -shares
    return (parts[0], parts[1]) if shares[0] > shares[1] else (parts[1], parts[0])


def _shares(parts: list[torch.Tensor], guided: torch.Tensor) -> torch.Tensor:
    """Return the least-squares shares of the two parts in each sample's guided output, summed over samples."""
    a = torch.stack([part.flatten(1).double().cpu() for part in parts], dim=-1)
    g = guided.flatten(1).double().cpu().unsqueeze(-1)
    # Equal outputs get equal shares in the minimum-norm solution, and their order does not matter.
    shares = torch.linalg.pinv(a, rtol=1e-6) @ g
    unexplained = float((g - a @ shares).norm() / g.norm().clamp(min=1e-30))
    if unexplained > 0.5:
        raise NotImplementedError(
            f"guidance=True: {unexplained:.0%} of the scheduler's input is not explained by the denoiser's two outputs; "
            "this pipeline guides another way, capture it without"
        )
    return shares.sum(dim=(0, 2))
