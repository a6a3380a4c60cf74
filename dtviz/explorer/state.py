"""What an explorer shows, without any widget: how its samples are made, what is looked at, and the code that makes it again.

state = State(prompt="dog face", seeds=(0, 1), sides=(Side(method="hybrid"), Side(method="base")), step=2)
print(state.code('dtviz.load("emoji-dmd")'))
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

METHODS = ("base", "distilled", "hybrid", "skip")
# What of a `Side` decides how its method runs; the rest is left to the pair
_MATTERS = {
    "base": ("base_steps", "base_guidance"),
    "distilled": ("steps", "guidance"),
    "hybrid": ("k", "handover", "steps", "guidance", "base_steps", "base_guidance"),
    "skip": ("k", "steps", "guidance"),
}
# What `generate` can do beside, as a `Side` leaves it
_USUAL = {"convention": "diffusers", "handed": "x0", "scaled": True, "cads": 0.0, "particles": 0.0}


@dataclass(frozen=True, kw_only=True)
class Side:
    """How the samples of one side are made: arguments of `generate`; None stands for the pair's own."""

    method: str = "distilled"
    k: int = 1
    handover: str | None = None
    steps: int | None = None
    guidance: float | None = None
    base_steps: int | None = None
    base_guidance: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not one of {', '.join(METHODS)}")

    @classmethod
    def of(cls, provenance: dict[str, Any]) -> Side | None:
        """The side that made a trace, if these settings are all that it takes to make it again; None otherwise.

        >>> Side.of({"method": "hybrid", "k": 2, "steps": 4, "handed": "x0"})
        Side(method='hybrid', k=2, handover=None, steps=4, guidance=None, base_steps=None, base_guidance=None)
        >>> Side.of({"method": "hybrid", "k": 2, "handed": "zero"}) is None
        True
        """
        told = {f.name: provenance[f.name] for f in fields(cls) if provenance.get(f.name) is not None}
        plain = all(provenance.get(name, usual) in (None, usual) for name, usual in _USUAL.items())
        listed = any(isinstance(value, list | tuple) for value in told.values())  # a scale for each step
        return cls(**told) if plain and not listed and told.get("method") in METHODS else None

    def settings(self) -> dict[str, Any]:
        """The arguments of `generate` that this side's method uses and that are not left to the pair.

        >>> Side(method="base", base_steps=8, guidance=2.0).settings()
        {'method': 'base', 'base_steps': 8}
        """
        chosen = {name: getattr(self, name) for name in _MATTERS[self.method]}
        return {"method": self.method} | {name: value for name, value in chosen.items() if value is not None}

    def uses(self, name: str) -> bool:
        """Whether this side's method has a use for a setting.

        >>> Side(method="base").uses("k")
        False
        """
        return name in _MATTERS[self.method]

    @property
    def title(self) -> str:
        """The settings in words.

        >>> Side(method="hybrid", base_guidance=3.0).title
        'hybrid, k=1, base guidance 3'
        """
        return ", ".join(_words(name, value) for name, value in self.settings().items())


@dataclass(frozen=True, kw_only=True)
class State:
    """All that decides what is on screen.

    Attributes:
        prompt, seeds, sides: what was generated, or is to be; one or two sides.
        step: the position of the slider, from 0; the number of steps of the longer side for the final images.
        seed: the sample that is shown large, one of `seeds`; None for the first.
        box: (top, left, bottom, right) of a region in pixels of the image, bottom and right excluded; None for none.
        words: texts whose timeline is drawn.
    """

    prompt: str = ""
    seeds: tuple[int, ...] = tuple(range(8))
    sides: tuple[Side, ...] = (Side(),)
    step: int = 0
    seed: int | None = None
    box: tuple[int, int, int, int] | None = None
    words: tuple[str, ...] = ()

    def code(self, pair: str, *, name: str = "explorer", files: Sequence[str] = ()) -> str:
        """Three lines of Python, below their import, that make the picture again.

        Args:
            pair: the expression that makes the pair; "None" where there are only traces.
            name: what the picture is saved as.
            files: saved traces to be read instead of generating.

        >>> print(State(prompt="dog face", seeds=(0, 1), step=3).code('dtviz.load("emoji-dmd")'))
        import dtviz
        <BLANKLINE>
        pair = dtviz.load("emoji-dmd")
        traces = [dtviz.generate(pair, "dog face", method="distilled", seeds=[0, 1], x_t=True)]
        dtviz.explore(traces, pair=pair, step=3, seed=0).save("explorer")
        """
        if files:
            made = [f"dtviz.Trace.load({_python(file)})" for file in files]
        else:
            made = [
                f"dtviz.generate(pair, {_python(self.prompt)}, {_arguments(side.settings())}, seeds={_range(self.seeds)}, x_t=True)"
                for side in self.sides
            ]
        looked: dict[str, Any] = {"step": self.step, "seed": self.seeds[0] if self.seed is None else self.seed}
        looked |= {"box": self.box} if self.box else {}
        looked |= {"words": list(self.words)} if self.words else {}
        return "\n".join(
            [
                "import dtviz",
                "",
                f"pair = {pair}",
                f"traces = [{', '.join(made)}]",
                f"dtviz.explore(traces, pair=pair, {_arguments(looked)}).save({_python(name)})",
            ]
        )


