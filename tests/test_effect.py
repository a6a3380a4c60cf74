"""dtviz.control.effects against closed forms, brute force, scipy's Page test, and simulations with known truth."""

import numpy as np
import pytest
from scipy import stats

from dtviz.control.effects import effect, outside, ratio, sweep
from dtviz.diversity import holm, paired_test


def test_percent_is_table_1s_number():
    """100 images of one score before and another after: a plain percentage."""
    table = effect({"base": (np.full((3, 4), 0.25), np.full((3, 4), 0.301))})
    assert table["percent"].item() == pytest.approx(20.4)
    assert table[["percent_low", "percent_high"]].values.tolist() == [pytest.approx([20.4, 20.4])]
    assert (table["prompts"].item(), table["seeds"].item()) == (3, 4)
    assert np.isnan(table["transfer"].item())


def test_effect_is_made_of_tests_over_prompts():
    rng = np.random.default_rng(0)
    scores = {name: (rng.normal(1, 0.1, (8, 5)), rng.normal(1.2, 0.1, (8, 5))) for name in ("base", "a", "b")}
    table = effect(scores).set_index("model")
    p = []
    for name, (before, after) in scores.items():
        test = paired_test(after.mean(axis=1), before.mean(axis=1))
        row = table.loc[name]
        assert (row["difference"], row["difference_low"], row["difference_high"]) == (test.mean, test.low, test.high)
        assert row["percent"] == pytest.approx(100 * (after.mean() / before.mean() - 1))
        p.append(test.p)
    np.testing.assert_array_equal(table["p"], holm(p))
    change = {name: (after - before).mean(axis=1) for name, (before, after) in scores.items()}
    expected = ratio(change["a"], change["base"])
    found = table.loc["a"]
    transfer = (found["transfer"], found["transfer_low"], found["transfer_high"])
    assert transfer == pytest.approx((expected.value, expected.low, expected.high))
    assert effect(scores, base="nobody")["transfer"].isna().all()


def test_over_seeds_is_over_prompts_of_the_transpose():
    """The two kinds of sample change places; means of everything stay."""
    rng = np.random.default_rng(9)
    scores = {name: (rng.normal(1, 0.1, (4, 12)), rng.normal(1.2, 0.1, (4, 12))) for name in ("base", "a")}
    found = effect(scores, over="seeds")
    turned = effect({name: (before.T, after.T) for name, (before, after) in scores.items()})
    columns = turned.columns.drop(["prompts", "seeds", "over"])
    np.testing.assert_allclose(found[columns[1:]].to_numpy(float), turned[columns[1:]].to_numpy(float))
    assert found[["prompts", "seeds", "over"]].values.tolist() == [[4, 12, "seeds"]] * 2
    curve = rng.normal(size=(3, 4, 12))
    one, two = sweep([0, 1, 2], curve, over="seeds"), sweep([0, 1, 2], curve.transpose(0, 2, 1))
    np.testing.assert_allclose(one.table, two.table)
    assert (one.p, one.rising) == (two.p, two.rising)
    with pytest.raises(ValueError, match="over='images' is not one of prompts, seeds"):
        effect(scores, over="images")


def test_a_percentage_of_nothing_is_not_given():
    table = effect({"base": (np.full((2, 2), -0.1), np.full((2, 2), 0.2))})
    assert table[["percent", "percent_low", "percent_high"]].isna().all(axis=None)
    assert table["difference"].item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "must be of one model or more"),
        ({"base": ([1.0], [1.0])}, r"before \(1,\) and after \(1,\) must be \(prompt, seed\)"),
        ({"base": ([[1.0]], [[np.nan]])}, "the same and finite"),
        ({"base": ([[1.0]], [[1.0]]), "a": ([[1.0], [1.0]], [[1.0], [1.0]])}, "all of the same prompts and seeds"),
    ],
)
def test_effect_refuses(scores, message):
    with pytest.raises(ValueError, match=message):
        effect(scores)


def test_fieller_is_the_ratios_that_a_t_test_would_not_refuse():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.5, 0.3, 9), rng.normal(1.0, 0.3, 9)
    found = ratio(a, b)
    for edge in (found.low, found.high):  # the p of a - r b is .05 at both ends, and larger within
        assert stats.ttest_1samp(a - edge * b, 0).pvalue == pytest.approx(0.05, abs=1e-9)
    inside = np.linspace(found.low, found.high, 50)[1:-1]
    assert all(stats.ttest_1samp(a - r * b, 0).pvalue > 0.05 for r in inside)
    for r in (found.low - 0.01, found.high + 0.01):
        assert stats.ttest_1samp(a - r * b, 0).pvalue < 0.05


def test_fieller_of_a_known_number_is_students_interval():
    """b without spread: mean(a) / b with t's interval over b."""
    a = np.array([1.0, 2.0, 4.0, 3.0])
    found = ratio(a, np.full(4, 2.0))
    t = stats.t.interval(0.95, 3, a.mean() / 2, stats.sem(a) / 2)
    assert (found.low, found.high) == pytest.approx(t)


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
    with pytest.raises(ValueError, match="confidence = 95"):
        ratio(a, b, confidence=95)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_transfer_interval_covers_what_it_promises(noise):
    """12 prompts, effects that share the prompts' differences: 95% for any size of the base's effect, where the jackknife fails."""
    rng, truth, hits, jackknife, runs = np.random.default_rng(3), 0.7, 0, 0, 1000
    t = stats.t.ppf(0.975, 11)
    for _ in range(runs):
        shared = rng.normal(0.5, noise, 12)
        b = shared + rng.normal(0, noise, 12)
        a = truth * 0.5 + rng.normal(0, noise, 12) + 0.5 * (shared - 0.5)
        found = ratio(a, b)
        hits += found.low <= truth <= found.high
        without = np.array([np.delete(a, i).mean() / np.delete(b, i).mean() for i in range(12)])
        error = np.sqrt(11 / 12 * ((without - without.mean()) ** 2).sum())
        jackknife += abs(a.mean() / b.mean() - truth) <= t * error
    # 1000 runs: a standard error of .7%. Where it is infinite it always covers, so that it can only promise too little.
    assert 0.935 < hits / runs < 0.985
    assert abs(hits / runs - 0.95) < abs(jackknife / runs - 0.95) + 0.02


