"""Hand-over decided on the way: the signals in closed form, and each decision equal to the hybrid of the k that came out."""

import math
from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz
from dtviz.adaptive import change, disagreement, dispersion

from .test_handover import heun

ALWAYS, NEVER = math.inf, -math.inf


def test_change_and_disagreement_are_relative_distances():
    x0 = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    torch.testing.assert_close(change(x0, torch.zeros_like(x0)), torch.ones(2))
    torch.testing.assert_close(
        disagreement(x0, x0 + torch.tensor([[[0.0, 5.0]], [[1.0, 0.0]]])), torch.tensor([1.0, 0.5])
    )


def test_dispersion_is_the_share_of_what_differs():
    torch.testing.assert_close(dispersion(torch.ones(5, 3)), torch.zeros(5))
    torch.manual_seed(0)
    draws = torch.stack([dispersion(1.0 + 2.0 * torch.randn(4, 3000)) for _ in range(50)])
    assert float(draws.mean()) == pytest.approx(
        4 / 5, abs=0.005
    )  # variance 4 of a mean square of 5; unbiased for n = 4
    away = dispersion(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(away, torch.tensor([1.0, 1.0, 4.0]) / 3)
    assert dispersion(torch.ones(1, 3)).isnan().all()


@pytest.mark.parametrize("base_guidance", [0.0, 3.0])
@pytest.mark.parametrize("handover", ["distilled-scheduler", "matched-sigma"])
@pytest.mark.parametrize(("thresholds", "k"), [((ALWAYS, NEVER), 1), ((NEVER, ALWAYS), 2), ((NEVER, NEVER), 3)])
def test_it_is_the_hybrid_of_the_k_that_came_out(pair, handover, base_guidance, thresholds, k):
    options = {"handover": handover, "base_guidance": base_guidance, "seeds": [5, 6], "x_t": True}
    fixed = dtviz.generate(pair, "a dog", method="hybrid", k=k, **options)
    ours = dtviz.generate(
        pair, "a dog", method="adaptive", adaptive=dtviz.Adaptive("disagreement", thresholds), **options
    )
    assert torch.equal(ours.final, fixed.final)
    assert torch.equal(ours.x0, fixed.x0)
    assert ours.steps_run == fixed.steps_run
    assert torch.equal(ours.timesteps, fixed.timesteps)
    asked = min(k, 2)
    assert ours.provenance["nfe"]["base"] == fixed.provenance["nfe"]["base"]
    assert ours.provenance["nfe"]["distilled"] == fixed.provenance["nfe"]["distilled"] + asked  # the probes count
    assert (ours.provenance["k"], list(ours.provenance["signals"])) == (k, ["1", "2"][:asked])


def test_the_signals_are_those_of_the_plans(pair):
    """At the base's last step before each hand-over: its plans, those a step earlier, the student's of the same sample."""
    options = {"handover": "matched-sigma", "seeds": [5, 6], "x_t": True}
    seen = {}
    for signal in ("change", "dispersion", "disagreement"):
        threshold = ALWAYS if signal == "dispersion" else NEVER
        adaptive = dtviz.Adaptive(signal, (threshold, threshold))
        trace = dtviz.generate(pair, "a dog", method="adaptive", adaptive=adaptive, **options)
        assert trace.provenance["k"] == 3
        seen[signal] = trace.provenance["signals"]
    text = pair.pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0].expand(2, -1, -1)
    alphas = pair.pipeline.scheduler.alphas_cumprod
    for k, last in (("1", 1), ("2", 3)):  # eight base steps: two down to the student's 749, four down to its 499
        x0, x_t, t = trace.x0[last], trace.x_t[last], int(trace.timesteps[last])
        with torch.no_grad():
            theirs = (x_t - (1 - alphas[t]).sqrt() * pair.distilled(x_t, t, text).sample) / alphas[t].sqrt()
        expected = {
            "change": change(x0, trace.x0[last - 1]),
            "dispersion": dispersion(x0),
            "disagreement": disagreement(x0, theirs),
        }
        for signal, value in expected.items():
            assert seen[signal][k] == pytest.approx(value.tolist(), rel=1e-4)


