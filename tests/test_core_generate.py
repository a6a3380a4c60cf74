"""Samples against a plain reference loop, seeds against batches, the two hooks, and what is refused."""

from collections import Counter
from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz

METHODS = ("base", "distilled", "hybrid", "skip")
TIMES = (999, 749, 499, 249)
# Sigma is 14.6 at the first step: rounding of 1e-6 in the network grows by it, and again through the network after it.
CLOSE = {"atol": 5e-3, "rtol": 1e-3}


def reference(
    pair, seed, roles, *, base_guidance=0.0, formula=False, edit=lambda x0, _: x0, times=TIMES, start=None, generator=None,
) -> torch.Tensor:  # fmt: skip
    """LCM sampling of one seed: x0, then fresh noise to the next timestep.

    With `formula` guidance is u + w (c - u) for every w. Guidance may be a list. `edit(x0, step)` changes x0 of every step.
    """
    pipe = pair.pipeline
    generator = generator or torch.Generator().manual_seed(seed)
    text, empty = pipe.encode_prompt(["a dog"], "cpu", 1, True)
    alphas = pipe.scheduler.alphas_cumprod
    x = torch.randn(1, 4, 8, 8, generator=generator) if start is None else start
    for i, (t, role) in enumerate(zip(times, roles, strict=True)):
        with torch.no_grad():
            noise = (pair.base if role == "base" else pair.distilled)(x, t, text).sample
            scale = base_guidance[i] if isinstance(base_guidance, list) and role == "base" else base_guidance
            if role == "base" and (formula or scale > 1):
                unguided = pair.base(x, t, empty).sample
                noise = unguided + scale * (noise - unguided)
        x0 = edit((x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt(), i)
        scaled = (t * 10) ** 2 + 0.25  # the consistency model's boundary, LCM equation 9, sigma_data 0.5, scaling 10
        x = x0 * t * 10 / scaled**0.5 + x * 0.25 / scaled
        if i + 1 < len(times):
            after = alphas[times[i + 1]]
            x = after.sqrt() * x + (1 - after).sqrt() * torch.randn(x.shape, generator=generator)
    return x


@pytest.mark.parametrize(
    ("method", "options", "roles", "evaluations"),
    [
        ("distilled", {}, ["distilled"] * 4, 4),
        ("hybrid", {"k": 1}, ["base"] + ["distilled"] * 3, 4),
        ("hybrid", {"k": 3}, ["base"] * 3 + ["distilled"], 4),
        ("hybrid", {"k": 2, "base_guidance": 4.0}, ["base"] * 2 + ["distilled"] * 2, 6),
        ("hybrid", {"k": 2, "base_guidance": [0.0, 4.0]}, ["base"] * 2 + ["distilled"] * 2, 5),
        ("skip", {"k": 1}, ["distilled"] * 3, 3),
    ],
)
def test_equals_the_reference_loop(pair, method, options, roles, evaluations):
    trace = dtviz.generate(pair, "a dog", method=method, seeds=[5, 11], **options)
    for row, seed in enumerate(trace.seeds):
        times = TIMES[-len(roles) :]
        expected = reference(pair, seed, roles, base_guidance=options.get("base_guidance", 0.0), times=times)
        torch.testing.assert_close(trace.final[row : row + 1], expected, **CLOSE)
    assert sum(trace.provenance["nfe"].values()) == evaluations


@pytest.mark.parametrize(("guidance", "evaluations"), [(0.0, 1), (0.5, 2), (1.0, 1), (3.0, 2)])
def test_the_formulas_guidance_of_0_is_the_unconditional_model(pair, guidance, evaluations):
    options = {"method": "hybrid", "k": 2, "base_guidance": guidance, "seeds": [5]}
    trace = dtviz.generate(pair, "a dog", convention="formula", **options)
    expected = reference(pair, 5, ["base"] * 2 + ["distilled"] * 2, base_guidance=guidance, formula=True)
    torch.testing.assert_close(trace.final, expected, **CLOSE)
    assert trace.provenance["nfe"] == {"base": 2 * evaluations, "distilled": 2}
    plain = dtviz.generate(pair, "a dog", **options)
    assert torch.allclose(plain.final, trace.final, **CLOSE) == (guidance >= 1)


SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
)  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_base_equals_the_plain_pipeline(pair, kind):
    pipe = pair.pipeline
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    pair = dtviz.Pair(pipe, pair.distilled, base_steps=8, base_guidance=3.0)
    trace = dtviz.generate(pair, "a dog", method="base", seeds=[7])
    options = {"num_inference_steps": 8, "guidance_scale": 3.0, "output_type": "latent"}
    plain = pipe("a dog", generator=[torch.Generator().manual_seed(7)], **options)
    torch.testing.assert_close(trace.final, plain.images, **CLOSE)
    calls = {"PNDMScheduler": 17, "HeunDiscreteScheduler": 15, "KDPM2AncestralDiscreteScheduler": 15}.get(kind, 8)
    assert trace.steps_run == {"base": 8}
    assert len(trace.calls) == calls
    assert trace.provenance["nfe"] == {"base": 2 * calls}  # guidance costs two evaluations a call


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_depends_on_its_prompt_and_seed_alone(pair, method):
    prompts, seeds = ["a dog", "a cat", "a dog"], [5, 5, 11]
    together = dtviz.generate(pair, prompts, seeds=seeds, method=method)  # in batches of two
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = dtviz.generate(pair, prompt, seeds=[seed], method=method)
        torch.testing.assert_close(together.final[row : row + 1], alone.final, **CLOSE)
        torch.testing.assert_close(together.x0[:, row : row + 1], alone.x0, **CLOSE)
    assert (together.prompt, together.seeds) == (tuple(prompts), tuple(seeds))
    assert not torch.allclose(together.final[0], together.final[1], **CLOSE)
    assert together.select([2, 1]).prompt == ("a dog", "a cat")
    assert "of 2 prompts" in repr(together)


