"""Samples against a plain reference loop written out here, seeds against batches, and what is refused."""

from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz

TIMES = (999, 749, 499, 249)


def reference(
    pair,
    seed: int,
    roles: list[str],
    base_guidance: float,
    times=TIMES,
    start=None,
    generator=None,
    formula=False,
    zero=False,
) -> torch.Tensor:
    """LCM sampling of one seed, written out: x̂0, then fresh noise to the next timestep.

    `formula`: u + w (c - u) for every w; `zero`: the base's last x̂0 is replaced by zero.
    """
    pipe = pair.pipeline
    generator = generator or torch.Generator().manual_seed(seed)
    text, empty = pipe.encode_prompt(["a dog"], "cpu", 1, True)
    alphas = pipe.scheduler.alphas_cumprod
    x = torch.randn(1, 4, 8, 8, generator=generator) if start is None else start
    for i, (t, role) in enumerate(zip(times, roles, strict=True)):
        with torch.no_grad():
            if role == "distilled":
                noise = pair.distilled(x, t, text).sample
            else:
                noise = pair.base(x, t, text).sample
                if formula or base_guidance > 1:
                    unguided = pair.base(x, t, empty).sample
                    noise = unguided + base_guidance * (noise - unguided)
        x0 = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
        if zero and role == "base" and roles[i + 1] != "base":
            x0 = torch.zeros_like(x0)
        scaled = (t * 10) ** 2 + 0.25  # the consistency model's boundary, LCM equation 9, sigma_data 0.5, scaling 10
        x = x0 * t * 10 / scaled**0.5 + x * 0.25 / scaled
        if i + 1 < len(times):
            after = alphas[times[i + 1]]
            x = after.sqrt() * x + (1 - after).sqrt() * torch.randn(x.shape, generator=generator)
    return x


# Sigma is 14.6 at the first step: rounding of 1e-6 in the network grows by it, and again through the network after it.
CLOSE = {"atol": 5e-3, "rtol": 1e-3}


@pytest.mark.parametrize(
    ("method", "options", "roles"),
    [
        ("distilled", {}, ["distilled"] * 4),
        ("hybrid", {"k": 1}, ["base"] + ["distilled"] * 3),
        ("hybrid", {"k": 3}, ["base"] * 3 + ["distilled"]),
        ("hybrid", {"k": 2, "base_guidance": 4.0}, ["base"] * 2 + ["distilled"] * 2),
    ],
)
def test_equals_the_reference_loop(pair, method, options, roles):
    trace = dtviz.generate(pair, "a dog", method=method, seeds=[5, 11], **options)
    for row, seed in enumerate(trace.seeds):
        expected = reference(pair, seed, roles, options.get("base_guidance", 0.0))
        torch.testing.assert_close(trace.final[row : row + 1], expected, **CLOSE)


@pytest.mark.parametrize(("guidance", "evaluations"), [(0.0, 1), (0.5, 2), (1.0, 1), (3.0, 2)])
def test_the_formulas_guidance_of_0_is_the_unconditional_model(pair, guidance, evaluations):
    options = {"method": "hybrid", "k": 2, "base_guidance": guidance, "convention": "formula"}
    trace = dtviz.generate(pair, "a dog", seeds=[5], **options)
    expected = reference(pair, 5, ["base"] * 2 + ["distilled"] * 2, guidance, formula=True)
    torch.testing.assert_close(trace.final, expected, **CLOSE)
    assert trace.provenance["nfe"] == {"base": 2 * evaluations, "distilled": 2}
    plain = dtviz.generate(pair, "a dog", seeds=[5], **options | {"convention": "diffusers"})
    assert torch.allclose(plain.final, trace.final, **CLOSE) == (guidance >= 1)


@pytest.mark.parametrize("handover", ["distilled-scheduler", "matched-sigma"])
def test_what_is_handed_over_can_be_replaced(pair, handover):
    """Zero and mean differ from the plan by just that, at the signal of the level handed over to."""
    options = {"method": "hybrid", "k": 1, "handover": handover, "seeds": [5, 6], "x_t": True}
    plain, zero, mean = (dtviz.generate(pair, "a dog", handed=handed, **options) for handed in ("x0", "zero", "mean"))
    last = plain.steps_run["base"] - 1
    signal = pair.pipeline.scheduler.alphas_cumprod[749].sqrt()
    torch.testing.assert_close(plain.x_t[: last + 1], zero.x_t[: last + 1])
    change = signal * plain.x0[last]
    torch.testing.assert_close(plain.x_t[last + 1] - zero.x_t[last + 1], change, **CLOSE)
    torch.testing.assert_close(mean.x_t[last + 1] - zero.x_t[last + 1], change.mean(0).expand(2, -1, -1, -1), **CLOSE)


