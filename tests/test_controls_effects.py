"""controls.effects against closed forms, brute force, scipy's Page test, and simulations with known truth."""

import numpy as np
import pytest
from scipy import stats

from dtviz.controls import effect, outside, sweep
from dtviz.metrics.statistics import holm, paired_test, ratio


def test_effect_is_made_of_tests_over_prompts():
    rng = np.random.default_rng(0)
    scores = {name: (rng.normal(1, 0.1, (8, 5)), rng.normal(1.2, 0.1, (8, 5))) for name in ("base", "a", "b")}
    table = effect(scores).set_index("model")
    p = []
    for name, (before, after) in scores.items():
        test = paired_test(after.mean(axis=1), before.mean(axis=1))
        row = table.loc[name]
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (test.value, test.low, test.high)
        assert row["percent"] == pytest.approx(100 * (after.mean() / before.mean() - 1))
        p.append(test.p)
    np.testing.assert_array_equal(table["p"], holm(p))
    change = {name: (after - before).mean(axis=1) for name, (before, after) in scores.items()}
    expected = ratio(change["a"], change["base"])
    transfer = tuple(table.loc["a", ["transfer", "transfer_low", "transfer_high"]])
    assert transfer == pytest.approx((expected.value, expected.low, expected.high))
    assert effect(scores, base="nobody")["transfer"].isna().all()


def test_over_seeds_is_over_prompts_of_the_transpose():
    """The two kinds of sample change places; means of everything stay."""
    rng = np.random.default_rng(9)
    scores = {name: (rng.normal(1, 0.1, (4, 12)), rng.normal(1.2, 0.1, (4, 12))) for name in ("base", "a")}
    result = effect(scores, over="seeds")
    turned = effect({name: (before.T, after.T) for name, (before, after) in scores.items()})
    columns = turned.columns.drop(["prompts", "seeds", "over"])
    np.testing.assert_allclose(result[columns[1:]].to_numpy(float), turned[columns[1:]].to_numpy(float))
    assert result[["prompts", "seeds", "over"]].values.tolist() == [[4, 12, "seeds"]] * 2
    curve = rng.normal(size=(3, 4, 12))
    one, two = sweep([0, 1, 2], curve, over="seeds"), sweep([0, 1, 2], curve.transpose(0, 2, 1))
    np.testing.assert_allclose(one.table, two.table)
    assert (one.spearman.p, one.rising) == (two.spearman.p, two.rising)
    with pytest.raises(ValueError, match="over='images' is not one of prompts, seeds"):
        effect(scores, over="images")


def test_percent_is_table_1s_number():
    table = effect({"base": (np.full((3, 4), 0.25), np.full((3, 4), 0.301))})
    assert table[["percent", "percent_low", "percent_high"]].values.tolist() == [pytest.approx([20.4] * 3)]
    assert (table["prompts"].item(), table["seeds"].item()) == (3, 4)
    assert np.isnan(table["transfer"].item())
    negative = effect({"base": (np.full((2, 2), -0.1), np.full((2, 2), 0.2))})
    assert negative[["percent", "percent_low", "percent_high"]].isna().all(axis=None)


