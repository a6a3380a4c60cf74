"""What `generate` is asked for: checked, each error naming argument, value and what is allowed, and the pair's own filled in.

seeds, prompts = drawn(pair, "dog face", "hybrid", seeds=range(8), handover=None)
steps = count(pair, "steps", None)      # the pair's
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from ..adaptive import Adaptive
from ..controls import Applied
from ..networks import embeds_guidance, network
from ..pairs import HANDOVERS, Pair
from .plan import Scale

CONVENTIONS = ("diffusers", "formula")
ROLES = {  # of each method: whose networks play
    "base": ("base",),
    "distilled": ("distilled",),
    "hybrid": ("base", "distilled"),
    "skip": ("distilled",),
    "adaptive": ("base", "distilled"),
}
METHODS = tuple(ROLES)


def drawn(
    pair: Pair, prompt: str | Sequence[str], method: str, seeds: Iterable[int], handover: str | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The seeds, and the prompt of each."""
    if not isinstance(pair, Pair):
        raise ValueError(f"pair is a {type(pair).__name__}: give what dtviz.load(name) or dtviz.Pair(...) returns")
    texts = (prompt,) if isinstance(prompt, str) or not isinstance(prompt, Sequence) else tuple(prompt)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"prompt={text!r} must be a text that is not empty, or a list of such, one for each seed")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not one of {', '.join(METHODS)}")
    if handover is not None and handover not in HANDOVERS:
        raise ValueError(f"handover={handover!r} is not one of {', '.join(HANDOVERS)}")
    try:
        chosen = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        raise ValueError(f"seeds={seeds!r} must be integers in a list or range; one sample a seed") from None
    one = isinstance(prompt, str)
    if not chosen or min(chosen) < 0 or (one and len(set(chosen)) != len(chosen)):
        raise ValueError(f"seeds={chosen} must be one or more different integers, none negative")
    if not one and len(texts) != len(chosen):
        raise ValueError(f"prompt has {len(texts)} texts for {len(chosen)} seeds: give one text, or one for each seed")
    return chosen, texts * len(chosen) if one else texts


def check_adaptive(pair: Pair, adaptive: Adaptive | None, steps: int, seeds: int, size: int, handed: str) -> None:
    """Refuse what method "adaptive" cannot do."""
    if not isinstance(adaptive, Adaptive):
        raise ValueError(
            f"adaptive={adaptive!r}: method 'adaptive' takes a dtviz.Adaptive, with its signal and thresholds"
        )
    if len(adaptive.ks) >= steps:
        raise ValueError(f"thresholds={adaptive.thresholds} must be at most {steps - 2} for {steps} student steps")
    if seeds > size:
        raise ValueError(f"batch_size={size} is less than the {seeds} seeds, for which 'adaptive' decides together")
    if adaptive.signal == "dispersion" and seeds < 2:
        raise ValueError(f"signal='dispersion' compares the samples of a batch: give two seeds or more, not {seeds}")
    if handed != "x0":
        raise ValueError(f"handed={handed!r}: method 'adaptive' hands over the base's plan, 'x0'")
    if not hasattr(type(pair.pipeline), "interrupt"):
        raise NotImplementedError(f"{type(pair.pipeline).__name__} cannot be interrupted, as an early hand-over needs")


def check_controls(controls: Sequence[Applied], method: str) -> None:
    """Refuse what is no control, or one for steps that the method has not."""
    for applied in controls:
        if not isinstance(applied, Applied):
            raise ValueError(
                f"controls holds a {type(applied).__name__}: each must be what Control.at gives, as in [smile.at(2.0)]"
            )
        absent = {"base": "distilled", "distilled": "base", "skip": "base"}.get(method)
        if applied.segment == absent:
            raise ValueError(
                f"segment={absent!r} of control {applied.control.name!r}: method {method!r} has no such steps"
            )


def count(pair: Pair, name: str, value: int | None) -> int:
    """A number of steps or samples, the pair's own for None."""
    if value is None:
        return getattr(pair, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{name}={value!r} must be an integer of at least 1, or None for the pair's {getattr(pair, name)}"
        )
    return value


def unguided(pair: Pair) -> float:
    """The base's guidance scale that means none: an embedded one knows no 0."""
    return 1.0 if embeds_guidance(pair.base) else 0.0


def scale(pair: Pair, role: str, asked: float | Sequence[float] | None, usual: float) -> Scale:
    """A role's guidance, one number or one a step, the usual for None."""
    scales = usual if asked is None else tuple(asked) if isinstance(asked, Sequence) else asked
    lowest = min(scales, default=0) if isinstance(scales, tuple) else scales
    embedded = embeds_guidance(network(pair.base, pair.distilled, role))
    if not lowest >= (1 if embedded and not pair.published else 0):
        name = "guidance" if role == "distilled" else "base_guidance"
        least = "1, the least this network was trained for" if lowest >= 0 else "0"
        raise ValueError(f"{name}={asked} must be at least {least}")
    return scales
