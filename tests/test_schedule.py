"""x̂0 against the known truth: noise a known x0, feed the exact output, and x̂0 must be x0 at every step."""

import diffusers
import pytest
import torch

import dtviz
from dtviz.schedule import RULES, move, sigma, signal

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPACINGS = ("leading", "linspace", "trailing")
MULTISTEP = diffusers.DPMSolverMultistepScheduler
SETTINGS = [
    *[(diffusers.DDIMScheduler, {"timestep_spacing": s}) for s in SPACINGS],
    *[(diffusers.DDPMScheduler, {"timestep_spacing": s}) for s in SPACINGS],
    (diffusers.DDIMScheduler, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    (diffusers.LCMScheduler, {}),
    *[(diffusers.EulerDiscreteScheduler, {"timestep_spacing": s}) for s in SPACINGS],
    (diffusers.EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    *[(diffusers.EulerAncestralDiscreteScheduler, {"timestep_spacing": s}) for s in SPACINGS],
    *[(MULTISTEP, {"timestep_spacing": s}) for s in SPACINGS],
    (MULTISTEP, {"use_karras_sigmas": True}),
    (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    (MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
]


def exact_output(prediction: str, x0: torch.Tensor, x_t: torch.Tensor, preserving: bool, level: float) -> torch.Tensor:
    """What a perfect denoiser returns, from the definitions: x_t = alpha x0 + beta noise, v = alpha noise - beta x0."""
    alpha = (1 + level**2) ** -0.5
    beta = (1 - alpha**2) ** 0.5
    noise = ((x_t if preserving else x_t * alpha) - alpha * x0) / beta  # whatever is not x0 is noise
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - beta * x0}[prediction]


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning")
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_known_x0(kind, settings, prediction):
    if kind is diffusers.EulerAncestralDiscreteScheduler and prediction == "sample":
        pytest.skip("diffusers itself does not step this scheduler with prediction_type='sample'")
    scheduler = kind(**SDXL, prediction_type=prediction, **settings)
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(2, 4, 8, 8, generator=generator) * 2 - 1
    x_t = torch.randn(x0.shape, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(x_t, timestep)
        level = sigma(scheduler, timestep)
        output = exact_output(prediction, x0, x_t, RULES[kind].variance_preserving, level)
        if prediction == "epsilon" and level == float("inf"):  # no x0 is left in x_t: the noise says nothing of it
            with pytest.raises(NotImplementedError, match="zero signal"):
                dtviz.predict_x0(scheduler, output, timestep, x_t)
            return
        # float32 rounding of x_t is magnified by sigma, up to 15 of it: 15 * 15 * 6e-8 is below 1e-4
        assert (dtviz.predict_x0(scheduler, output, timestep, x_t) - x0).abs().max() < 1e-3
        x_t = scheduler.step(output, timestep, x_t, return_dict=False)[0]


@pytest.mark.parametrize("kind", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.DDPMScheduler])
def test_agrees_with_diffusers_own(kind):
    """Where diffusers returns a true x̂0, ours is the same."""
    options = {} if kind is diffusers.EulerDiscreteScheduler else {"clip_sample": False}
    scheduler = kind(**SDXL, **options)
    scheduler.set_timesteps(5)
    x_t = torch.randn(1, 4, 8, 8) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scheduler.scale_model_input(x_t, timestep)
        output = torch.randn_like(x_t)
        ours = dtviz.predict_x0(scheduler, output, timestep, x_t)
        stepped = scheduler.step(output, timestep, x_t)
        assert (ours - stepped.pred_original_sample).abs().max() < 1e-3
        x_t = stepped.prev_sample


def test_learned_variance_is_dropped():
    scheduler = diffusers.DDPMScheduler(**SDXL, variance_type="learned_range")
    x_t, output = torch.randn(1, 3, 4, 4), torch.randn(1, 6, 4, 4)
    plain = dtviz.predict_x0(diffusers.DDPMScheduler(**SDXL), output[:, :3], 500, x_t)
    assert torch.equal(dtviz.predict_x0(scheduler, output, 500, x_t), plain)


def test_half_precision_is_computed_in_float32():
    scheduler = diffusers.DDIMScheduler(**SDXL)
    x_t, output = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 4, 8, 8).bfloat16()
    ours = dtviz.predict_x0(scheduler, output, 999, x_t)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, dtviz.predict_x0(scheduler, output.float(), 999, x_t.float()))


@pytest.mark.parametrize(
    ("source", "target"), [("DDIMScheduler", "EulerDiscreteScheduler"), ("EulerDiscreteScheduler", "LCMScheduler")]
)
def test_move_keeps_signal_and_noise(source, target):
    """Handing over known x0 and noise gives exactly their mixture at the new level and in the new scale."""
    source, target = getattr(diffusers, source)(**SDXL), getattr(diffusers, target)(**SDXL)
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    x_t = (x0 + 7.0 * noise) * signal(source, 7.0)
    moved = move(x_t, x0, scheduler=source, sigma=7.0, to=target, to_sigma=1.5)
    torch.testing.assert_close(moved, (x0 + 1.5 * noise) * signal(target, 1.5), atol=1e-5, rtol=0)


def test_unknown_scheduler_is_refused_by_name():
    assert diffusers.PNDMScheduler not in RULES
    with pytest.raises(NotImplementedError, match="PNDMScheduler"):
        dtviz.predict_x0(diffusers.PNDMScheduler(), torch.zeros(1), 1, torch.zeros(1))
    flow = MULTISTEP(use_flow_sigmas=True, prediction_type="flow_prediction")
    with pytest.raises(NotImplementedError, match="use_flow_sigmas"):
        dtviz.predict_x0(flow, torch.zeros(1, 1), 1, torch.zeros(1, 1))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 6, 4, 4\)"):
        dtviz.predict_x0(diffusers.DDIMScheduler(**SDXL), torch.zeros(1, 6, 4, 4), 10, torch.zeros(1, 3, 4, 4))