def test_effect_and_sweep_refuse():
    for measure, arguments, message in (
        (effect, [{}], "must be .prompt, seed., of the same ones, and finite"),
        (effect, [{"base": ([1.0], [1.0])}], r"scores have shapes \[\(1,\)\]"),
        (effect, [{"base": ([[1.0]], [[np.nan]])}], "finite"),
        (effect, [{"base": ([[1.0]], [[1.0]]), "a": ([[1.0], [1.0]], [[1.0], [1.0]])}], "of the same ones"),
        (sweep, [[0, 1], np.zeros((2, 1, 1))], "must be three or more"),
        (sweep, [[0, 2, 1], np.zeros((3, 1, 1))], "each above the one before"),
        (sweep, [[0, 1, 2], np.zeros((3, 4))], r"must be \(3 scales, prompt, seed\)"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(*arguments)


def test_fieller_is_the_ratios_that_a_t_test_would_not_refuse():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.3, 9), rng.normal(1.0, 0.3, 9)
    result = ratio(a, b)
    for edge in (result.low, result.high):  # the p of a - r b is .05 at both ends, and larger within
        assert stats.ttest_1samp(a - edge * b, 0).pvalue == pytest.approx(0.05, abs=1e-9)
    inside = np.linspace(result.low, result.high, 50)[1:-1]
    assert all(stats.ttest_1samp(a - r * b, 0).pvalue > 0.05 for r in inside)
    for r in (result.low - 0.01, result.high + 0.01):
        assert stats.ttest_1samp(a - r * b, 0).pvalue < 0.05


def test_ratio_is_unbounded_where_the_divisor_may_be_zero_and_equivariant():
    rng = np.random.default_rng(2)
    a, b = rng.normal(1, 0.2, 6), rng.normal(0, 1, 6)
    assert (ratio(a, b).low, ratio(a, b).high) == (-np.inf, np.inf)
    b = rng.normal(1, 0.2, 6)
    one, two = ratio(a, b), ratio(-3 * a, 2 * b)
    assert (two.value, two.low, two.high) == pytest.approx((-1.5 * one.value, -1.5 * one.high, -1.5 * one.low))
    assert np.isnan(ratio([1.0], [2.0]).low)
    with pytest.raises(ValueError, match="a has 2 values and b 1"):
        ratio([1.0, 2.0], [1.0])


def test_sweep_is_pages_trend_rescaled():
    rng = np.random.default_rng(4)
    scales = [-2, -1, 0, 1, 2]
    scores = rng.normal(0, 1, (5, 7, 1)) + 0.4 * np.arange(5)[:, None, None]
    result = sweep(scales, scores)
    page = stats.page_trend_test(scores[..., 0].T, ranked=False)
    m, n = 7, 5
    expected_l = m * (n * (n + 1) ** 2 / 4 + result.spearman.value * n * (n**2 - 1) / 12)
    assert page.statistic == pytest.approx(expected_l)
    rho = [stats.spearmanr(scales, scores[:, i, 0]).statistic for i in range(7)]
    assert result.spearman.value == pytest.approx(np.mean(rho))
    assert result.spearman.p == paired_test(rho, np.zeros(7)).p


def test_sweep_of_known_curves():
    scales = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    line = np.broadcast_to(scales[:, None, None], (5, 6, 3))
    result = sweep(scales, line)
    assert (result.monotone, result.rising, round(result.spearman.value, 12), result.spearman.p) == (
        True,
        1.0,
        1.0,
        2 / 2**6,
    )
    np.testing.assert_allclose(result.table["value"], scales)
    falling = sweep(scales, -line)
    assert (falling.monotone, falling.rising, round(falling.spearman.value, 12)) == (False, 0.0, -1.0)
    hill = sweep(scales, -np.abs(line))
    assert (hill.monotone, hill.rising, round(hill.spearman.value, 12)) == (False, 0.5, 0.0)
    flat = sweep(scales, np.ones((5, 6, 3)))
    assert (flat.monotone, flat.rising, flat.spearman.value, flat.spearman.p) == (False, 0.0, 0.0, 1.0)


def test_outside_of_an_edit_in_one_place_and_of_one_everywhere():
    rng = np.random.default_rng(6)
    plain = rng.uniform(0.2, 0.8, (10, 3, 8, 8))
    mouth = plain.copy()
    mouth[:, :, 5:, 2:6] += 0.2
    np.testing.assert_allclose(outside(plain, mouth), 0, atol=1e-15)
    np.testing.assert_allclose(outside(plain, plain + 0.1), 0.1)
    # the same edit, and one image that is another picture altogether: it cannot hide behind the others' mask
    mouth[0] = rng.uniform(0.2, 0.8, (3, 8, 8))
    result = outside(plain, mouth)
    assert result[0] > 0.1
    np.testing.assert_allclose(result[1:], 0, atol=1e-15)
    with pytest.raises(ValueError, match="n >= 2"):
        outside(plain[:1], mouth[:1])
