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
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

GUIDANCE_INPUTS = ("timestep_cond", "guidance")  # arguments that `guidance_input` may return


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
        pipe: the pipeline. LCM's embedding of the guidance scale is taken from it.
        base: the denoiser instance that the pipeline calls.
        distilled: the other denoiser, or the name of an adapter loaded on the base.
        next_call: returns the coming call: any object with `role` and `guidance`. Guidance None leaves it to the pipeline.
        is_doubled: takes the input of a call and tells whether the pipeline doubled its batch for guidance.
        formula: roles whose guidance is u + scale (c - u) for every scale, so that 0 is the unconditional model. For the
            other roles 0 and 1 both mean the conditional model, as in diffusers.
        before_call: called before each evaluation.
        evaluations: denoiser evaluations per sample, by role.
    """

    pipe: Any
    base: torch.nn.Module
    distilled: torch.nn.Module | str
    next_call: Callable[[], Any]
    is_doubled: Callable[[torch.Tensor], bool]
    formula: tuple[str, ...] = ()
    before_call: Callable[[], None] = lambda: None
    evaluations: Counter[str] = field(default_factory=Counter)

    def network(self, role: str) -> torch.nn.Module:
        return network(self.base, self.distilled, role)

    def needs_both(self, call: Any) -> bool:
        """Tell whether this call's guidance needs the unconditional prediction, which the pipeline has to prepare."""
        if call.guidance is None or embeds_guidance(self.network(call.role)):
            return False
        return call.guidance > 1 or (call.role in self.formula and call.guidance < 1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Route the base's calls inside the block. Everything is restored on every exit.

        Guidance is applied here. A pipeline that doubles its batch for guidance receives the same guided output in both
        halves. Its own formula u + g (c - u) then leaves that output as it is.
        """
        base, forward = self.base, self.base.forward
        own_forward = vars(base).get("forward")  # set on the instance by an offload hook, for example
        plain = getattr(base, "_orig_mod", base)  # of a compiled module
        first = next(iter(inspect.signature(plain.forward).parameters))  # "sample", or "hidden_states" of transformers
        switch = AdapterSwitch(base, self.distilled) if isinstance(self.distilled, str) else None

        def answer(call: Any, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
            if switch is not None:
                switch.use(call.role)
            denoiser = forward if self.network(call.role) is base else self.distilled
            return self._evaluate(denoiser, call, sample, args, dict(kwargs))

        @functools.wraps(forward)
        def routed_forward(*args, **kwargs):
            sample, args = (args[0], args[1:]) if args else (kwargs.pop(first), ())
            self.before_call()
            self.again = lambda call: answer(call, sample, args, kwargs)[0]
            return answer(self.next_call(), sample, args, kwargs)

        try:
            base.forward = routed_forward
            yield
        finally:
            self.again = None
            vars(base).pop("forward", None)
            if own_forward is not None:
                base.forward = own_forward
            if switch is not None:
                switch.restore()

    # Evaluate the inputs of the last call once more, for another role. Takes a call, returns the denoiser's output.
    again: Callable[[Any], torch.Tensor] | None = None

    def _evaluate(self, denoiser: Callable, call: Any, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
        n, role, scale = sample.shape[0], call.role, call.guidance
        embedded, both, doubled = embeds_guidance(self.network(role)), self.needs_both(call), self.is_doubled(sample)
        if self.network(role) is not self.base:  # the pipeline made them for the base
            kwargs = {name: value for name, value in kwargs.items() if name not in GUIDANCE_INPUTS}
        if scale is None and not embedded:  # left to the pipeline, and counted by the caller
            return denoiser(sample, *args, **kwargs)
        if both and not doubled:
            raise ValueError(
                f"{role} guidance {scale:g} needs the unconditional prediction, and this call of "
                f"{type(self.pipe).__name__} makes none: pass it a guidance_scale above 1"
            )
        if embedded:
            scale = self.pipe.guidance_scale if scale is None else scale
            rows = sample[: n // 2] if doubled else sample
            kwargs |= guidance_input(self.pipe, self.network(role), scale, rows)
        twice = both and scale != 0
        if doubled and not twice:
            half = slice(n // 2) if both else slice(n // 2, n)  # diffusers puts the prompt second
            sample, args, kwargs = _rows((sample, args, kwargs), n, half)
        result = denoiser(sample, *args, **kwargs)
        output = result[0]
        if twice:
            unconditional, conditional = output.chunk(2)
            output = unconditional + scale * (conditional - unconditional)
        self.evaluations[role] += 2 if twice else 1
        output = torch.cat([output, output]) if doubled else output
        return (output,) if isinstance(result, tuple) else type(result)(sample=output)


def _rows(tree: Any, n: int, rows: slice) -> Any:
    """Return these rows of every tensor whose first dimension is the doubled batch."""
    if isinstance(tree, torch.Tensor):
        return tree[rows] if tree.ndim and tree.shape[0] == n else tree
    if isinstance(tree, dict):
        return {key: _rows(value, n, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_rows(value, n, rows) for value in tree)
    return tree


class AdapterSwitch:
    """Switch the distillation LoRA of one network on and off. The caller's own adapters stay as they are."""

    def __init__(self, denoiser: torch.nn.Module, distilled: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
        self.before = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
        self.fused = {layer: list(layer.merged_adapters) for layer in layers if layer.merged}
        self.distilled, self.role = distilled, None
        for layer in self.fused:  # fused adapters stay on, as adapters, while the roles change
            layer.unmerge()
        self.active = [
            (layer, list(dict.fromkeys([*([] if disabled else active), *self.fused.get(layer, [])])))
            for layer, active, disabled in self.before
        ]

    def use(self, role: str) -> None:
        if role == self.role:
            return
        self.role = role
        for layer, active in self.active:
            others = [name for name in active if name != self.distilled]
            names = [*others, self.distilled] if role == "distilled" else others
            layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(names)

    def restore(self) -> None:
        for layer, active, disabled in self.before:
            layer.set_adapter(active)
            layer.enable_adapters(not disabled)
        for layer, names in self.fused.items():
            layer.merge(adapter_names=names)


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
    for output in outputs:
        if not isinstance(output, torch.Tensor) and len({x.shape for x in output}) != 1:
            raise NotImplementedError(
                "guidance=True: the denoiser returns samples of several shapes, capture it without"
            )
    # Z-Image returns a list of samples
    outputs = [output if isinstance(output, torch.Tensor) else torch.stack(list(output)) for output in outputs]
    parts = [part for output in outputs for part in (output.split(n) if len(output) % n == 0 else [output])]
    parts = [part[:, : guided.shape[1]] for part in parts]  # without a learned variance or a reference image's tokens
    if not 1 <= len(parts) <= 2 or any(part.numel() != guided.numel() for part in parts):
        shapes = [tuple(output.shape) for output in outputs]
        raise NotImplementedError(
            f"guidance=True needs one or two denoiser outputs per step of shape {tuple(guided.shape)}; this pipeline's "
            f"have {shapes}: capture it without"
        )
    if len(parts) == 1:
        return guided, None
    parts = [part.reshape(guided.shape) for part in parts]
    shares, unexplained = _shares(parts, guided)
    if unexplained > 0.5 and guided.shape[1] % 2 == 0:  # DeepFloyd IF passes a learned variance behind the guided noise
        half = guided.shape[1] // 2
        shares, unexplained = _shares([part[:, :half] for part in parts], guided[:, :half])
    if unexplained > 0.5:
        raise NotImplementedError(
            f"guidance=True: {unexplained:.0%} of the scheduler's input is not explained by the denoiser's two outputs; "
            "this pipeline guides another way, capture it without"
        )
    if sum(shares) < 0:
        parts, shares = [-part for part in parts], [-share for share in shares]
    return (parts[0], parts[1]) if shares[0] > shares[1] else (parts[1], parts[0])


def _shares(parts: list[torch.Tensor], guided: torch.Tensor) -> tuple[list[float], float]:
    """Return the least-squares shares of the two parts in the guided output, summed over samples without nan, and the rest."""
    wide = torch.float32 if guided.device.type == "mps" else torch.float64
    a = torch.stack([part.flatten(1) for part in parts], dim=-1).to(wide)
    g = guided.flatten(1).to(wide).unsqueeze(-1)
    gram = a.mT @ a
    # Equal outputs get equal shares with a small ridge, and their order does not matter.
    ridge = 1e4 * torch.finfo(wide).eps * gram.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + 1e-30
    shares = torch.linalg.solve_ex(gram + ridge * torch.eye(2, device=g.device, dtype=wide), a.mT @ g).result
    rest = (g - a @ shares).square().nansum().sqrt() / g.square().nansum().sqrt().clamp(min=1e-30)
    *shares, rest = torch.cat([shares.nansum(dim=(0, 2)), rest[None]]).tolist()
    return shares, rest
