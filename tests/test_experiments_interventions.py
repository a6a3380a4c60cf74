"""CADS, particle guidance and replaced x0: closed forms, an autograd oracle, and runs beside reference loops."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import dtviz
from dtviz.core.handover import DenoiserCall
from dtviz.experiments.interventions import anneal, annealing_noise, cads, edit_named, repel

from .test_core_generate import CLOSE, reference


def test_text_is_unchanged_below_the_interval_and_all_noise_above():
    text, noise = torch.randn(2, 5, 4) * 3 + 1, torch.randn(2, 5, 4)
    assert torch.equal(anneal(text, time=0.6, scale=0.3, noise=noise), text)
    for scale in (0.1, 0.3):  # rescaling cancels the scale of pure noise
        unit = (noise - noise.mean((1, 2), keepdim=True)) / noise.std((1, 2), keepdim=True)
        expected = unit * text.std((1, 2), keepdim=True) + text.mean((1, 2), keepdim=True)
        torch.testing.assert_close(anneal(text, time=0.9, scale=scale, noise=noise), expected, atol=1e-5, rtol=1e-5)


def test_equidistant_x0_move_away_from_their_mean():
    """At the median distance the kernel is 1 / n, so the push is log(n) times the distance to the mean."""
    corners = torch.eye(4).reshape(4, 1, 2, 2)
    expected = corners + 0.5 * math.log(4) * (corners - corners.mean(0))
    torch.testing.assert_close(repel(0.5)(corners, None), expected)
    for x0 in (torch.randn(1, 2, 3), torch.ones(4, 2, 3)):  # nothing repels one x0, or equal ones
        assert torch.equal(repel(1.0)(x0, None), x0)


def test_the_push_is_the_gradient_of_the_log_potential():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bandwidth = torch.pdist(x.detach()).median() ** 2
    potential = -torch.exp(-(torch.pdist(x) ** 2) * math.log(5) / bandwidth).sum()
    (gradient,) = torch.autograd.grad(potential, x)
    torch.testing.assert_close(repel(1.0)(x.detach(), None), x.detach() + bandwidth / 2 * gradient)


def test_edits_replace_x0_at_the_hand_over_only():
    x0, other = torch.randn(3, 4), torch.randn(3, 4)
    call = DenoiserCall("base", None, torch.tensor(5), predict=lambda role: other if role == "distilled" else None)
    at_handover = replace(call, hands_over=True)
    for name, expected in (("zero", 0 * x0), ("mean", x0.mean(0).expand(3, 4)), ("own", other)):
        assert edit_named(name)(x0, call) is x0
        assert torch.equal(edit_named(name)(x0, at_handover), expected)
    assert torch.equal(edit_named(("repel", 0.5))(x0, call), repel(0.5)(x0, call))
    with pytest.raises(ValueError, match=r"is not one of 'zero', 'mean', 'own', \('repel', strength\)"):
        edit_named(("zero", 1))


def annealed(pair, **settings):
    with cads(pair, 0.25) as on_call:
        return dtviz.generate(pair, "a dog", on_call=on_call, **settings)


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_cads_beside_a_reference_loop(pair, guidance):
    """With guidance only the prompt's half of the batch is annealed, in the first step too."""
    trace, annealing, x0 = annealed(pair, seeds=[5], guidance=guidance), annealing_noise(5), []
    prompt = pair.pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0]

    def network(x, t, text):
        if torch.equal(text, prompt):
            noise = torch.randn(text.shape[1:], generator=annealing)[None]
            text = anneal(text, time=t / 1000, scale=0.25, noise=noise)
        return pair.distilled(x, t, text)

    other = SimpleNamespace(pipeline=pair.pipeline, base=network)
    reference(other, 5, ["base"] * 4, base_guidance=guidance, edit=lambda each, _: x0.append(each) or each)
    torch.testing.assert_close(trace.x0, torch.stack(x0), **CLOSE)
    plain = dtviz.generate(pair, "a dog", seeds=[5], guidance=guidance)
    assert not torch.allclose(trace.x0[0], plain.x0[0], atol=1e-3)


def test_annealing_is_the_seeds_own_and_ends_with_the_block(pair):
    together = annealed(pair, seeds=[5, 6], batch_size=2, x_t=True)
    torch.testing.assert_close(together.final[1:], annealed(pair, seeds=[6]).final, **CLOSE)
    torch.testing.assert_close(together.final, annealed(pair, seeds=[5, 6], batch_size=1).final, **CLOSE)
    plain = dtviz.generate(pair, "a dog", seeds=[5, 6], batch_size=2, x_t=True)
    assert torch.equal(together.x_t[0], plain.x_t[0])  # the initial noise
    assert not pair.base._forward_pre_hooks


def test_annealing_noise_is_not_the_samples_own():
    """torch reads the low 32 bits of a seed alone."""
    for seed in (0, 2**32 + 5):
        noise = [torch.randn(1000, generator=g) for g in (torch.Generator().manual_seed(seed), annealing_noise(seed))]
        assert abs(torch.corrcoef(torch.stack(noise))[0, 1]) < 0.15  # five deviations of independent noise


def test_bad_strengths_and_a_denoiser_without_text_are_refused(pair):
    for strength in (-0.1, float("nan"), float("inf")):
        for name, make in (("scale", partial(cads, pair)), ("strength", repel)):
            with pytest.raises(ValueError, match=f"{name}={strength} must be a number of at least 0"), make(strength):
                pass
    with cads(pair, 0.1), pytest.raises(NotImplementedError, match="UNet2DConditionModel is not given its text"):
        pair.base(torch.zeros(1, 4, 8, 8), 0, class_labels=None)
