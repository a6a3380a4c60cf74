"""Put a control on a pair, a pipeline or a denoiser, prove that it works there, and take it off again.

with dtviz.control.attach(pair, smile, scale=2) as proof:
    print(proof)        # smile on base and distilled: 64 modules, output changes by 3.1% and 2.8% at scale 1 ...
    images = pair.pipeline("face").images

LoRA factors go through diffusers' own `load_lora_adapter`. A full-rank change D = W_tuned - W_base is added to its layer's
output, (W + s D) x = W x + s D x, so that no weight is ever touched. `generate(controls=...)` does the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from .attached import Attached, attached
from .controls import Applied, Control
from .example import answer
from .networks import denoiser, network
from .pairs import Pair


@dataclass(frozen=True)
class Proof:
    """That a control took hold: on a random input its networks answer differently at scale 1, and as before at scale 0.

    Attributes:
        control: its name.
        networks: what it is on, such as ("base", "distilled").
        modules: how many modules of each network it changes: all that it has.
        change: how much the output changes at scale 1, ‖difference‖ / ‖output‖, one for each of `networks`.
        left_out: what the control's file held for other parts of a pipeline, and is not applied.
    """

    control: str
    networks: tuple[str, ...]
    modules: int
    change: tuple[float, ...]
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.control} on {' and '.join(self.networks)}: {self.modules} modules"
        change = " and ".join(f"{100 * change:.2g}%" for change in self.change)
        rest = f"; not applied: {'; '.join(self.left_out)}" if self.left_out else ""
        return f"{where}, output changes by {change} at scale 1, not at all at 0{rest}"


@contextmanager
def attach(target: Any, control: Control, scale: float = 1.0) -> Iterator[Proof]:
    """Have a control on as long as the block lasts.

    Args:
        target: a `Pair`, on both of whose networks it then is; a diffusers pipeline; or a denoiser. What is loaded there
            already, a student that is an adapter among it, stays as it is; several controls add up, one block in another.
        control: what `load` or a training gives.
        scale: times its change; negative turns a slider the other way.

    Yields:
        The `Proof`, from three evaluations of each network on one small random input.

    Raises:
        ValueError: the control is for other modules or sizes, or changes nothing; or a target of no such kind.
        NotImplementedError: a denoiser whose inputs are not known, so that nothing could be proved.
    """
    applied = Applied(control, scale)
    with _everywhere(_networks(target), control) as (on, proof):
        for one in on:
            one.scale(applied.scale)
        yield proof


class Steering:
    """The controls of some runs, each turned on and off as its segment and window say; they are off to begin with."""

    def __init__(self, pair: Pair, controls: Sequence[tuple[Applied, Sequence[Attached]]]) -> None:
        self.pair, self.controls = pair, controls
        self.restart()

    def restart(self) -> None:
        """Count anew, for the next run."""
        self.calls: list[Counter[str]] = [Counter() for _ in self.controls]

    def use(self, role: str, sigma: Callable[[], float]) -> None:
        """Before an evaluation of this role's network at this noise level, which is asked for only where it matters."""
        played = network(self.pair.base, self.pair.distilled, role)
        for (applied, on), counted in zip(self.controls, self.calls, strict=True):
            now = applied.on(role, 0.0 if applied.window is None else sigma())
            for one in on:
                if one.network is played:
                    one.scale(applied.scale if now else 0.0)
            counted[role] += now

    def facts(self) -> list[dict[str, Any]]:
        """Each control as it was applied, with "calls": in how many of each role's denoiser calls it was on."""
        pairs = zip(self.controls, self.calls, strict=True)
        return [applied.facts() | {"calls": dict(counted)} for (applied, _), counted in pairs]


@contextmanager
def steer(pair: Pair, controls: Sequence[Applied], *, roles: Sequence[str]) -> Iterator[Steering]:
    """Put controls on those of a pair's networks that these roles need, each off until `Steering.use`; as `attach` does."""
    with ExitStack() as stack:
        put = []
        for one in controls:
            wanted = _networks(pair, [role for role in roles if one.segment in ("both", role)])
            put.append((one, stack.enter_context(_everywhere(wanted, one.control))[0]))
        yield Steering(pair, put)


@contextmanager
def _everywhere(networks: Mapping[str, torch.nn.Module], control: Control) -> Iterator[tuple[list[Attached], Proof]]:
    """The control on each network, at scale 0, and the proof."""
    with ExitStack() as stack:
        found = [stack.enter_context(_proved(module, control)) for module in networks.values()]
        changes = tuple(change for _, change in found)
        proof = Proof(control.name, tuple(networks), len(control.modules), changes, control.left_out)
        yield [on for on, _ in found], proof


@contextmanager
def _proved(module: torch.nn.Module, control: Control) -> Iterator[tuple[Attached, float]]:
    """The control on one network, at scale 0, and how much it changes the network's answer at scale 1."""
    plain = answer(module)
    with attached(module, control) as on:
        off = answer(module)
        on.scale(1.0)
        strong = answer(module)
        on.scale(0.0)
        if not torch.equal(off, plain):
            raise RuntimeError(
                f"control {control.name!r} changes the {type(module).__name__} at scale 0: please report it"
            )
        change = float((strong - plain).norm() / plain.norm())
        if not change > 0:
            raise ValueError(
                f"control {control.name!r} matches {len(control.modules)} modules of the {type(module).__name__}, and its output "
                "at scale 1 is the same as without: is it untrained, or does the network pass these modules by?"
            )
        yield on, change


def _networks(target: Any, roles: Sequence[str] = ("base", "distilled")) -> dict[str, torch.nn.Module]:
    """The different networks of a target by name; a pair's by role, of these roles."""
    if not isinstance(target, Pair):
        return {type(target).__name__: denoiser(target)}
    found = {role: network(target.base, target.distilled, role) for role in roles}
    return {role: module for role, module in found.items() if role == roles[0] or module is not found[roles[0]]}
