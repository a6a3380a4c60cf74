"""Adaptive hand-over looked up from fixed runs: shares that come out, thresholds of other prompts, and what chance does."""

import numpy as np
import pytest

from dtviz.diversity import mean_pairwise
from dtviz.thresholds import against_shuffled, cross_fit, decide, fit, looked_up

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("below", [True, False])
@pytest.mark.parametrize(
    "shares", [(0.25, 0.5, 0.25), (0.5, 0.5, 0.0), (0.0, 0.3, 0.7), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
)
def test_the_shares_come_out(shares, below):
    signals = RNG.normal(size=(2, 4000))
    chosen = decide(signals, thresholds=fit(signals, shares=shares, below=below), below=below)
    np.testing.assert_allclose(np.bincount(chosen, minlength=4)[1:] / 4000, shares, atol=1e-3)


def test_it_is_the_samplers_rule():
    """`Adaptive` decides call by call what `decide` looks up."""
    from dtviz import Adaptive

    for name, below in (("change", True), ("dispersion", False)):
        adaptive = Adaptive(name, (0.3, -0.2))
        signals = RNG.normal(size=(2, 50))
        expected = [next((k for k in (1, 2) if adaptive.met(k, run[k - 1])), 3) for run in signals.T]
        assert decide(signals, thresholds=adaptive.thresholds, below=below).tolist() == expected


def test_a_prompts_k_comes_from_the_others():
    """Changing one prompt's signal moves thresholds of the others, and never its own."""
    signals = RNG.normal(size=(1, 12))
    own = [fit(np.delete(signals, i, axis=1), shares=(0.5, 0.5), below=True) for i in range(12)]
    chosen = cross_fit(signals, shares=(0.5, 0.5), below=True, folds=12)
    expected = [decide(signals[:, [i]], thresholds=own[i], below=True)[0] for i in range(12)]
    assert chosen.tolist() == expected


def test_samples_may_be_decided_one_by_one():
    signals = RNG.normal(size=(2, 12, 30))
    chosen = cross_fit(signals, shares=(0.25, 0.5, 0.25), below=False)
    assert chosen.shape == (12, 30)
    np.testing.assert_allclose(np.bincount(chosen.ravel(), minlength=4)[1:] / 360, (0.25, 0.5, 0.25), atol=0.06)
    assert len(set(chosen[0])) > 1


@pytest.mark.parametrize("a_sample", [False, True])
def test_what_is_looked_up_is_the_chosen_ks_run(a_sample):
    runs = RNG.normal(size=(3, 4, 5, 2))
    chosen = RNG.integers(1, 4, size=(4, 5) if a_sample else 4)
    made = looked_up(runs, chosen)
    assert made.shape == (4, 5, 2)
    for prompt, sample in np.ndindex(4, 5):
        k = chosen[prompt, sample] if a_sample else chosen[prompt]
        assert (made[prompt, sample] == runs[k - 1, prompt, sample]).all()


def test_chance_is_what_was_looked_up_for_the_same_ks_in_other_places():
    runs, chosen = RNG.normal(size=(3, 4, 5, 7)), RNG.integers(1, 4, size=(4, 5))
    expected, p = against_shuffled(chosen, runs, draws=50)
    rng = np.random.default_rng(0)
    deals = [chosen, *(rng.permutation(chosen.ravel()).reshape(4, 5) for _ in range(50))]
    ours, *chance = [np.mean([mean_pairwise(one).value for one in looked_up(runs, ks)]) for ks in deals]
    assert expected == pytest.approx(np.mean(chance), rel=1e-12)
    assert p == (np.sum(np.array(chance) >= ours) + 1) / 51


def test_chance_does_as_well_where_the_signal_says_nothing():
    """p of a random assignment is uniform, and of the best assignment the least there can be."""
    angles = RNG.uniform(0.1, 1.5, size=(2, 20))  # between the two samples of each prompt
    still = np.stack([np.ones_like(angles), np.zeros_like(angles)], axis=-1)
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    runs = np.stack([still, turned], axis=2)  # (k, prompt, sample, 2)
    deal = [1] * 10 + [2] * 10
    ps = [against_shuffled(RNG.permutation(deal), runs, draws=100)[1] for _ in range(200)]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.array(ps) <= 0.05) < 0.11
    variety = 1 - np.cos(angles)
    gain = variety[1] - variety[0]
    best = np.where(gain >= np.sort(gain)[10], 2, 1)
    expected, p = against_shuffled(best, runs, draws=1000)
    assert expected == pytest.approx(variety.mean(), abs=0.02)
    assert p == pytest.approx(1 / 1001)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fit([[1.0, 2.0]], shares=(0.5, 0.4), below=True), "must be 2 numbers of at least 0 that add up to 1"),
        (lambda: fit([[1.0, 2.0]], shares=(0.5, 0.25, 0.25), below=True), "must be 2 numbers"),
        (lambda: fit([1.0], shares=(0.5, 0.5), below=True), r"shape \(1,\) must be \(k, run\)"),
        (lambda: decide([[np.nan]], thresholds=(0.5,), below=True), "finite numbers"),
        (lambda: cross_fit([[1.0, 2.0]], shares=(0.5, 0.5), below=True, folds=3), "folds=3 must be from 2 to .* 2"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
