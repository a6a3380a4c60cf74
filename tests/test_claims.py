"""dtviz.claims against scipy's tests and correction, the paper's own Table 3, and scenarios with known truth."""

import numpy as np
import pytest
from scipy import stats

from dtviz import table
from dtviz.claims import Comparison, compare, pseudovalues
from dtviz.diversity import PairedTest, mean_interval
from dtviz.quality import frechet_distance

PAPER = table.golden("table3").query("prompt != 'Average'")


def comparison(mean: float, p: float, *, n: int = 36) -> Comparison:
    return Comparison("a - b", PairedTest(mean, mean - 0.0104, mean + 0.0104, p / 3, n, "exact"), p)


def test_every_comparison_against_scipy():
    """p by enumeration of the sign flips, the interval by scipy's paired t, Holm's correction by its definition."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(shift, 0.3, 8) for name, shift in (("a", 0.5), ("b", 0.2), ("c", 0.0))}
    named = {f"{x} - {y}": (values[x], values[y]) for x, y in ("ab", "ac", "bc")}
    found = compare(named)
    raw = {}
    for name, (a, b) in named.items():
        flips = stats.permutation_test(
            (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        raw[name] = flips.pvalue
        interval = stats.ttest_rel(a, b).confidence_interval()
        test = found[name].test
        # 1e-12: sums of eight numbers of size one
        assert (test.mean, test.p) == pytest.approx((np.mean(a - b), flips.pvalue), abs=1e-12)
        assert (test.low, test.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    ordered = sorted(raw, key=raw.get)
    stepped = [(3 - rank) * raw[name] for rank, name in enumerate(ordered)]
    for rank, name in enumerate(ordered):
        assert found[name].p == pytest.approx(min(1, max(stepped[: rank + 1])), abs=1e-12)
    assert list(found) == list(named) == [one.name for one in found.values()]


def test_the_papers_own_table_cannot_show_its_claims():
    """Five prompts: "exceeds the base" has p = .44, "exceeds the student" the smallest p there is, .0625."""
    found = compare(
        {f"hybrid - {other}": (PAPER["hybrid"], PAPER[other]) for other in ("base", "distilled")}  # of each prompt
    )
    base, student = found.values()
    assert (base.test.p, student.test.p) == (0.4375, 0.0625)
    assert (base.p, student.p) == (0.4375, 0.125)
    assert str(base) == "hybrid - base: +0.012 [-0.028, +0.053], p = 0.44"
    assert base.verdict() == student.verdict() == "cannot be shown with 5 prompts"


def test_a_known_difference_holds_one_way_and_not_the_other():
    noise = np.random.default_rng(1).normal(0, 0.01, (2, 12))
    found = compare({"more - less": (0.3 + noise[0], 0.2 + noise[1]), "same": (noise[0], noise[0])})
    assert found["more - less"].verdict() == "holds"
    assert found["more - less"].verdict(sign=-1) == "does not hold"
    assert found["same"].verdict() == found["same"].verdict(sign=-1) == "is not shown"
    assert found["more - less"].p == 2 * 2 / 2**12  # one of two tests, all twelve the same way


@pytest.mark.parametrize(
    ("mean", "p", "n", "sign", "verdict", "found"),
    [
        (0.2, 0.049, 36, 1, "holds", "higher"),
        (-0.2, 0.049, 36, 1, "does not hold", "lower"),
        (-0.2, 0.049, 36, -1, "holds", "lower"),
        (0.2, 0.05, 36, 1, "is not shown", "no difference is shown"),
        (0.2, 0.05, 6, -1, "is not shown", "no difference is shown"),
        (0.2, 0.0625, 5, 1, "cannot be shown with 5 prompts", "no difference is shown"),
    ],
)
def test_the_words(mean, p, n, sign, verdict, found):
    one = comparison(mean, p, n=n)
    assert one.verdict(sign=sign) == verdict
    assert one.conclude("A claim", sign=sign) == f"A claim: {verdict} ({mean:+.3f}, p = {p:.2g})."
    assert one.direction() == f"a - b: {found} ({mean:+.3f}, p = {p:.2g})."
    assert str(one) == f"a - b: {mean:+.3f} [{mean - 0.0104:+.3f}, {mean + 0.0104:+.3f}], p = {p:.2g}"


def test_more_tests_ask_for_more():
    """The same difference among twenty others that are nothing is no longer shown."""
    a, b = np.arange(6.0) + 1, np.zeros(6)
    assert compare({"it": (a, b)})["it"].verdict() == "holds"
    others = {f"nothing {i}": (b, b) for i in range(20)}
    assert compare({"it": (a, b)} | others)["it"].verdict() == "is not shown"


def test_nothing_to_compare():
    assert compare({}) == {}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="same prompts"):
        compare({"x": ([1.0], [1.0, 2.0])})
    with pytest.raises(ValueError, match="sign=0 must be 1"):
        comparison(0.2, 0.01).verdict(sign=0)
    for bad in ([], [np.ones((1, 2, 1))], [np.ones((3, 1, 1)), np.ones((2, 1, 1))]):
        with pytest.raises(ValueError, match="at least two in each"):
            pseudovalues(np.mean, *bad)


def test_pseudovalues_of_a_mean_are_the_prompts_own_and_of_a_variance_are_unbiased():
    rows = np.random.default_rng(2).normal(size=(7, 1))
    np.testing.assert_allclose(pseudovalues(np.mean, list(rows)), rows[:, 0], atol=1e-14)
    assert pseudovalues(np.var, list(rows)).mean() == pytest.approx(rows.var(ddof=1), rel=1e-12)  # Quenouille 1956


def test_pseudovalues_of_a_frechet_distance_against_a_loop_and_a_known_shift():
    """Samples that are the drawings moved by 2: the distance is 4, whichever prompt is left out."""
    rng = np.random.default_rng(3)
    real = [rng.normal(i, 1, (5, 3)) for i in range(4)]
    moved = [array + np.array([2, 0, 0]) for array in real]
    np.testing.assert_allclose(pseudovalues(frechet_distance, moved, real), 4, rtol=1e-9)
    made = [rng.normal(i, 2, (6, 3)) for i in range(4)]
    whole = frechet_distance(np.vstack(made), np.vstack(real))
    for i, found in enumerate(pseudovalues(frechet_distance, made, real)):
        rest = [j for j in range(4) if j != i]
        without = frechet_distance(np.vstack([made[j] for j in rest]), np.vstack([real[j] for j in rest]))
        assert found == pytest.approx(4 * whole - 3 * without, rel=1e-9)


def test_the_pseudovalues_interval_covers_a_variance():
    """Normal values, whose true variance is 1: the nominal 95% interval holds it in about 90% of runs of 30 (a known
    shortfall of the jackknife for skewed statistics), and no less."""
    rng, runs = np.random.default_rng(4), 400
    held = 0
    for _ in range(runs):
        interval = mean_interval(pseudovalues(np.var, list(rng.normal(size=(30, 1)))))
        held += interval.low <= 1 <= interval.high
    assert 0.86 <= held / runs <= 0.97  # the standard error of a share of .9 in 400 runs is .015