def test_a_pair_has_its_own_image_size(pair):
    wide = replace(pair, size=(16, 24))  # two pixels per latent
    for method in ("base", "hybrid"):
        assert dtviz.generate(wide, "a dog", method=method, seeds=[0]).final.shape == (1, 4, 8, 12)


def test_same_seed_same_noise_for_every_method(pair):
    first, *others = (dtviz.generate(pair, "a dog", method=m, seeds=[2], x_t=True).x_t[0] for m in METHODS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_skip_scales_the_noise_for_its_first_step(pair, kind):
    """Euler starts at sigma 14.6; its second step is at 4.1, where the published code's noise is 3.5 times too large."""
    euler = getattr(diffusers, kind).from_config(pair.base_scheduler.config, timestep_spacing="trailing")
    pair = replace(pair, distilled_scheduler=euler, timesteps=None)
    settings = {"method": "skip", "seeds": [0, 1], "x_t": True}
    ours, published = (dtviz.generate(pair, "a dog", scale_noise=scaled, **settings) for scaled in (True, False))
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    torch.testing.assert_close(ours.x_t[0], noise)  # unit variance, as the denoiser was trained
    euler.set_timesteps(4)
    ratio = euler.init_noise_sigma / (euler.sigmas[1] ** 2 + 1).sqrt()
    assert ratio > 3
    torch.testing.assert_close(published.x_t[0], ratio * noise)


# The two hooks


@pytest.mark.parametrize("handover", ["distilled-scheduler", "matched-sigma"])
def test_edit_x0_changes_x0_at_the_handover_and_keeps_the_noise(pair, handover):
    """The next sample differs by the change of x0, at the signal of the level handed over to."""
    edits = {
        "none": None,
        "same": lambda x0, call: x0,
        "zero": lambda x0, call: x0 * 0 if call.hands_over else x0,
        "mean": lambda x0, call: x0.mean(0, keepdim=True).expand_as(x0) if call.hands_over else x0,
    }
    options = {"method": "hybrid", "k": 1, "handover": handover, "seeds": [5, 6], "x_t": True}
    traces = {name: dtviz.generate(pair, "a dog", edit_x0=edit, **options) for name, edit in edits.items()}
    plain, same, zero, mean = traces.values()
    assert torch.equal(same.final, plain.final) and torch.equal(same.x0, plain.x0)
    last = plain.steps_run["base"] - 1
    change = pair.pipeline.scheduler.alphas_cumprod[749].sqrt() * plain.x0[last]
    assert torch.equal(plain.x_t[: last + 1], zero.x_t[: last + 1])
    torch.testing.assert_close(plain.x_t[last + 1] - zero.x_t[last + 1], change, **CLOSE)
    torch.testing.assert_close(mean.x_t[last + 1] - zero.x_t[last + 1], change.mean(0).expand(2, -1, -1, -1), **CLOSE)


def test_edit_x0_is_called_after_every_call_but_the_last(pair):
    """Against the reference loop with the same edits."""
    calls = []

    def halve(x0, call):
        calls.append((call.role, call.index, call.total, call.hands_over, call.seeds, round(call.sigma, 2)))
        return x0 / 2

    trace = dtviz.generate(pair, "a dog", method="hybrid", k=2, seeds=[5], edit_x0=halve)
    roles = ["base"] * 2 + ["distilled"] * 2
    expected = reference(pair, 5, roles, edit=lambda x0, step: x0 / 2 if step < 3 else x0)
    torch.testing.assert_close(trace.final, expected, **CLOSE)
    sigmas = [round(float(sigma), 2) for sigma in trace.sigmas]
    assert calls == [(role, i, 4, i == 1, (5,), sigmas[i]) for i, role in enumerate(roles[:3])]


@pytest.mark.parametrize("base_guidance", [0.0, 4.0])
def test_predict_evaluates_the_other_network_under_its_own_guidance(pair, base_guidance):
    """With its own x0 at the hand-over, the distilled model goes on as if it had made the steps before."""

    def own(x0, call):
        return call.predict("distilled") if call.hands_over else x0

    options = {"seeds": [5, 6], "x_t": True, "base_guidance": base_guidance}
    hybrid = {"method": "hybrid", "k": 1, "handover": "distilled-scheduler"}
    trace = dtviz.generate(pair, "a dog", edit_x0=own, **options, **hybrid)
    alone = dtviz.generate(pair, "a dog", method="distilled", **options)
    torch.testing.assert_close(trace.final, alone.final, **CLOSE)
    assert trace.provenance["nfe"] == {"base": 2 if base_guidance else 1, "distilled": 4}  # the further one counts


def test_edit_x0_is_not_called_inside_a_second_order_step(pair):
    calls = []
    heun = diffusers.HeunDiscreteScheduler.from_config(pair.base_scheduler.config, timestep_spacing="trailing")
    trace = dtviz.generate(
        replace(pair, base_scheduler=heun), "a dog", method="base", base_steps=3, seeds=[5],
        edit_x0=lambda x0, call: calls.append(call.index) or x0,
    )  # fmt: skip
    assert calls == [1, 3]
    assert Counter(call.step for call in trace.calls) == {0: 2, 1: 2, 2: 1}


def test_on_call_gets_every_call_with_the_x0_before_it_and_may_end_the_run(pair):
    calls = []
    trace = dtviz.generate(pair, "dog", seeds=range(3), on_call=lambda *call: calls.append(call))
    assert [(call.index, call.total, call.seeds) for call, _ in calls] == [
        *((i, 4, (0, 1)) for i in range(4)), *((i, 4, (2,)) for i in range(4))
    ]  # fmt: skip
    assert [x0 is None for _, x0 in calls] == [True, False, False, False] * 2
    assert torch.equal(torch.stack([x0 for _, x0 in calls[1:4]]), trace.x0[:3, :2])

    def stop(call, x0):
        if call.index == 2:
            raise KeyboardInterrupt

    scheduler = pair.pipeline.scheduler
    with pytest.raises(KeyboardInterrupt):
        dtviz.generate(pair, "dog", seeds=range(3), on_call=stop)
    assert pair.pipeline.scheduler is scheduler and "forward" not in vars(pair.base)
    assert torch.equal(dtviz.generate(pair, "dog", seeds=range(3)).x0, trace.x0)


# What is refused


def test_bad_input_is_refused(pair):
    for arguments, words in (
        ({"pair": None}, "pair is a NoneType"),
        ({"method": "hybrid", "k": 4}, "k=4 must be from 1 to 3"),
        ({"method": "skip", "k": 0}, "k=0 must be from 1 to 3"),
        ({"method": "fast"}, "method='fast' is not one of base, distilled"),
        ({"prompt": " "}, "prompt=' '"),
        ({"prompt": ["a", "b"]}, "2 texts for 4 seeds"),
        ({"prompt": ["a", ""], "seeds": [0, 1]}, "prompt='' must be a text"),
        ({"prompt": None}, "prompt=None must be a text"),
        ({"seeds": []}, r"seeds=\(\)"),
        ({"seeds": [1, 1]}, "different integers"),
        ({"seeds": [1.5]}, "range of integers"),
        ({"seeds": 5}, "range of integers"),
        ({"handover": "euler"}, "matched-sigma"),
        ({"convention": "paper"}, "convention='paper' is not one of diffusers, formula"),
        ({"steps": 0}, "steps=0 must be an integer of at least 1"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"guidance": -1.0}, "guidance=-1.0 must be at least 0"),
        ({"method": "hybrid", "k": 2, "base_guidance": [0.0] * 3}, "base_guidance has 3 values for 2 base steps"),
    ):
        with pytest.raises(ValueError, match=words):
            dtviz.generate(**({"pair": pair, "prompt": "a dog"} | arguments))


@pytest.mark.parametrize(
    ("method", "options", "role", "call", "words"),
    [
        ("base", {}, "base", 3, "the base model of custom gave nan or infinity at step 3 of 8"),
        ("hybrid", {"k": 2}, "base", 2, "the base model .* at step 2 of 4"),
        ("hybrid", {"k": 2}, "distilled", 1, "the distilled model .* at step 3 of 4"),
        ("hybrid", {"handover": "matched-sigma", "k": 2}, "distilled", 2, "the distilled model .* at step 6 of 6"),
    ],
)
def test_nan_and_infinity_are_refused_by_model_step_prompt_and_seed(pair, method, options, role, call, words):
    value = -torch.inf if method == "base" else torch.nan
    calls = []

    def spoil(_, __, output):
        calls.append(1)
        if len(calls) == call:
            output[0][-1, 0, 0, 0] = value  # of the batch's last sample, one number

    network = pair.base if role == "base" else pair.distilled
    with network.register_forward_hook(spoil), pytest.raises(ValueError, match=words) as error:
        dtviz.generate(pair, ["a dog", "a cat"], seeds=[7, 8], method=method, base_guidance=0, **options)
    assert "prompt 'a cat', seed 8" in str(error.value) and "\n" not in str(error.value)
