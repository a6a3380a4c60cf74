"""Two denoisers behind one pipeline: each call goes to whoever's turn it is, with its own guidance.

The base denoiser instance's `forward` is replaced for as long as the block lasts, so that whatever the pipeline hands it
(prompts, ControlNet residuals, masks) reaches the one that plays.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
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


@dataclass
class Switch:
    """Who denoises when.

    Attributes:
        pipe: the pipeline, for its embedding of the guidance scale (LCM).
        base: the denoiser instance that the pipeline calls.
        student: the other one, or the name of an adapter loaded on the base.
        role: called before every evaluation; whose turn it is.
        scales: guidance of each role; None leaves guidance to the pipeline.
        doubled: called with the batch that the denoiser got; whether the pipeline doubled it for guidance.
        formula: the roles whose guidance is u + scale (c - u) for every scale, where 0 is the unconditional model; of the
            others 0 and 1 both mean the conditional one, as in diffusers.
        evaluations: denoiser evaluations a sample, counted for each role.
    """

    pipe: Any
    base: torch.nn.Module
    student: torch.nn.Module | str
    role: Callable[[], str]
    scales: Mapping[str, float | None]
    doubled: Callable[[int], bool]
    formula: tuple[str, ...] = ()
    evaluations: Counter[str] = field(default_factory=Counter)

    def network(self, role: str) -> torch.nn.Module:
        """The network that plays this role."""
        return network(self.base, self.student, role)

    def needs_both(self, role: str) -> bool:
        """Whether this role's guidance takes the unconditional prompt, which the pipeline has to prepare."""
        scale = self.scales[role]
        if scale is None or embeds_guidance(self.network(role)):
            return False
        return scale > 1 or (role in self.formula and scale < 1)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Route the base's calls; restored on every way out.

        Guidance is applied here. A pipeline that doubles its batch for guidance receives the same guided output in both
        halves, which its own formula u + g (c - u) then leaves as it is.
        """
        base, forward = self.base, self.base.forward
        own = vars(base).get("forward")  # an offload hook's, say
        adapters = _Adapters(base, self.student) if isinstance(self.student, str) else None

        first = next(iter(inspect.signature(forward).parameters))  # "sample", or "hidden_states" of transformers

        @functools.wraps(forward)
        def switching_forward(*args, **kwargs):
            sample, args = (args[0], args[1:]) if args else (kwargs.pop(first), ())
            role = self.role()
            if adapters is not None:
                adapters.use(role)
            call = forward if self.network(role) is base else self.student
            return self._evaluate(call, role, sample, args, kwargs)

        base.forward = switching_forward
        try:
            yield
        finally:
            if own is None:
                del base.forward
            else:
                base.forward = own
            if adapters is not None:
                adapters.restore()

    def _evaluate(self, call: Callable, role: str, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
        n, scale, embedded = sample.shape[0], self.scales[role], embeds_guidance(self.network(role))
        doubled = self.doubled(n)
        if scale is None and not embedded:
            self.evaluations[role] += 2 if doubled else 1
            return call(sample, *args, **kwargs)
        if self.needs_both(role) and not doubled:
            raise ValueError(
                f"{role} guidance {scale:g} needs the unconditional prediction too, and this call of "
                f"{type(self.pipe).__name__} makes none: pass it a guidance_scale above 1"
            )
        if embedded:
            scale = self.pipe.guidance_scale if scale is None else scale
            dim = self.network(role).config.time_cond_proj_dim
            strength = torch.full((n // 2 if doubled else n,), scale - 1.0)
            kwargs["timestep_cond"] = self.pipe.get_guidance_scale_embedding(strength, embedding_dim=dim).to(sample)
        twice = self.needs_both(role) and scale != 0
        if doubled and not twice:
            half = slice(n // 2) if self.needs_both(role) else slice(n // 2, n)  # diffusers puts the prompt second
            sample, args, kwargs = _part((sample, args, kwargs), n, half)
        result = call(sample, *args, **kwargs)
        output = result[0]
        if twice:
            unconditional, conditional = output.chunk(2)
            output = unconditional + scale * (conditional - unconditional)
        self.evaluations[role] += 2 if twice else 1
        output = torch.cat([output, output]) if doubled else output
        return (output,) if isinstance(result, tuple) else type(result)(sample=output)


class _Adapters:
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


def _part(tree: Any, n: int, rows: slice) -> Any:
    """These rows of every tensor whose first dimension is the doubled batch."""
    if isinstance(tree, torch.Tensor):
        return tree[rows] if tree.ndim and tree.shape[0] == n else tree
    if isinstance(tree, dict):
        return {key: _part(value, n, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_part(value, n, rows) for value in tree)
    return tree
