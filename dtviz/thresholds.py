"""Thresholds of an adaptive hand-over, and whether they pay: from runs of every fixed k, without running anything again.

    chosen = cross_fit(signals, shares=(0.5, 0.5), below=True)      # (prompt,) each prompt's k, fitted on the other prompts
    images = looked_up(features, chosen)                            # (prompt, sample, d) of (k, prompt, sample, d)
    expected, p = against_shuffled(chosen, features)                # the same ks, dealt out at random

An adaptive run is the hybrid of the k that comes out, so that what it makes can be looked up. Arrays in, numbers out.
"""

from collections.abc import Sequence

import numpy as np


def fit(signals, *, shares: Sequence[float], below: bool) -> tuple[float, ...]:
    """Thresholds at which these shares of the runs hand over after k = 1, 2, ...

    Args:
        signals: (k, run), seen before k = 1, 2, ...; one row less than shares has entries.
        shares: of the runs, adding up to 1; the last is what no threshold stops.
        below: whether a run hands over at a signal of at most its threshold ("change", "disagreement"), or at least.

    Raises:
        ValueError: shares that do not add up to 1, or do not fit the signals.

    >>> fit([[0.1, 0.2, 0.3, 0.4]], shares=(0.5, 0.5), below=True)
    (0.25,)
    """
    left, shares = _signals(signals, below), np.asarray(shares, dtype=float)
    if len(shares) != len(left) + 1 or (shares < 0).any() or not np.isclose(shares.sum(), 1):
        raise ValueError(f"shares={shares.tolist()} must be {len(left) + 1} numbers of at least 0 that add up to 1")
    thresholds = []
    for row, share in enumerate(shares[:-1]):
        rest = shares[row:].sum()
        part = min(share / rest, 1.0) if rest > 0 and left.shape[1] else 0.0
        threshold = np.quantile(left[row], part) if 0 < part < 1 else (np.inf if part else -np.inf)
        left = left[:, left[row] > threshold]
        thresholds.append(float(threshold if below else -threshold))
    return tuple(thresholds)


def decide(signals, *, thresholds: Sequence[float], below: bool) -> np.ndarray:
    """The k (run,) after which each run hands over: the first whose threshold is met, else one after the last.

    >>> decide([[0.1, 0.2, 0.3, 0.4]], thresholds=(0.25,), below=True)
    array([1, 1, 2, 2])
    """
    met = _signals(signals, below) <= (np.asarray(thresholds) if below else -np.asarray(thresholds))[:, None]
    return np.where(met.any(axis=0), met.argmax(axis=0), len(met)) + 1


def cross_fit(signals, *, shares: Sequence[float], below: bool, folds: int = 6) -> np.ndarray:
    """Each prompt's k by thresholds that were fitted on the prompts of the other folds: (prompt,) or (prompt, sample).

    Args:
        signals: (k, prompt) for a decision a prompt, or (k, prompt, sample) for one a sample.
        shares, below: as for `fit`.
        folds: into which the prompts are dealt in turn; 2 to the number of prompts.

    Raises:
        ValueError: folds out of range, or what `fit` refuses.
    """
    signals = np.asarray(signals, dtype=float)
    if not 2 <= folds <= signals.shape[1]:
        raise ValueError(f"folds={folds} must be from 2 to the number of prompts, {signals.shape[1]}")
    chosen = np.empty(signals.shape[1:], dtype=int)
    for fold in range(folds):
        here = np.arange(signals.shape[1]) % folds == fold
        rows = len(signals)
        thresholds = fit(signals[:, ~here].reshape(rows, -1), shares=shares, below=below)
        flat = decide(signals[:, here].reshape(rows, -1), thresholds=thresholds, below=below)
        chosen[here] = flat.reshape(chosen[here].shape)
    return chosen


def looked_up(runs, chosen) -> np.ndarray:
    """What an adaptive hand-over makes, from the runs of every k: (prompt, sample, ...).

    Args:
        runs: (k, prompt, sample, ...) of k = 1, 2, ...
        chosen: the k of each (prompt,) or (prompt, sample).

    >>> looked_up([[["a1", "b1"]], [["a2", "b2"]]], [[1, 2]]).tolist()
    [['a1', 'b2']]
    """
    runs, chosen = np.asarray(runs), np.asarray(chosen)
    prompts, samples = runs.shape[1:3]
    ks = np.broadcast_to(chosen.reshape(prompts, -1), (prompts, samples))
    return runs[ks - 1, np.arange(prompts)[:, None], np.arange(samples)]


def against_shuffled(chosen, features, *, draws: int = 1000) -> tuple[float, float]:
    """The variety that the same ks make when they are dealt out at random, and the one-sided p that chance does as well as `chosen`.

    Variety is the mean distance, 1 - cosine, over the pairs of a prompt's samples, and its mean over prompts.

    Args:
        chosen: the k of each (prompt,) or (prompt, sample).
        features: (k, prompt, sample, d) of the runs of k = 1, 2, ..., at least two samples.
        draws: random deals, with a fixed seed; p = (those at least as good + 1) / (draws + 1) (Phipson & Smyth 2010).
    """
    chosen, rng = np.asarray(chosen), np.random.default_rng(0)
    unit = np.asarray(features, dtype=float)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    prompts, samples = unit.shape[1:3]
    deals = np.stack([chosen, *(rng.permutation(chosen.ravel()).reshape(chosen.shape) for _ in range(draws))])
    ks = np.broadcast_to(deals.reshape(draws + 1, prompts, -1), (draws + 1, prompts, samples)) - 1
    variety, each = np.zeros(draws + 1), np.arange(samples)
    for prompt in range(prompts):  # whose cosines are worked out once, and looked up for every deal
        cosines = np.einsum("ksd,ltd->kslt", unit[:, prompt], unit[:, prompt])
        k = ks[:, prompt]
        dealt = cosines[k[:, :, None], each[:, None], k[:, None, :], each]
        variety += (samples**2 - dealt.sum(axis=(1, 2))) / (samples * (samples - 1) * prompts)
    ours, *chance = variety
    return float(np.mean(chance)), float((np.sum(np.array(chance) >= ours - 1e-12) + 1) / (draws + 1))


def _signals(signals, below: bool) -> np.ndarray:
    """(k, run), of which small values hand over."""
    signals = np.asarray(signals, dtype=float)
    if signals.ndim != 2 or not np.isfinite(signals).all():
        raise ValueError(f"signals of shape {signals.shape} must be (k, run) finite numbers")
    return signals if below else -signals