def test_sweep_is_pages_trend_rescaled():
    rng = np.random.default_rng(4)
    scales = [-2, -1, 0, 1, 2]
    scores = rng.normal(0, 1, (5, 7, 1)) + 0.4 * np.arange(5)[:, None, None]
    found = sweep(scales, scores)
    page = stats.page_trend_test(scores[..., 0].T, ranked=False)
    m, n = 7, 5
    expected_l = m * (n * (n + 1) ** 2 / 4 + found.spearman.value * n * (n**2 - 1) / 12)
    assert page.statistic == pytest.approx(expected_l)
    rho = [stats.spearmanr(scales, scores[:, i, 0]).statistic for i in range(7)]
    assert found.spearman.value == pytest.approx(np.mean(rho))
    assert found.p == paired_test(rho, np.zeros(7)).p


def test_sweep_of_known_curves():
    scales = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    line = np.broadcast_to(scales[:, None, None], (5, 6, 3))
    found = sweep(scales, line)
    assert (found.monotone, found.rising, found.spearman.value, found.p) == (True, 1.0, 1.0, 2 / 2**6)
    np.testing.assert_allclose(found.table["value"], scales)
    np.testing.assert_allclose(found.table["step"][1:], 1.0)
    assert found.table["p"][1:].tolist() == [4 * 2 / 2**6] * 4
    falling = sweep(scales, -line)
    assert (falling.monotone, falling.rising, falling.spearman.value) == (False, 0.0, -1.0)
    hill = sweep(scales, -np.abs(line))
    assert (hill.monotone, hill.rising, round(hill.spearman.value, 12)) == (False, 0.5, 0.0)
    flat = sweep(scales, np.ones((5, 6, 3)))
    assert (flat.monotone, flat.rising, flat.spearman.value, flat.p) == (False, 0.0, 0.0, 1.0)


def test_sweep_of_noise_shows_a_trend_as_often_as_it_promises():
    rng = np.random.default_rng(5)
    found = [sweep([0, 1, 2, 3, 4], rng.normal(size=(5, 8, 2))) for _ in range(200)]
    assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(0.04, abs=0.03)  # exact tests of 8 are at most .05
    assert np.mean([one.rising for one in found]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("scales", "scores", "message"),
    [
        ([0, 1], np.zeros((2, 1, 1)), "must be three or more"),
        ([0, 2, 1], np.zeros((3, 1, 1)), "each above the one before"),
        ([0, 1, 2], np.zeros((3, 4)), r"must be \(3 scales, prompt, seed\)"),
        ([0, 1, 2], np.full((3, 1, 1), np.inf), "all finite"),
    ],
)
def test_sweep_refuses(scales, scores, message):
    with pytest.raises(ValueError, match=message):
        sweep(scales, scores)


def test_outside_of_an_edit_in_one_place_and_of_one_everywhere():
    rng = np.random.default_rng(6)
    plain = rng.uniform(0.2, 0.8, (10, 3, 8, 8))
    mouth = plain.copy()
    mouth[:, :, 5:, 2:6] += 0.2
    np.testing.assert_allclose(outside(plain, mouth), 0, atol=1e-15)
    np.testing.assert_allclose(outside(plain, mouth, share=1.0), 0.2 * 12 / 64)  # everywhere: 12 of 64 pixels by .2
    np.testing.assert_allclose(outside(plain, plain + 0.1), 0.1)
    # the same edit, and one image that is another picture altogether: it cannot hide behind the others' mask
    mouth[0] = rng.uniform(0.2, 0.8, (3, 8, 8))
    found = outside(plain, mouth)
    assert found[0] > 0.1
    np.testing.assert_allclose(found[1:], 0, atol=1e-15)


def test_outside_does_not_choose_small_numbers_from_noise():
    """Changes that are noise are as large outside as anywhere; chosen by an image's own change they would be half as large."""
    rng = np.random.default_rng(7)
    before, after = np.zeros((200, 3, 8, 8)), rng.normal(0, 0.1, (200, 3, 8, 8))
    everywhere = outside(before, after, share=1.0).mean()
    assert outside(before, after).mean() == pytest.approx(everywhere, rel=0.02)
    own = np.sort(np.abs(after).mean(axis=1).reshape(200, -1), axis=1)[:, :32].mean()
    assert own < 0.75 * everywhere


def test_outside_against_a_loop():
    rng = np.random.default_rng(8)
    before, after = rng.random((4, 3, 3, 2)), rng.random((4, 3, 3, 2))
    found = outside(before, after, share=0.4)
    for i in range(4):
        change = np.abs(after - before).mean(axis=1).reshape(4, 6)
        others = np.delete(change, i, axis=0).mean(axis=0)
        assert found[i] == pytest.approx(change[i][np.argsort(others)[:2]].mean())
    with pytest.raises(ValueError, match="share = 0"):
        outside(before, after, share=0.0)
    with pytest.raises(ValueError, match="n >= 2"):
        outside(before[:1], after[:1])