def test_handing_over_zero_is_pure_renoising(pair):
    trace = dtviz.generate(pair, "a dog", method="hybrid", seeds=[5], handed="zero")
    torch.testing.assert_close(trace.final, reference(pair, 5, ["base"] + ["distilled"] * 3, 0.0, zero=True), **CLOSE)


def test_the_published_skip_leaves_the_noise_unscaled(pair):
    """Euler starts at sigma 14.6; its second step is at 4.1, where the published code's noise is 3.5 times too large."""
    euler = diffusers.EulerDiscreteScheduler.from_config(pair.base_scheduler.config, timestep_spacing="trailing")
    pair = replace(pair, distilled_scheduler=euler, timesteps=None)
    settings = {"method": "skip", "seeds": [5], "x_t": True}
    ours, published = (dtviz.generate(pair, "a dog", scaled=scaled, **settings) for scaled in (True, False))
    assert ours.x_t[0].std() == pytest.approx(1, abs=0.15)
    euler.set_timesteps(4)
    expected = ((euler.sigmas[0] ** 2 + 1) / (euler.sigmas[1] ** 2 + 1)).sqrt()
    torch.testing.assert_close(published.x_t[0] / ours.x_t[0], expected.expand_as(ours.x_t[0]), rtol=1e-2, atol=1e-2)
    assert expected > 3


def test_skip_is_the_student_without_its_first_steps(pair):
    trace = dtviz.generate(pair, "a dog", method="skip", k=1, seeds=[5])
    torch.testing.assert_close(trace.final, reference(pair, 5, ["distilled"] * 3, 0.0, times=TIMES[1:]), **CLOSE)
    assert trace.timesteps.tolist() == [749, 499, 249]


def test_matched_sigma_equals_base_ddim_then_student(pair):
    """The base on its own 8-step DDIM grid (999, 874, 749, ...) down to the student's 499, then the student."""
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=2, handover="matched-sigma", seeds=[5])
    assert trace.timesteps.tolist() == [999, 874, 749, 624, 499, 249]
    assert trace.steps_run == {"base": 4, "distilled": 2}
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    alphas, text = pair.pipeline.scheduler.alphas_cumprod, pair.pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0]
    for t, after in zip([999, 874, 749, 624], [874, 749, 624, 499], strict=True):
        with torch.no_grad():
            noise = pair.base(x, t, text).sample
        x0 = (x - (1 - alphas[t]).sqrt() * noise) / alphas[t].sqrt()
        x = alphas[after].sqrt() * x0 + (1 - alphas[after]).sqrt() * noise
    expected = reference(pair, 5, ["distilled"] * 2, 0.0, times=TIMES[2:], start=x, generator=generator)
    torch.testing.assert_close(trace.final, expected, **CLOSE)


SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
)  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_base_equals_the_plain_pipeline(pair, kind):
    pair.pipeline.scheduler = getattr(diffusers, kind).from_config(pair.pipeline.scheduler.config)
    again = dtviz.Pair(pair.pipeline, pair.distilled, base_steps=8, base_guidance=3.0)
    trace = dtviz.generate(again, "a dog", method="base", seeds=[7])
    plain = pair.pipeline(
        "a dog",
        generator=[torch.Generator().manual_seed(7)],
        num_inference_steps=8,
        guidance_scale=3.0,
        output_type="latent",
    )
    torch.testing.assert_close(trace.final, plain.images, **CLOSE)
    calls = {"PNDMScheduler": 17, "HeunDiscreteScheduler": 15, "KDPM2AncestralDiscreteScheduler": 15}.get(kind, 8)
    assert trace.steps_run == {"base": 8}
    assert len(trace.calls) == calls
    assert trace.provenance["nfe"] == {"base": 2 * calls}  # guidance costs two evaluations a call


