"""Hand-overs between schedulers of other orders and spaces, against plain reference loops."""

from collections.abc import Callable
from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz
from dtviz.core.denoisers import DenoiserRouter
from dtviz.core.handover import DenoiserCall, HandoverScheduler, denoising_calls

from .oracle import Watch, WatchPython
from .test_core_generate import CLOSE, TIMES, reference
from .tiny import PIPELINES, add_lora, tiny_unet


def heun(pair: dtviz.Pair, kind: str = "HeunDiscreteScheduler"):
    return getattr(diffusers, kind).from_config(pair.pipeline.scheduler.config, timestep_spacing="trailing")


def schedule(scheduler, steps: int) -> tuple[list[float], list[float]]:
    """Sigmas and timesteps of Heun's steps, each once."""
    scheduler.set_timesteps(steps)
    sigmas, times = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    return [sigmas[0], *sigmas[1:-1:2], 0.0], [times[0], *times[1::2]]


def noise_of(pair: dtviz.Pair, role: str) -> Callable[[torch.Tensor, float, float], torch.Tensor]:
    """The noise that a denoiser predicts in a sample x0 + sigma noise."""
    text = pair.pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0]
    network = pair.base if role == "base" else pair.distilled

    @torch.no_grad()
    def noise(x: torch.Tensor, sigma: float, t: float) -> torch.Tensor:
        return network(x / (sigma**2 + 1) ** 0.5, t, text).sample

    return noise


def heun_step(noise, x: torch.Tensor, sigmas: list[float], times: list[float], step: int) -> torch.Tensor:
    """Karras et al. 2022, algorithm 1 without churn: Euler there, and the mean of both slopes back."""
    here, there = sigmas[step], sigmas[step + 1]
    slope = noise(x, here, times[step])
    ahead = x + (there - here) * slope
    return ahead if there == 0 else x + (there - here) * (slope + noise(ahead, there, times[step + 1])) / 2


def test_matched_sigma_is_base_ddim_then_the_distilled_model(pair):
    """The base on its own 8-step DDIM grid (999, 874, 749, ...) down to the distilled model's 499."""
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
    expected = reference(pair, 5, ["distilled"] * 2, times=TIMES[2:], start=x, generator=generator)
    torch.testing.assert_close(trace.final, expected, **CLOSE)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", ["skip", "distilled-scheduler", "matched-sigma"])
def test_a_second_order_distilled_model(pair, method, k):
    """It starts at the first call of a Heun step. A base on DDIM goes down to its noise level."""
    pair = replace(pair, distilled_scheduler=heun(pair), timesteps=None)
    options = {"method": "skip"} if method == "skip" else {"method": "hybrid", "handover": method}
    trace = dtviz.generate(pair, "a dog", k=k, seeds=[5], base_steps=4, **options)
    sigmas, times = schedule(heun(pair), 4)
    base, distilled = noise_of(pair, "base"), noise_of(pair, "distilled")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    first = sigmas[k] if method == "skip" else sigmas[0]
    # diffusers leaves out the + 1 with trailing spacing; DDIM and a skipped start are at unit variance
    x = x * (first if method == "distilled-scheduler" else (first**2 + 1) ** 0.5)
    for step in range(0 if method != "skip" else k, 4):
        if step < k and method == "matched-sigma":  # DDIM is Euler's method in sigma, at Heun's four sigmas
            x = x + (sigmas[step + 1] - sigmas[step]) * base(x, sigmas[step], times[step])
        else:
            x = heun_step(base if step < k else distilled, x, sigmas, times, step)
    torch.testing.assert_close(trace.final, x, **CLOSE)
    assert trace.steps_run == ({} if method == "skip" else {"base": k}) | {"distilled": 4 - k}


# Denoiser calls of a step
SECOND_ORDER = {"HeunDiscrete": 2, "KDPM2Discrete": 2, "KDPM2AncestralDiscrete": 2, "DPMSolverSDE": 2, "PNDM": 4}


