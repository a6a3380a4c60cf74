"""Hand-overs between schedulers of other orders and spaces, against plain reference loops written out here."""

from collections.abc import Callable
from dataclasses import replace

import diffusers
import pytest
import torch

import dtviz

from .conftest import tiny_unet
from .test_generate import CLOSE, TIMES, reference
from .tiny import PIPELINES

TRAILING = {"timestep_spacing": "trailing"}


def heun(pair: dtviz.Pair, kind: str = "HeunDiscreteScheduler"):
    return getattr(diffusers, kind).from_config(pair.pipeline.scheduler.config, **TRAILING)


def schedule(scheduler, steps: int) -> tuple[list[float], list[float]]:
    """Sigmas and timesteps of Heun's steps, each once."""
    scheduler.set_timesteps(steps)
    sigmas, times = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    return [sigmas[0], *sigmas[1:-1:2], 0.0], [times[0], *times[1::2]]


def noise_of(pair: dtviz.Pair, role: str) -> Callable[[torch.Tensor, float, float], torch.Tensor]:
    """The noise that a denoiser sees in a sample x0 + sigma noise."""
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


def test_a_second_order_base_hands_over_at_the_end_of_a_step(pair):
    """Eight Heun steps at 999, 874, ...: three whole ones down to 624, and one call from there to the student's 499."""
    pair = replace(pair, base_scheduler=heun(pair))
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=2, handover="matched-sigma", seeds=[5])
    sigmas, times = schedule(heun(pair), 8)
    noise, generator = noise_of(pair, "base"), torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator) * sigmas[0]  # diffusers' init_noise_sigma with trailing spacing
    for step in range(3):
        x = heun_step(noise, x, sigmas, times, step)
    alpha = pair.pipeline.scheduler.alphas_cumprod[499]
    slope = noise(x, sigmas[3], times[3])
    x0 = x - sigmas[3] * slope
    start = alpha.sqrt() * x0 + (1 - alpha).sqrt() * slope
    expected = reference(pair, 5, ["distilled"] * 2, 0.0, times=TIMES[2:], start=start, generator=generator)
    torch.testing.assert_close(trace.final, expected, **CLOSE)
    assert trace.steps_run == {"base": 4, "distilled": 2}
    assert trace.provenance["nfe"] == {"base": 7, "distilled": 2}
    assert [call.step for call in trace.calls] == [0, 0, 1, 1, 2, 2, 3, 4, 5]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", ["skip", "published", "matched"])
def test_a_second_order_student(pair, method, k):
    """Heun students start, and take over, at the first call of a step; a base on DDIM goes down to their noise level."""
    pair = replace(pair, distilled_scheduler=heun(pair), timesteps=None)
    options = {"method": "skip"} if method == "skip" else {"method": "hybrid"}
    if method != "skip":
        options["handover"] = "distilled-scheduler" if method == "published" else "matched-sigma"
    trace = dtviz.generate(pair, "a dog", k=k, seeds=[5], base_steps=4, **options)
    sigmas, times = schedule(heun(pair), 4)
    base, student = noise_of(pair, "base"), noise_of(pair, "distilled")
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    scale = {"skip": (sigmas[k] ** 2 + 1) ** 0.5, "published": sigmas[0], "matched": (sigmas[0] ** 2 + 1) ** 0.5}
    x = x * scale[method]  # diffusers leaves out the + 1 with trailing spacing; DDIM starts at unit variance
    for step in range(0 if method != "skip" else k, 4):
        if step < k and method == "matched":  # DDIM is Euler's method in sigma, and its four steps have Heun's sigmas
            x = x + (sigmas[step + 1] - sigmas[step]) * base(x, sigmas[step], times[step])
        else:
            x = heun_step(base if step < k else student, x, sigmas, times, step)
    torch.testing.assert_close(trace.final, x, **CLOSE)
    assert trace.steps_run == ({} if method == "skip" else {"base": k}) | {"distilled": 4 - k}


SECOND_ORDER = ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler", "PNDMScheduler")


@pytest.mark.parametrize("kind", SECOND_ORDER)
def test_every_second_order_base_runs_as_it_does_alone_until_it_hands_over(pair, kind):
    pair = replace(pair, base_scheduler=heun(pair, kind), base_guidance=0.0)
    options = {"seeds": [5], "x_t": True}
    torch.manual_seed(0)  # DPM-Solver SDE draws from the global state
    alone = dtviz.generate(pair, "a dog", method="base", **options)
    torch.manual_seed(0)
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=1, handover="matched-sigma", **options)
    n = trace.steps_run["base"]
    torch.testing.assert_close(trace.x0[:n], alone.x0[:n])
    sigma, x_t, x0 = float(trace.sigmas[n - 1]), trace.x_t[n - 1], trace.x0[n - 1]
    assert alone.sigmas[n] <= trace.sigmas[n] * 1.002 < sigma
    noise = (x_t * (sigma**2 + 1) ** 0.5 - x0) / sigma
    expected = (x0 + trace.sigmas[n] * noise) / (trace.sigmas[n] ** 2 + 1).sqrt()
    torch.testing.assert_close(trace.x_t[n], expected, **CLOSE)