@pytest.mark.parametrize(
    "options", [{"method": "base"}, {"method": "distilled"}, {"method": "hybrid"}, {"method": "skip"}]
)
def test_a_sample_does_not_depend_on_its_batch(pair, options):
    whole = dtviz.generate(pair, "a dog", seeds=range(5), batch_size=5, **options)
    alone = dtviz.generate(pair, "a dog", seeds=[3], batch_size=1, **options)
    uneven = dtviz.generate(pair, "a dog", seeds=[4, 3, 0], batch_size=2, **options)
    torch.testing.assert_close(whole.final[3:4], alone.final, **CLOSE)
    torch.testing.assert_close(whole.final[[4, 3, 0]], uneven.final, **CLOSE)


@pytest.mark.parametrize("method", ["base", "distilled", "hybrid", "skip"])
def test_a_batch_may_hold_different_prompts(pair, method, tmp_path):
    prompts, seeds = ["a dog", "a cat", "a dog"], [5, 5, 11]
    together = dtviz.generate(pair, prompts, seeds=seeds, method=method)  # in batches of two
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = dtviz.generate(pair, prompt, seeds=[seed], method=method)
        torch.testing.assert_close(together.final[row : row + 1], alone.final, **CLOSE)
        torch.testing.assert_close(together.x0[:, row : row + 1], alone.x0, **CLOSE)
    assert (together.prompt, together.seeds) == (tuple(prompts), tuple(seeds))
    assert not torch.allclose(together.final[0], together.final[1], **CLOSE)
    assert dtviz.Trace.load(together.save(tmp_path / "t")).prompt == tuple(prompts)
    assert together.select([2, 1]).prompt == ("a dog", "a cat")
    assert "of 2 prompts" in repr(together)


def test_a_pair_has_its_own_image_size(pair):
    wide = replace(pair, size=(16, 24))  # two pixels of a latent
    for method in ("base", "hybrid"):
        assert dtviz.generate(wide, "a dog", method=method, seeds=[0]).final.shape == (1, 4, 8, 12)
    for bad in ((16,), (0, 16)):
        with pytest.raises(ValueError, match="size="):
            replace(pair, size=bad)


def test_same_seed_same_noise_for_every_method(pair):
    first = [
        dtviz.generate(pair, "a dog", method=m, seeds=[2], x_t=True).x_t[0]
        for m in ("base", "distilled", "hybrid", "skip")
    ]
    assert all(torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_euler_students(pair, kind):
    """Skipping with an Euler student starts from noise scaled for the first step that runs."""
    student = getattr(diffusers, kind).from_config(pair.pipeline.scheduler.config, timestep_spacing="trailing")
    euler = dtviz.Pair(pair.pipeline, pair.distilled, distilled_scheduler=student, base_steps=8)
    skipped = dtviz.generate(euler, "a dog", method="skip", seeds=range(2), x_t=True)
    sigma = float(skipped.sigmas[0])
    assert 4 < sigma < 4.2
    noise = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    torch.testing.assert_close(skipped.x_t[0], noise)  # unit variance, as the denoiser was trained to see it
    matched = dtviz.generate(euler, "a dog", method="hybrid", handover="matched-sigma", k=1, seeds=range(2))
    assert matched.steps_run == {"base": 2, "distilled": 3}
    assert torch.isfinite(matched.final).all()


def test_adapter_student_shares_one_network(pipe):
    """The student as an adapter: switched off for the base's steps, it gives the base's own samples."""
    peft = pytest.importorskip("peft")
    pipe.unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name="fast"
    )
    scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    lora = dtviz.Pair(pipe, "fast", distilled_scheduler=scheduler, base_steps=4)
    base = dtviz.generate(lora, "a dog", method="base", seeds=[0])
    fast = dtviz.generate(lora, "a dog", method="distilled", seeds=[0])
    hybrid = dtviz.generate(lora, "a dog", method="hybrid", seeds=[0])
    layer = next(m for m in pipe.unet.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer))
    assert layer.active_adapters == ["fast"]
    assert not layer.disable_adapters
    pipe.unet.disable_adapters()
    plain = pipe(
        "a dog",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=4,
        guidance_scale=5.0,
        output_type="latent",
    )
    torch.testing.assert_close(base.final, plain.images, **CLOSE)
    assert (hybrid.x0[0] - fast.x0[0]).abs().max() > 1e-3
    assert hybrid.steps_run == {"base": 1, "distilled": 3}
    dtviz.generate(lora, "a dog", method="hybrid", seeds=[0])
    assert layer.disable_adapters  # as the caller left it


