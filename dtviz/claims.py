"""Claims about methods, put to the test: paired comparisons across prompts, read together, and what may be concluded.

    found = compare({"hybrid - base": (hybrid, base), "hybrid - student": (hybrid, student)})   # one value a prompt each
    print(found["hybrid - base"])                                 # hybrid - base: -0.144 [-0.170, -0.118], p = 2e-09
    print(found["hybrid - base"].conclude("The hybrid exceeds the base"))

Every notebook that compares methods says its results in these words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .diversity import PairedTest, holm, paired_test

LEVEL = 0.05
LEAST_PROMPTS = 6  # the smallest p of n sign flips is 2 / 2^n: .0625 for five


@dataclass(frozen=True)
class Comparison:
    """One difference a - b across prompts, among others that were tested together.

    Attributes:
        name: what is compared, such as "hybrid - base".
        test: mean of a - b, its 95% t interval, and the raw sign-flip p.
        p: the p with Holm's correction for all comparisons made together; what conclusions rest on.
    """

    name: str
    test: PairedTest
    p: float

    def __str__(self) -> str:
        """Name, mean difference, interval and corrected p, as in "hybrid - base: +0.012 [-0.028, +0.053], p = 0.44"."""
        test = self.test
        return f"{self.name}: {test.mean:+.3f} [{test.low:+.3f}, {test.high:+.3f}], p = {self.p:.2g}"

    def verdict(self, *, sign: int = 1) -> str:
        """Whether a - b has this sign: "holds", "does not hold" (it has the other), "is not shown" (p is .05 or more),
        or "cannot be shown with 5 prompts": fewer than six cannot bring p under .05, whatever they say.

        Raises:
            ValueError: sign is neither 1 (a is larger) nor -1 (a is smaller).
        """
        if sign not in (1, -1):
            raise ValueError(f"sign={sign!r} must be 1, for a claim that a is larger, or -1, that it is smaller")
        if self.p >= LEVEL:
            n = self.test.n
            return "is not shown" if n >= LEAST_PROMPTS else f"cannot be shown with {n} prompts"
        return "holds" if sign * self.test.mean > 0 else "does not hold"

    def conclude(self, claim: str, *, sign: int = 1) -> str:
        """The claim with its verdict and what it rests on, one line; `sign` as for `verdict`."""
        return f"{claim}: {self.verdict(sign=sign)} ({self._effect})."

    def direction(self) -> str:
        """Where nothing is claimed: the name, whether a is higher or lower than b, and what that rests on, one line."""
        found = "no difference is shown" if self.p >= LEVEL else "higher" if self.test.mean > 0 else "lower"
        return f"{self.name}: {found} ({self._effect})."

    @property
    def _effect(self) -> str:
        return f"{self.test.mean:+.3f}, p = {self.p:.2g}"


def compare(differences: Mapping[str, tuple]) -> dict[str, Comparison]:
    """Test every difference a - b with `diversity.paired_test`; p corrected for all of them together (Holm 1979).

    Args:
        differences: name -> (a, b), each (n,): one value a prompt, the same prompts in the same order. Give all
            differences of one study in one call: p is corrected for those and no others. None gives none.

    Raises:
        ValueError: a and b differ in length, or hold a value that is not finite.

    >>> a, b = [3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> found = compare({"a - b": (a, b)})
    >>> str(found["a - b"])
    'a - b: +4.500 [+2.537, +6.463], p = 0.031'
    >>> found["a - b"].conclude("a exceeds b")
    'a exceeds b: holds (+4.500, p = 0.031).'
    """
    if not differences:
        return {}
    tests = {name: paired_test(a, b) for name, (a, b) in differences.items()}
    corrected = holm([test.p for test in tests.values()])
    return {name: Comparison(name, test, float(p)) for (name, test), p in zip(tests.items(), corrected, strict=True)}


def pseudovalues(measure: Callable, *prompts: Sequence) -> np.ndarray:
    """What each prompt adds to a measure of all prompts together, such as an FD, so that it too can be compared.

    Tukey's (1958) jackknife pseudo-values n · whole - (n - 1) · without the prompt, of n prompts. Their mean estimates the
    measure without its bias of order 1 / n; taken as independent they have an interval (`diversity.mean_interval`) and,
    two methods' beside each other, a test (`compare`). Exact for a mean, an approximation for what is smooth.

    Args:
        measure: arrays (m, ...) -> number, called with each of `prompts` joined along the first axis.
        prompts: one sequence or more of n >= 2 arrays, a prompt each: an FD takes the samples' features and the reals'.

    Returns:
        (n,) float64, in the order of the prompts.

    Raises:
        ValueError: fewer than two prompts, or sequences of different lengths.

    >>> pseudovalues(np.mean, [[1.0, 3.0], [5.0, 7.0], [9.0, 9.0]])
    array([2., 6., 9.])
    """
    counts = {len(arrays) for arrays in prompts}
    n = min(counts, default=0)
    if len(counts) != 1 or n < 2:
        raise ValueError(
            f"prompts hold {[len(arrays) for arrays in prompts]} arrays: one a prompt, at least two in each"
        )
    whole = measure(*(np.concatenate(arrays) for arrays in prompts))
    without = [
        measure(*(np.concatenate([array for j, array in enumerate(arrays) if j != i]) for arrays in prompts))
        for i in range(n)
    ]
    return n * whole - (n - 1) * np.array(without, dtype=np.float64)
