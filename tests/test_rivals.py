"""Condition annealing and particle guidance: closed forms, an autograd oracle, and inside a run written out here."""

import math

import pytest
import torch

import dtviz
from dtviz.sampling.rivals import anneal, annealing_noise, repel
from dtviz.sampling.switch import Switch, Turn

from .test_generate import CLOSE, TIMES


def test_text_is_untouched_below_the_interval_and_all_noise_above():
    text, noise = torch.randn(2, 5, 4) * 3 + 1, torch.randn(2, 5, 4)
    assert torch.equal(anneal(text, time=0.6, scale=0.3, noise=noise), text)
    for scale in (0.1, 0.3):  # rescaling takes the scale of pure noise out again
        replaced = anneal(text, time=0.9, scale=scale, noise=noise)
        unit = (noise - noise.mean((1, 2), keepdim=True)) / noise.std((1, 2), keepdim=True)
        expected = unit * text.std((1, 2), keepdim=True) + text.mean((1, 2), keepdim=True)
        torch.testing.assert_close(replaced, expected, atol=1e-5, rtol=1e-5)


def test_annealed_text_keeps_each_samples_mean_and_deviation():
    text, noise = torch.randn(2, 5, 4) * torch.tensor([1.0, 7.0])[:, None, None], torch.randn(2, 5, 4)
    half = anneal(text, time=0.75, scale=1.0, noise=noise)
    mixed = (text + noise) * math.sqrt(0.5)
    for row in range(2):
        torch.testing.assert_close(half[row].mean(), text[row].mean())
        torch.testing.assert_close(half[row].std(), text[row].std())
        assert torch.corrcoef(torch.stack([half[row].flatten(), mixed[row].flatten()]))[0, 1] == pytest.approx(1)


def test_equidistant_plans_move_away_from_their_mean():
    """At the median distance the kernel is 1 / n, so the push is the distance to the mean, log(n) times."""
    corners = torch.eye(4).reshape(4, 1, 2, 2)
    pushed = repel(corners, strength=0.5)
    expected = corners + 0.5 * math.log(4) * (corners - corners.mean(0))
    torch.testing.assert_close(pushed, expected)


def test_the_push_is_the_gradient_of_the_log_potential():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    distances = torch.pdist(x.detach())
    bandwidth = distances.median() ** 2
    potential = -torch.exp(-(torch.pdist(x) ** 2) * math.log(5) / bandwidth).sum()
    (gradient,) = torch.autograd.grad(potential, x)
    torch.testing.assert_close(repel(x.detach(), strength=1.0), x.detach() + bandwidth / 2 * gradient)


def test_nothing_repels_one_plan_or_equal_plans():
    for plans in (torch.randn(1, 2, 3), torch.ones(4, 2, 3)):
        assert torch.equal(repel(plans, strength=1.0), plans)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_a_run_with_annealed_text(pair, guidance):
    """DMD2's loop written out; with guidance only the prompt's half of the batch is annealed."""
    trace = dtviz.generate(pair, "a dog", seeds=[5], cads=0.25, guidance=guidance)
    text, empty = pair.pipeline.encode_prompt(["a dog"], "cpu", 1, True)
    alphas, generator = pair.pipeline.scheduler.alphas_cumprod, torch.Generator().manual_seed(5)
    annealing = annealing_noise(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    for i, t in enumerate(TIMES):
        told = anneal(text, time=t / 1000, scale=0.25, noise=torch.randn(text.shape[1:], generator=annealing)[None])
        with torch.no_grad():
            noise = pair.distilled(x, t, told).sample
            if guidance > 1:
                unguided = pair.distilled(x, t, empty).sample
                noise = unguided + guidance * (noise - unguided)
        x0 = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
        torch.testing.assert_close(trace.x0[i], x0, **CLOSE)
        if i + 1 < len(TIMES):
            after = alphas[TIMES[i + 1]]
            x = after.sqrt() * x0 + (1 - after).sqrt() * torch.randn(x.shape, generator=generator)
    plain = dtviz.generate(pair, "a dog", seeds=[5], guidance=guidance)
    assert not torch.allclose(trace.x0[0], plain.x0[0], atol=1e-3)


def test_annealing_is_the_seeds_own_and_leaves_the_initial_noise(pair):
    together = dtviz.generate(pair, "a dog", seeds=[5, 6], cads=0.25, batch_size=2, x_t=True)
    alone = dtviz.generate(pair, "a dog", seeds=[6], cads=0.25)
    torch.testing.assert_close(together.final[1:], alone.final, **CLOSE)
    assert torch.equal(together.x_t[0], dtviz.generate(pair, "a dog", seeds=[5, 6], x_t=True).x_t[0])


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 5])
def test_annealing_noise_is_not_the_samples_own(seed):
    """torch reads the low 32 bits of a seed alone."""
    own, other = torch.Generator().manual_seed(seed), annealing_noise(seed)
    drawn = [torch.randn(1000, generator=generator) for generator in (own, other)]
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1]) < 0.15  # five deviations of independent noise


@pytest.mark.parametrize("method", ["distilled", "base"])
def test_a_run_with_repelled_plans(pair, method):
    """The sample after the first step differs from the plain one by the push alone, at that level's signal."""
    settings = {"method": method, "seeds": [5, 6, 7], "batch_size": 3, "x_t": True}
    plain, pushed = (dtviz.generate(pair, "a dog", particles=strength, **settings) for strength in (0.0, 0.5))
    assert torch.equal(plain.x0[0], pushed.x0[0])
    push = repel(plain.x0[0], strength=0.5) - plain.x0[0]
    signal = 1 / (plain.sigmas[1] ** 2 + 1).sqrt()
    torch.testing.assert_close(pushed.x_t[1] - plain.x_t[1], signal * push, **CLOSE)
    assert pushed.provenance["nfe"] == plain.provenance["nfe"]


@pytest.mark.parametrize("name", ["cads", "particles"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_bad_strengths_are_refused(pair, name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be a number of at least 0"):
        dtviz.generate(pair, "a dog", seeds=[0], **{name: value})


def test_a_denoiser_that_gets_its_text_otherwise_is_refused(pair):
    told = {"turn": lambda: Turn("base", 0.0), "doubled": lambda n: False, "condition": lambda text: text}
    switch = Switch(pair.pipeline, pair.base, pair.distilled, **told)
    with switch.on(), pytest.raises(NotImplementedError, match="UNet2DConditionModel is not given its text"):
        pair.base(torch.zeros(1, 4, 8, 8), 0, class_labels=None)