@pytest.mark.parametrize("kind", SECOND_ORDER)
def test_every_second_order_base_runs_as_it_does_alone_until_it_hands_over(pair, kind):
    pair = replace(pair, base_scheduler=heun(pair, f"{kind}Scheduler"), base_guidance=0.0)
    options = {"seeds": [5], "x_t": True}
    torch.manual_seed(0)  # DPM-Solver SDE draws from the global state
    alone = dtviz.generate(pair, "a dog", method="base", **options)
    torch.manual_seed(0)
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=1, handover="matched-sigma", **options)
    n = trace.steps_run["base"]
    torch.testing.assert_close(trace.x0[:n], alone.x0[:n])
    calls = SECOND_ORDER[kind] * (n - 1) + 1  # whole steps, and the call that hands over
    assert trace.provenance["nfe"] == {"base": calls, "distilled": 3}
    assert [call.step for call in trace.calls] == [i // SECOND_ORDER[kind] for i in range(calls)] + [n, n + 1, n + 2]
    sigma, x_t, x0 = float(trace.sigmas[n - 1]), trace.x_t[n - 1], trace.x0[n - 1]
    assert alone.sigmas[n] <= trace.sigmas[n] * 1.002 < sigma
    noise = (x_t * (sigma**2 + 1) ** 0.5 - x0) / sigma
    expected = (x0 + trace.sigmas[n] * noise) / (trace.sigmas[n] ** 2 + 1).sqrt()
    torch.testing.assert_close(trace.x_t[n], expected, **CLOSE)


def test_the_global_random_state_is_kept(pair):
    """The first calls of steps are found by a trial run of the scheduler, which draws noise if it is ancestral."""
    pair = replace(pair, base_scheduler=heun(pair, "KDPM2AncestralDiscreteScheduler"))
    before = torch.get_rng_state()
    dtviz.generate(pair, "a dog", method="base", base_steps=2, seeds=[5])
    assert torch.equal(torch.get_rng_state(), before)


def test_handovers_that_cannot_run_are_refused(pair):
    pndm = replace(pair, distilled_scheduler=heun(pair, "PNDMScheduler"), timesteps=None)
    with pytest.raises(NotImplementedError, match="PNDMScheduler cannot start in the middle"):
        dtviz.generate(pndm, "a dog", method="skip", seeds=[0])
    trace = dtviz.generate(pndm, "a dog", method="hybrid", handover="distilled-scheduler", seeds=[0])
    assert trace.steps_run == {"base": 1, "distilled": 3}
    assert trace.provenance["nfe"] == {"base": 4, "distilled": 9}  # Runge-Kutta: four calls in each of the first three
    leading = diffusers.DDIMScheduler.from_config(pair.base_scheduler.config, timestep_spacing="leading")
    low = replace(pair, base_scheduler=leading, base_steps=2)  # 501 and 1, both below the distilled model's 749
    with pytest.raises(ValueError, match="no base step would run"):
        dtviz.generate(low, "a dog", method="hybrid", handover="matched-sigma", seeds=[0])


@pytest.mark.parametrize("base", ["FlowMatchEuler", "FlowMatchHeun"])
def test_flow_models_hand_over_on_sigma(base):
    """SD3: the base's eight sigmas are shifted by 3, the distilled model's four by 1. They meet at .5, on no base step."""
    tiny = PIPELINES["sd3"]()
    pipe, text, pooled = tiny.pipe, tiny.call["prompt_embeds"], tiny.call["pooled_prompt_embeds"]
    pipe.encode_prompt = lambda **kwargs: (text, None, pooled, None)
    torch.manual_seed(3)
    distilled = type(pipe.transformer).from_config(pipe.transformer.config).eval()
    options = {"base_scheduler": getattr(diffusers, f"{base}DiscreteScheduler")(shift=3.0)}
    options["distilled_scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pair = dtviz.Pair(pipe, distilled, base_steps=8, size=(16, 16), **options)
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=2, handover="matched-sigma", seeds=[5])

    for scheduler, steps in ((pair.base_scheduler, 8), (pair.distilled_scheduler, 4)):
        scheduler.set_timesteps(steps)
    last = pair.distilled_scheduler.sigmas
    first = [float(sigma) for sigma in pair.base_scheduler.sigmas.unique().flip(0) if sigma > last[2] * 1.001]

    @torch.no_grad()
    def velocity(network, x, sigma):
        return network(x, text, pooled, torch.tensor([1000 * float(sigma)]), return_dict=False)[0]

    x = torch.randn(trace.final.shape, generator=torch.Generator().manual_seed(5))
    for here, there in zip(first, [*first[1:], float(last[2])], strict=True):
        slope = velocity(pipe.transformer, x, here)
        if base == "FlowMatchHeun" and there != float(last[2]):
            slope = (slope + velocity(pipe.transformer, x + (there - here) * slope, there)) / 2
        x = x + (there - here) * slope
    for step in (2, 3):
        x = x + (last[step + 1] - last[step]) * velocity(distilled, x, last[step])
    torch.testing.assert_close(trace.final, x, atol=1e-4, rtol=1e-3)
    assert trace.steps_run == {"base": len(first), "distilled": 2}
    assert trace.provenance["nfe"]["base"] == (2 * len(first) - 1 if base == "FlowMatchHeun" else len(first))


# The schedulers that known pairs have, each as a base or a distilled model's
META = {
    "DDIM": "LCM", "EulerDiscrete": "EulerAncestralDiscrete", "PNDM": "TCD", "DPMSolverMultistep": "DDIM",
    "FlowMatchEulerDiscrete": "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete": "FlowMatchLCM",
}  # fmt: skip


@pytest.mark.parametrize("handover", ["distilled-scheduler", "matched-sigma"])
@pytest.mark.parametrize("base", META)
def test_no_step_makes_the_host_wait(pair, base, handover):
    base, distilled = (getattr(diffusers, f"{name}Scheduler")() for name in (base, META[base]))
    pair = replace(pair, base_scheduler=base, distilled_scheduler=distilled, timesteps=None)
    settings = {"method": "hybrid", "k": 2, "steps": 4, "base_steps": 8, "handover": handover}
    calls = denoising_calls(pair, guidance={"base": 0.0, "distilled": 0.0}, **settings)
    scheduler = HandoverScheduler(calls, edit_x0=lambda x0, call: x0 / 2, keep_x0=True)
    scheduler.set_timesteps(device="meta")
    x = torch.empty(2, 4, 8, 8, device="meta")
    with Watch(), WatchPython():
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x)[0]
    assert scheduler.index == len(calls)


def test_no_routed_call_makes_the_host_wait(pair):
    """A guidance scale that is an input is copied to the device once. A LoRA's weights are there."""
    base, distilled = tiny_unet(1), tiny_unet(2, time_cond_proj_dim=8).to("meta")
    add_lora(base, "fast")
    base.to("meta")
    x, t, text = (torch.empty(shape, device="meta") for shape in ((2, 4, 8, 8), (), (2, 4, 16)))
    for network in (distilled, "fast"):
        calls = [DenoiserCall(role, None, None, guidance=3.0) for role in ("base", "distilled")] * 2
        router = DenoiserRouter(pair.pipeline, base, network, next_call=lambda: calls.pop(0), is_doubled=lambda x: True)  # noqa: B023
        with router.active():
            base(x, t, text), base(x, t, text)
            with Watch(), WatchPython():
                base(x, t, text), base(x, t, text)
        assert router.evaluations["base"] == 4