def test_one_decides_by_what_it_sees(pair):
    """With a threshold between the signals of two seeds, one hands over and the other goes on."""
    options = {"method": "adaptive", "handover": "matched-sigma"}
    seen = {}
    for seed in (5, 6):
        trace = dtviz.generate(pair, "a dog", adaptive=dtviz.Adaptive("change", (NEVER,)), seeds=[seed], **options)
        [seen[seed]] = trace.provenance["signals"]["1"]
    adaptive = dtviz.Adaptive("change", (sum(seen.values()) / 2,))
    for seed, value in seen.items():
        trace = dtviz.generate(pair, "a dog", adaptive=adaptive, seeds=[seed], **options)
        assert trace.provenance["k"] == (1 if value == min(seen.values()) else 2)


def test_dispersed_plans_are_handed_over(pair):
    options = {"method": "adaptive", "handover": "matched-sigma", "seeds": [5, 6]}
    for threshold, k in ((0.0, 1), (2.0, 2)):
        trace = dtviz.generate(pair, "a dog", adaptive=dtviz.Adaptive("dispersion", (threshold,)), **options)
        assert trace.provenance["k"] == k


@pytest.mark.parametrize("thresholds", [(ALWAYS,), (NEVER,)])
def test_a_second_order_base(pair, thresholds):
    pair = replace(pair, base_scheduler=heun(pair))
    options = {"handover": "matched-sigma", "seeds": [5]}
    ours = dtviz.generate(pair, "a dog", method="adaptive", adaptive=dtviz.Adaptive("change", thresholds), **options)
    fixed = dtviz.generate(pair, "a dog", method="hybrid", k=ours.provenance["k"], **options)
    assert ours.provenance["k"] == (1 if thresholds == (ALWAYS,) else 2)
    assert torch.equal(ours.final, fixed.final)


def test_nothing_is_evaluated_after_an_early_hand_over_and_the_pipeline_runs_again(pair, monkeypatch):
    options = {"method": "adaptive", "handover": "matched-sigma", "seeds": [5]}
    calls, forward = [], pair.distilled.forward
    monkeypatch.setattr(pair.distilled, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    dtviz.generate(pair, "a dog", adaptive=dtviz.Adaptive("change", (ALWAYS, ALWAYS)), **options)
    assert len(calls) == 3
    plain = pair.pipeline(
        "a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="latent"
    )
    assert plain.images.std() > 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "takes a dtviz.Adaptive"),
        ({"adaptive": dtviz.Adaptive("change", (0.1, 0.1, 0.1))}, r"thresholds=\(0.1, 0.1, 0.1\) must be at most 2"),
        ({"adaptive": dtviz.Adaptive("change", (0.1,)), "seeds": [0, 1, 2]}, "batch_size=2 is less than the 3 seeds"),
        ({"adaptive": dtviz.Adaptive("dispersion", (0.1,)), "seeds": [0]}, "give two seeds or more"),
        ({"adaptive": dtviz.Adaptive("change", (0.1,)), "handed": "own"}, "handed='own'"),
        ({"adaptive": dtviz.Adaptive("change", (0.1,)), "handover": "distilled-scheduler"}, "compares two base steps"),
        ({"adaptive": dtviz.Adaptive("change", (0.1, 0.1)), "base_steps": 2}, "too few to tell k=1 to 3 apart"),
    ],
)
def test_bad_input_is_refused_before_the_run(pair, options, words):
    options = {"method": "adaptive", "seeds": [0, 1], "handover": "matched-sigma"} | options
    with pytest.raises(ValueError, match=words):
        dtviz.generate(pair, "a dog", **options)


def test_bad_signals_are_refused():
    with pytest.raises(ValueError, match="signal='entropy' is not one of change, disagreement, dispersion"):
        dtviz.Adaptive("entropy", (0.1,))
    for thresholds in ((), (math.nan,)):
        with pytest.raises(ValueError, match="must hold one number for each"):
            dtviz.Adaptive("change", thresholds)


def test_a_pipeline_that_cannot_be_interrupted_is_refused(pair, monkeypatch):
    monkeypatch.delattr(diffusers.StableDiffusionPipeline, "interrupt")
    with pytest.raises(NotImplementedError, match="StableDiffusionPipeline cannot be interrupted"):
        dtviz.generate(pair, "a dog", method="adaptive", adaptive=dtviz.Adaptive("change", (0.1,)), seeds=[0])