def test_the_random_state_is_the_callers_own(pair):
    """Where the calls of a step begin is found by running an ancestral scheduler, which draws noise."""
    pair = replace(pair, base_scheduler=heun(pair, "KDPM2AncestralDiscreteScheduler"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    dtviz.generate(pair, "a dog", method="base", base_steps=2, seeds=[5])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_student_that_counts_from_its_first_step_cannot_start_later(pair):
    pair = replace(pair, distilled_scheduler=heun(pair, "PNDMScheduler"), timesteps=None)
    with pytest.raises(NotImplementedError, match="PNDMScheduler cannot start in the middle"):
        dtviz.generate(pair, "a dog", method="skip", seeds=[0])
    trace = dtviz.generate(pair, "a dog", method="hybrid", handover="distilled-scheduler", seeds=[0])
    assert trace.steps_run == {"base": 1, "distilled": 3}
    assert trace.provenance["nfe"] == {"base": 4, "distilled": 9}  # Runge-Kutta: four calls in each of the first three


@pytest.mark.parametrize(("base", "expected_nfe"), [("FlowMatchEuler", 3), ("FlowMatchHeun", 5)])
def test_flow_models_hand_over_on_sigma(base, expected_nfe):
    """SD3: the base's eight sigmas are shifted by 3, the student's four by 1; they meet at the student's .5, on no base step."""
    tiny = PIPELINES["sd3"]()
    pipe, states = tiny.pipe, tiny.call
    pipe.encode_prompt = lambda **kwargs: (
        states["prompt_embeds"], None, states["pooled_prompt_embeds"], None,
    )  # fmt: skip
    torch.manual_seed(3)
    student = type(pipe.transformer).from_config(pipe.transformer.config).eval()
    options = {"base_scheduler": getattr(diffusers, f"{base}DiscreteScheduler")(shift=3.0)}
    options["distilled_scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pair = dtviz.Pair(pipe, student, base_steps=8, size=(16, 16), **options)
    trace = dtviz.generate(pair, "a dog", method="hybrid", k=2, handover="matched-sigma", seeds=[5])

    schedules = pair.base_scheduler, pair.distilled_scheduler
    for scheduler, steps in zip(schedules, (8, 4), strict=True):
        scheduler.set_timesteps(steps)
    own, last = pair.base_scheduler.sigmas.unique().flip(0), pair.distilled_scheduler.sigmas
    first = [float(sigma) for sigma in own if sigma > last[2] * 1.001]

    @torch.no_grad()
    def velocity(network, x, sigma):
        t = torch.tensor([1000 * float(sigma)])
        return network(x, states["prompt_embeds"], states["pooled_prompt_embeds"], t, return_dict=False)[0]

    x = torch.randn(trace.final.shape, generator=torch.Generator().manual_seed(5))
    for here, there in zip(first, [*first[1:], float(last[2])], strict=True):
        slope = velocity(pipe.transformer, x, here)
        if base == "FlowMatchHeun" and there != float(last[2]):
            slope = (slope + velocity(pipe.transformer, x + (there - here) * slope, there)) / 2
        x = x + (there - here) * slope
    for step in (2, 3):
        x = x + (last[step + 1] - last[step]) * velocity(student, x, last[step])
    torch.testing.assert_close(trace.final, x, atol=1e-4, rtol=1e-3)
    assert trace.steps_run == {"base": len(first), "distilled": 2}
    assert trace.provenance["nfe"]["base"] == 2 * len(first) - 1 if base == "FlowMatchHeun" else len(first)


def test_the_students_own_plan_is_the_student_alone(pair):
    """Handed its own plan in place of the base's, a student goes on as if it had made the first step itself."""
    options = {"method": "hybrid", "k": 1, "handover": "distilled-scheduler", "seeds": [5, 6]}
    own = dtviz.generate(pair, "a dog", handed="own", **options)
    alone = dtviz.generate(pair, "a dog", method="distilled", seeds=[5, 6])
    torch.testing.assert_close(own.final, alone.final, **CLOSE)
    assert own.provenance["nfe"] == {"base": 1, "distilled": 4}  # the probe counts


@pytest.mark.parametrize("base_guidance", [0.0, 4.0])
def test_the_students_own_plan_at_matched_noise_level(pair, base_guidance):
    """It is what the student makes of the base's last sample, under its own guidance."""
    options = {"method": "hybrid", "k": 2, "handover": "matched-sigma", "seeds": [5], "x_t": True}
    options["base_guidance"] = base_guidance
    plain, own = (dtviz.generate(pair, "a dog", handed=handed, **options) for handed in ("x0", "own"))
    n = plain.steps_run["base"]
    text = pair.pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0]
    alphas, t = pair.pipeline.scheduler.alphas_cumprod, int(plain.timesteps[n - 1])
    x_t = plain.x_t[n - 1]
    with torch.no_grad():
        theirs = (x_t - (1 - alphas[t]).sqrt() * pair.distilled(x_t, t, text).sample) / alphas[t].sqrt()
    change = alphas[499].sqrt() * (theirs - plain.x0[n - 1])
    torch.testing.assert_close(own.x_t[n] - plain.x_t[n], change, **CLOSE)


def test_guidance_may_change_from_step_to_step(pair):
    """The reference's two base steps, the first without guidance and the second with; and equal scales are one scale."""
    options = {"method": "hybrid", "k": 2, "handover": "distilled-scheduler", "seeds": [5]}
    one = dtviz.generate(pair, "a dog", base_guidance=4.0, **options)
    same = dtviz.generate(pair, "a dog", base_guidance=[4.0, 4.0], **options)
    assert torch.equal(one.final, same.final)
    mixed = dtviz.generate(pair, "a dog", base_guidance=[0.0, 4.0], **options)
    assert mixed.provenance["nfe"] == {"base": 3, "distilled": 2}
    torch.testing.assert_close(mixed.x0[0], dtviz.generate(pair, "a dog", **options).x0[0], **CLOSE)
    pipe, alphas = pair.pipeline, pair.pipeline.scheduler.alphas_cumprod
    text, empty = pipe.encode_prompt(["a dog"], "cpu", 1, True)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        x0 = (x - (1 - alphas[999]).sqrt() * pair.base(x, 999, text).sample) / alphas[999].sqrt()
        x = alphas[749].sqrt() * x0 + (1 - alphas[749]).sqrt() * torch.randn(x.shape, generator=generator)
        unguided, guided = pair.base(x, 749, empty).sample, pair.base(x, 749, text).sample
    noise = unguided + 4.0 * (guided - unguided)
    torch.testing.assert_close(mixed.x0[1], (x - (1 - alphas[749]).sqrt() * noise) / alphas[749].sqrt(), **CLOSE)
    with pytest.raises(ValueError, match="base_guidance has 3 values, and this run makes 2 base steps"):
        dtviz.generate(pair, "a dog", base_guidance=[0.0, 4.0, 4.0], **options)


def test_offload_keeps_one_network_on_the_accelerator(pair, monkeypatch):
    """The order of moves, on a stand-in for an accelerator: never two there, and each there when it is called."""
    places, moves = {"base": "cpu", "distilled": "cpu"}, []
    for role, network in (("base", pair.base), ("distilled", pair.distilled)):
        forward = network.forward

        def to(device, role=role):
            places[role] = "host" if device == "cpu" and role != moves_to[-1] else "accelerator"
            moves.append((role, places[role]))
            assert list(places.values()).count("accelerator") <= 1

        def called(*args, role=role, forward=forward, **kwargs):
            assert places[role] == "accelerator"
            return forward(*args, **kwargs)

        monkeypatch.setattr(network, "to", to)
        monkeypatch.setattr(network, "forward", called)
    moves_to = ["base"]
    use = dtviz.networks.Offload.use

    def telling(self, role):
        moves_to.append(role)
        use(self, role)

    monkeypatch.setattr(dtviz.networks.Offload, "use", telling)
    away = dtviz.generate(replace(pair, offload=True), "a dog", method="hybrid", k=2, seeds=[5])
    assert moves == [
        ("distilled", "host"), ("base", "accelerator"), ("base", "host"), ("distilled", "accelerator"),
        ("distilled", "host"), ("base", "accelerator"),
    ]  # fmt: skip
    monkeypatch.undo()
    assert torch.equal(away.final, dtviz.generate(pair, "a dog", method="hybrid", k=2, seeds=[5]).final)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_offload_halves_the_denoisers_memory(pair):
    pair.pipeline.to("cuda")
    away = replace(pair, offload=True, distilled=tiny_unet(2))
    dtviz.generate(away, "a dog", method="hybrid", seeds=[5])
    assert (away.base.device.type, away.distilled.device.type) == ("cuda", "cpu")