def test_everything_is_put_back(pair, monkeypatch):
    scheduler = pair.pipeline.scheduler
    monkeypatch.setattr(pair.distilled, "forward", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        dtviz.generate(pair, "a dog", seeds=[0])
    assert pair.pipeline.scheduler is scheduler
    assert "forward" not in vars(pair.base)


def test_a_forward_of_the_instance_is_put_back(pair):
    """Offloading hooks and compiled modules keep their forward in the instance."""
    calls, plain = [], pair.base.forward
    pair.base.forward = lambda *args, **kwargs: calls.append(1) or plain(*args, **kwargs)
    own = pair.base.forward
    dtviz.generate(pair, "a dog", method="base", base_steps=2, seeds=[0])
    assert pair.base.forward is own
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "hybrid", "k": 4}, "k=4 is out of range.*1 to 3"),
        ({"method": "skip", "k": 0}, "k=0 is out of range"),
        ({"method": "fast"}, "method='fast' is not one of base, distilled"),
        ({"prompt": " "}, "prompt=' '"),
        ({"prompt": ["a", "b"]}, "2 texts for 4 seeds"),
        ({"prompt": ["a", ""], "seeds": [0, 1]}, "prompt='' must be a text"),
        ({"prompt": ["a", 3], "seeds": [0, 1]}, "prompt=3 must be a text"),
        ({"prompt": None}, "prompt=None must be a text"),
        ({"prompt": ["a", "b"], "seeds": [0, 1], "particles": 1.0}, "takes one prompt"),
        ({"prompt": ["a", "b"], "seeds": [0, 1], "method": "hybrid", "handed": "mean"}, "takes one prompt"),
        ({"seeds": []}, r"seeds=\(\)"),
        ({"seeds": [1, 1]}, "different integers"),
        ({"handover": "euler"}, "matched-sigma"),
        ({"handed": "nothing"}, "handed='nothing' is not one of x0, mean, zero, own"),
        ({"convention": "paper"}, "convention='paper' is not one of diffusers, formula"),
        ({"steps": 0}, "steps=0 must be an integer of at least 1"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"seeds": [1.5]}, "must be integers"),
        ({"seeds": 5}, "must be integers"),
        ({"guidance": -1.0}, "guidance=-1.0 must be at least 0"),
    ],
)
def test_bad_input_is_refused(pair, arguments, words):
    with pytest.raises(ValueError, match=words):
        dtviz.generate(**({"pair": pair, "prompt": "a dog"} | arguments))


def test_a_matched_handover_without_base_steps_is_refused(pair):
    low = dtviz.Pair(
        pair.pipeline,
        pair.distilled,
        base_scheduler=diffusers.DDIMScheduler.from_config(pair.pipeline.scheduler.config, timestep_spacing="leading"),
        distilled_scheduler=pair.distilled_scheduler,
        timesteps=TIMES,
        base_steps=2,  # 501 and 1, both below the student's 749
    )
    with pytest.raises(ValueError, match="no base step would run"):
        dtviz.generate(low, "a dog", method="hybrid", handover="matched-sigma", seeds=[0])


def test_watch_sees_every_call_and_ends_the_run(pair):
    """Three seeds in batches of two: twice the student's four calls, each counted for every sample in it."""
    seen = []
    trace = dtviz.generate(pair, "dog", seeds=range(3), watch=seen.append)
    assert [(p.done, p.total) for p in seen] == [(i, 12) for i in (2, 4, 6, 8, 9, 10, 11, 12)]
    assert [p.seeds for p in seen] == [(0, 1)] * 4 + [(2,)] * 4
    assert torch.equal(torch.stack([p.x0 for p in seen[:4]]), trace.x0[:, :2])

    def stop(progress):
        raise KeyboardInterrupt

    scheduler = pair.pipeline.scheduler
    with pytest.raises(KeyboardInterrupt):
        dtviz.generate(pair, "dog", seeds=range(3), watch=stop)
    assert pair.pipeline.scheduler is scheduler
    assert torch.equal(dtviz.generate(pair, "dog", seeds=range(3)).x0, trace.x0)
