"""Pairs: what is compatible, and the timesteps that a pair's pipeline sets."""

from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz
from dtviz.core.pair import pipeline_timestep_arguments, role_scheduler

from .tiny import PIPELINES


def test_a_pair_has_to_be_compatible(pipe):
    unet = pipe.unet
    v = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
    for distilled, options, words in (
        ("lightning", {}, "not an adapter"),
        (3, {}, "give a denoiser module"),
        (type(unet).from_config(unet.config, in_channels=8), {}, "has in_channels=8, the base's 4: not a pair"),
        (type(unet).from_config(unet.config, cross_attention_dim=24), {}, "cross_attention_dim=24, the base's 16: not"),
        (unet, {"handover": "late"}, "handover='late'"),
        (unet, {"size": (16,)}, "size="),
        (unet, {"size": (0, 16)}, "size="),
        (unet, {"steps": 0}, "steps=0 must be at least 1"),
        (unet, {"timesteps": (999, 499)}, "must be 4 falling values"),
        (unet, {"distilled_scheduler": v}, "v_prediction in vp space, and the base predicts epsilon.*matched-sigma"),
    ):
        with pytest.raises(ValueError, match=words):
            dtviz.Pair(pipe, distilled, **options)
    mixed = dtviz.Pair(pipe, unet, distilled_scheduler=v, handover="matched-sigma")  # each reads its own output
    trace = dtviz.generate(mixed, "dog", method="hybrid", base_steps=8, seeds=[0])
    assert trace.steps_run["distilled"] == 3
    with pytest.raises(ValueError, match="use handover='matched-sigma'"):
        dtviz.generate(mixed, "dog", method="hybrid", handover="distilled-scheduler", seeds=[0])


def test_two_pipelines_are_a_pair(pipe, pair):
    """The README's: two pipelines, a base and its distilled model."""
    parts = pipe.components | {"unet": pair.distilled, "scheduler": pair.distilled_scheduler}
    fast = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    mine = dtviz.Pair(pipeline=pipe, distilled=fast, name="mine", steps=4, base_steps=8, base_guidance=3.0)
    assert mine.distilled is pair.distilled
    assert mine.distilled_scheduler is fast.scheduler
    trace = dtviz.generate(mine, "dog", method="hybrid", k=1, seeds=range(2))
    expected = dtviz.generate(replace(pair, timesteps=None), "dog", method="hybrid", k=1, seeds=range(2))
    assert torch.equal(trace.final, expected.final)

    fast.vae = type(pipe.vae).from_config(pipe.vae.config, scaling_factor=0.5)
    with pytest.raises(ValueError, match="autoencoder has scaling_factor=0.5, the base's 0.18215: not a pair"):
        dtviz.Pair(pipe, fast)
    fast.vae = diffusers.AutoencoderTiny()
    with pytest.raises(ValueError, match="autoencoder has class=AutoencoderTiny, the base's AutoencoderKL"):
        dtviz.Pair(pipe, fast)


def test_timesteps_are_those_of_the_pipelines_own_run(pipe, pair):
    """Trained timesteps at the trained number of steps; else what the pipeline sets itself."""
    assert role_scheduler(pair, "distilled", 4, None).timesteps.tolist() == [999, 749, 499, 249]
    for role, scheduler in (("base", pair.base_scheduler), ("distilled", pair.distilled_scheduler)):
        scheduler = type(scheduler).from_config(scheduler.config)
        scheduler.set_timesteps(5)
        assert torch.equal(role_scheduler(pair, role, 5, None).timesteps, scheduler.timesteps)
    assert pipeline_timestep_arguments(pipe, pipe.scheduler, {}, 4) == {}


def test_a_flow_models_timesteps_are_shifted_as_by_its_pipeline():
    """Flux passes even sigmas, and a shift that grows with the image."""
    tiny = PIPELINES["flux"]()
    pipe, text = tiny.pipe, (tiny.call["prompt_embeds"], tiny.call["pooled_prompt_embeds"], torch.zeros(4, 3))
    pipe.encode_prompt = lambda **_: text
    with dtviz.capture(pipe) as trace:
        tiny.run("latent")
    pair = dtviz.Pair(pipe, pipe.transformer, size=tiny.size)
    sigmas = role_scheduler(pair, "base", tiny.steps, None).sigmas
    torch.testing.assert_close(sigmas[:-1], trace.sigmas, atol=1e-6, rtol=0)
    arguments = pipeline_timestep_arguments(pipe, pipe.scheduler, {"height": 16, "width": 24}, 4)
    assert arguments["sigmas"].tolist() == [1, 0.75, 0.5, 0.25] and arguments["mu"] > 0
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    trained = replace(pair, timesteps=(1000, 700, 400, 100), distilled_scheduler=scheduler)
    sigmas = role_scheduler(trained, "distilled", 4, None).sigmas
    torch.testing.assert_close(sigmas, torch.tensor([1.0, 0.7, 0.4, 0.1, 0.0]))
