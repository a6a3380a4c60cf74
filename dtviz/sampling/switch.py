"""Two denoisers behind one pipeline: each call goes to whoever's turn it is, with its own guidance.

The base denoiser instance's `forward` is replaced for as long as the block lasts, so that whatever the pipeline hands it
(prompts, ControlNet residuals, masks) reaches the one that plays.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..networks import GUIDANCE_INPUTS, Adapters, Offload, embeds_guidance, guidance_input, network


class Turn(NamedTuple):
    """Who denoises, "base" or "distilled", and with which guidance scale; None leaves guidance to the pipeline."""

    role: str
    scale: float | None


@dataclass
class Switch:
    """Who denoises when.

    Attributes:
        pipe: the pipeline, for its embedding of the guidance scale (LCM).
        base: the denoiser instance that the pipeline calls.
        student: the other one, or the name of an adapter loaded on the base.
        turn: called before every evaluation: the `Turn`, or anything with its two attributes.
        doubled: called with the batch that the denoiser got; whether the pipeline doubled it for guidance.
        formula: the roles whose guidance is u + scale (c - u) for every scale, where 0 is the unconditional model; of the
            others 0 and 1 both mean the conditional one, as in diffusers.
        condition: changes the text states that the denoiser gets, (sample, token, channel), the conditional ones only.
        steer: called with the `Turn` before each of these evaluations, to set what depends on it (controls).
        probe: called like `turn`: who else looks at this sample, if anyone; the output goes to `probed`.
        offload: keep the network whose turn it is not in the host's memory; of two networks, only.
        evaluations: denoiser evaluations a sample, counted for each role.
    """

    pipe: Any
    base: torch.nn.Module
    student: torch.nn.Module | str
    turn: Callable[[], Turn]
    doubled: Callable[[int], bool]
    formula: tuple[str, ...] = ()
    condition: Callable[[torch.Tensor], torch.Tensor] | None = None
    steer: Callable[[Turn], None] = lambda turn: None
    probe: Callable[[], Turn | None] = lambda: None
    probed: list[torch.Tensor] = field(default_factory=list)
    offload: bool = False
    evaluations: Counter[str] = field(default_factory=Counter)

    def network(self, role: str) -> torch.nn.Module:
        """The network that plays this role."""
        return network(self.base, self.student, role)

    def needs_both(self, turn: Turn) -> bool:
        """Whether this guidance takes the unconditional prompt, which the pipeline has to prepare."""
        if turn.scale is None or embeds_guidance(self.network(turn.role)):
            return False
        return turn.scale > 1 or (turn.role in self.formula and turn.scale < 1)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Route the base's calls; restored on every way out.

        Guidance is applied here. A pipeline that doubles its batch for guidance receives the same guided output in both
        halves, which its own formula u + g (c - u) then leaves as it is.
        """
        base, forward = self.base, self.base.forward
        own = vars(base).get("forward")  # an offload hook's, say
        cast = self._cast()
        first = next(iter(inspect.signature(forward).parameters))  # "sample", or "hidden_states" of transformers

        def play(turn: Turn, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
            if cast is not None:
                cast.use(turn.role)
            self.steer(turn)
            call = forward if self.network(turn.role) is base else self.student
            return self._evaluate(call, turn, sample, args, dict(kwargs))

        @functools.wraps(forward)
        def switching_forward(*args, **kwargs):
            sample, args = (args[0], args[1:]) if args else (kwargs.pop(first), ())
            turn, probe = self.turn(), self.probe()
            if self.condition is not None:
                kwargs = self._conditioned(kwargs, sample.shape[0])
            output = play(turn, sample, args, kwargs)
            if probe is not None:
                self.probed.append(play(probe, sample, args, kwargs)[0])
            return output

        base.forward = switching_forward
        try:
            yield
        finally:
            if own is None:
                del base.forward
            else:
                base.forward = own
            if cast is not None:
                cast.restore()

    def _cast(self) -> Adapters | Offload | None:
        """What has to be done between one role and the other."""
        if isinstance(self.student, str):
            return Adapters(self.base, self.student)
        if not self.offload:
            return None
        return Offload(self.base, self.student, getattr(self.pipe, "_execution_device", None))

    def _conditioned(self, kwargs: dict[str, Any], n: int) -> dict[str, Any]:
        text = kwargs.get("encoder_hidden_states")
        if text is None:
            raise NotImplementedError(
                f"{type(self.base).__name__} is not given its text as encoder_hidden_states: it cannot be annealed"
            )
        rows = slice(n // 2, n) if self.doubled(n) else slice(n)  # diffusers puts the prompt second
        return kwargs | {"encoder_hidden_states": torch.cat([text[: rows.start or 0], self.condition(text[rows])])}

    def _evaluate(self, call: Callable, turn: Turn, sample: torch.Tensor, args: tuple, kwargs: dict[str, Any]):
        n, role, scale = sample.shape[0], turn.role, turn.scale
        embedded, both, doubled = embeds_guidance(self.network(role)), self.needs_both(turn), self.doubled(n)
        if self.network(role) is not self.base:  # the pipeline made them for the base
            kwargs = {name: value for name, value in kwargs.items() if name not in GUIDANCE_INPUTS}
        if scale is None and not embedded:
            self.evaluations[role] += 2 if doubled else 1
            return call(sample, *args, **kwargs)
        if both and not doubled:
            raise ValueError(
                f"{role} guidance {scale:g} needs the unconditional prediction too, and this call of "
                f"{type(self.pipe).__name__} makes none: pass it a guidance_scale above 1"
            )
        if embedded:
            scale = self.pipe.guidance_scale if scale is None else scale
            rows = sample[: n // 2] if doubled else sample
            kwargs |= guidance_input(self.pipe, self.network(role), scale, rows)
        twice = both and scale != 0
        if doubled and not twice:
            half = slice(n // 2) if both else slice(n // 2, n)  # diffusers puts the prompt second
            sample, args, kwargs = _part((sample, args, kwargs), n, half)
        result = call(sample, *args, **kwargs)
        output = result[0]
        if twice:
            unconditional, conditional = output.chunk(2)
            output = unconditional + scale * (conditional - unconditional)
        self.evaluations[role] += 2 if twice else 1
        output = torch.cat([output, output]) if doubled else output
        return (output,) if isinstance(result, tuple) else type(result)(sample=output)


def _part(tree: Any, n: int, rows: slice) -> Any:
    """These rows of every tensor whose first dimension is the doubled batch."""
    if isinstance(tree, torch.Tensor):
        return tree[rows] if tree.ndim and tree.shape[0] == n else tree
    if isinstance(tree, dict):
        return {key: _part(value, n, rows) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_part(value, n, rows) for value in tree)
    return tree