def frame_at(position: int, steps: int, longest: int) -> int:
    """The step, from 0, that a side of so many steps shows at a position of the slider; `steps` is its final image.

    Sides of different lengths are shown at the same share of their steps done, as in Figure 5.

    >>> [frame_at(position, 4, 8) for position in range(9)]
    [0, 0, 1, 1, 2, 2, 3, 3, 4]
    """
    if not 0 <= position <= longest:
        raise ValueError(f"step={position} must be from 0 to {longest}, which is the final image")
    return steps if position == longest else math.ceil((position + 1) / longest * steps) - 1


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds as people write them.

    ValueError: anything but numbers and ranges, none at all, or one given twice.

    >>> read_seeds("0-3, 7")
    (0, 1, 2, 3, 7)
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if found is None:
            raise ValueError(f"seeds={text!r} must be numbers and ranges, such as 0-7 or 1, 5, 20-23")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first >= 1000:
            raise ValueError(f"seeds={text!r} has a range of more than 1000 seeds: an explorer shows them all")
        seeds += range(first, last + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={text!r} must be different seeds, each once, the smaller end of a range first")
    return tuple(seeds)


def write_seeds(seeds: Sequence[int]) -> str:
    """The inverse of `read_seeds`.

    >>> write_seeds((0, 1, 2, 3, 7))
    '0-3, 7'
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def read_box(text: str) -> tuple[int, int, int, int] | None:
    """A region as people write it; "" is none. ValueError: not four numbers.

    >>> read_box("0, 8, 32, 64")
    (0, 8, 32, 64)
    """
    if not text.strip():
        return None
    parts = re.split(r"[\s,]+", text.strip("()[] \t"))
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"region={text!r} must be four whole numbers, in pixels: top, left, bottom, right")
    return tuple(map(int, parts))


def read_number(text: str, name: str, kind: type) -> int | float | None:
    """A setting as people write it; "" is the pair's own, None. ValueError: no number, or none of this kind.

    >>> read_number("7.5", "guidance", float), read_number("", "steps", int)
    (7.5, None)
    """
    if not text.strip():
        return None
    try:
        return kind(text)
    except ValueError:
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={text!r} must be {whole}, or empty for the pair's own") from None


def check_box(box: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    """The box, if it lies in an image of this size and has at least one pixel. ValueError otherwise."""
    top, left, bottom, right = box
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(
            f"box={tuple(box)} must be top < bottom <= {height} and left < right <= {width}, none negative"
        )
    return tuple(box)


def _words(name: str, value: Any) -> str:
    if isinstance(value, str):  # the method, the hand-over
        return value
    return f"k={value}" if name == "k" else f"{name.replace('_', ' ')} {value:g}"


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_python(value)}" for name, value in values.items())


def _python(value: Any) -> str:
    """A value as Python writes it, texts in double quotes where that is simple."""
    if isinstance(value, list):
        return f"[{', '.join(map(_python, value))}]"
    if isinstance(value, str) and value.isprintable() and not set('"\\') & set(value):
        return f'"{value}"'
    return repr(value)


def _range(seeds: Sequence[int]) -> str:
    """Seeds as a range where they are one."""
    one = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    return (
        (f"range({seeds[-1] + 1})" if seeds[0] == 0 else f"range({seeds[0]}, {seeds[-1] + 1})")
        if one
        else str(list(seeds))
    )
