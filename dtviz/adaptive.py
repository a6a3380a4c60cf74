"""When a hybrid hands over, decided while it runs: from the plans that the base makes, and what the student makes of them.

adaptive = Adaptive("change", (0.4, 0.2))     # after k = 1 if its signal is at most .4, after k = 2 at most .2, else after 3
trace = dtviz.generate(pair, "dog face", method="adaptive", adaptive=adaptive, batch_size=8, seeds=range(8))
trace.provenance["k"], trace.provenance["signals"]      # 2, {"1": [0.52, ...], "2": [0.17, ...]}, one a sample
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch


def change(x0: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """How far each plan moved in its last step, |x̂0 - before| / |x̂0|: (sample,), from x̂0 of (sample, ...).

    >>> change(torch.full((1, 4), 2.0), torch.full((1, 4), 1.0))
    tensor([0.5000])
    """
    x0, before = x0.flatten(1), before.flatten(1)
    return (x0 - before).norm(dim=1) / x0.norm(dim=1)


def disagreement(x0: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How far the student's plan of the same sample is from the base's, |other - x̂0| / |x̂0|: (sample,)."""
    return change(x0, other)


def dispersion(x0: torch.Tensor) -> torch.Tensor:
    """How far each plan is from those of the other samples, (sample,); the mean is the share of power that is not common.

    n / (n - 1) |x̂0 - mean|² / mean |x̂0|²: of equal plans 0, of unrelated ones 1 on average; unbiased. nan for one sample.

    >>> dispersion(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([1., 1.])
    """
    flat = x0.flatten(1)
    n = len(flat)
    if n < 2:
        return torch.full((n,), math.nan)
    away = (flat - flat.mean(dim=0)).square().sum(dim=1)
    return n / (n - 1) * away / flat.square().sum(dim=1).mean()


# Whether one hands over at a signal of at most its threshold, or of at least: a plan that has settled, plans that differ.
SIGNALS = {"change": True, "disagreement": True, "dispersion": False}


@dataclass(frozen=True)
class Adaptive:
    """After which of the student's steps a hybrid hands over.

    Attributes:
        signal: "change", of the base's plan in its last step; "disagreement", of student and base about the plan, at the
            cost of one evaluation of the student each time it is asked; both hand over when the mean over the batch is at
            most the threshold. "dispersion", of a batch's plans, hands over at the threshold or above.
        thresholds: one for k = 1, 2, ...; where none is met the hybrid hands over one step after the last of them.

        dtviz.generate(pair, "dog face", method="adaptive", adaptive=dtviz.Adaptive("change", (0.4, 0.2)))
    """

    signal: str
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"signal={self.signal!r} is not one of {', '.join(SIGNALS)}")
        if not self.thresholds or any(math.isnan(value) for value in self.thresholds):
            raise ValueError(f"thresholds={self.thresholds} must hold one number for each of k = 1, 2, ...")

    @property
    def ks(self) -> range:
        """All k that may come out."""
        return range(1, len(self.thresholds) + 2)

    def met(self, k: int, value: float) -> bool:
        """Whether a signal of this value ends the base's part after k."""
        threshold = self.thresholds[k - 1]
        return value <= threshold if SIGNALS[self.signal] else value >= threshold


class Parting:
    """Plans of calls that begin alike, one for each k: decides, where a shorter one ends the base's part, whether to take it.

    Args:
        adaptive: the signal and its thresholds.
        branches: each k's calls, with `role`.

    Attributes:
        last: the largest k.
        k: after which the base's part ended; the largest as long as none was taken.
        signals: what was seen of each sample, for each k that was asked about.

    Raises:
        ValueError: two k end the base's part at the same call, or there is no call before it to see a change.
    """

    def __init__(self, adaptive: Adaptive, branches: Mapping[int, Sequence]) -> None:
        self.adaptive, self.branches = adaptive, branches
        self.ends = {max(i for i, call in enumerate(plan) if call.role == "base"): k for k, plan in branches.items()}
        if len(self.ends) < len(branches):
            raise ValueError(
                f"base_steps are too few to tell k={min(branches)} to {max(branches)} apart: they share a step"
            )
        if adaptive.signal == "change" and 0 in self.ends:
            raise ValueError(
                "signal='change' compares two base steps, and k=1 has one: give matched-sigma, or base_steps"
            )
        self.last = self.k = max(branches)
        self.before: torch.Tensor | None = None
        self.signals: dict[int, list[float]] = {}

    @property
    def longest(self) -> Sequence:
        """The plan of the largest k, which runs as long as no other is taken."""
        return self.branches[self.last]

    def probe(self, index: int):
        """The student's coming call, if its plan of the sample of call `index` is asked for."""
        k = self._asked(index)
        return None if k is None or self.adaptive.signal != "disagreement" else self.branches[k][index + 1]

    def decide(self, index: int, x0: torch.Tensor, theirs: torch.Tensor | None) -> Sequence:
        """The plan to go on with; x̂0 of call `index` by the base, (sample, ...), and by the student where it was asked."""
        k = self._asked(index)
        if k is not None:
            match self.adaptive.signal:
                case "disagreement":
                    seen = disagreement(x0, theirs)
                case "change":
                    seen = change(x0, self.before)
                case _:
                    seen = dispersion(x0)
            self.signals[k] = seen.tolist()
            if self.adaptive.met(k, float(seen.mean())):
                self.k = k
        self.before = x0
        return self.branches[self.k]

    def _asked(self, index: int) -> int | None:
        """The k that could end the base's part at this call."""
        k = self.ends.get(index)
        return k if k != self.last and self.k == self.last else None
