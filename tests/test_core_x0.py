"""Noise levels, precision and the DDIM step. x0 of every scheduler class is in test_core_schedulers.py."""

import diffusers
import numpy as np
import pytest
import torch

import dtviz
from dtviz.core.capture import Recorder
from dtviz.core.schedulers import exact
from dtviz.core.x0 import ddim_step, noise_level, noise_to_signal, sigma_at, signal_and_noise

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def test_learned_variance_is_dropped_and_other_shapes_are_refused():
    scheduler = diffusers.DDPMScheduler(**SDXL, variance_type="learned_range")
    x_t, output = torch.randn(1, 3, 4, 4), torch.randn(1, 6, 4, 4)
    plain = diffusers.DDPMScheduler(**SDXL)
    expected = dtviz.predict_x0(plain, output[:, :3], 500, x_t)
    assert torch.equal(dtviz.predict_x0(scheduler, output, 500, x_t), expected)
    with pytest.raises(ValueError, match=r"\(1, 6, 4, 4\)"):
        dtviz.predict_x0(plain, output, 500, x_t)


def test_half_precision_is_computed_in_float32():
    scheduler = diffusers.DDIMScheduler(**SDXL)
    x_t, output = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 4, 8, 8).bfloat16()
    x0 = dtviz.predict_x0(scheduler, output, 999, x_t)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, dtviz.predict_x0(scheduler, output.float(), 999, x_t.float()))


@pytest.mark.parametrize("names", ["DDIM Euler", "Euler LCM", "Euler FlowMatchEuler", "FlowMatchEuler DDIM"])
def test_ddim_step_keeps_x0_and_noise(names):
    """A mixture of known x0 and noise becomes exactly their mixture at the new level and in the new space."""
    kinds = [getattr(diffusers, f"{name}Scheduler".replace("EulerS", "EulerDiscreteS")) for name in names.split()]
    source, target = (kind(**({} if "Flow" in kind.__name__ else SDXL)) for kind in kinds)
    x0, noise, sigma, to_sigma = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), 0.875, 0.6
    (a, b), (to_a, to_b) = signal_and_noise(source, exact(sigma)), signal_and_noise(target, exact(to_sigma))
    x = ddim_step((a * x0 + b * noise).float(), x0, scheduler=source, sigma=sigma, to=target, to_sigma=to_sigma)
    torch.testing.assert_close(x, (to_a * x0 + to_b * noise).float(), atol=1e-5, rtol=0)


def test_signal_and_noise_of_the_three_spaces():
    for name, expected, ratio in (
        ("DDIMScheduler", (0.8, 0.6), 0.75),
        ("EulerDiscreteScheduler", (1.0, 0.75), 0.75),
        ("FlowMatchEulerDiscreteScheduler", (0.25, 0.75), 3.0),
    ):
        scheduler = getattr(diffusers, name)()
        np.testing.assert_allclose([float(c) for c in signal_and_noise(scheduler, exact(0.75))], expected)
        assert noise_to_signal(scheduler, 0.75) == ratio


def test_zero_signal_is_infinite_sigma():
    scheduler = diffusers.DDIMScheduler(**SDXL, rescale_betas_zero_snr=True)
    assert sigma_at(scheduler, 999) == float("inf")
    assert [float(c) for c in signal_and_noise(scheduler, noise_level(scheduler, 999))] == [0.0, 1.0]


@pytest.mark.parametrize("stochastic", [False, True])
def test_one_noise_level_per_token(stochastic):
    """Video pipelines that condition on clean frames step each token from its own timestep, by -v unless stochastic."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(4)
    x0, noise, sigma = torch.rand(2, 3, 8), torch.randn(2, 3, 8), torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.25, 0.75]])
    lowest = float(scheduler.sigmas[-2])
    for level in (sigma, torch.full((2, 3), lowest)):  # the second one ends at sigma 0
        arguments = {"per_token_timesteps": level * 1000}
        x_t = (1 - level)[..., None] * x0 + level[..., None] * noise
        output = (noise - x0) if stochastic else (x0 - noise)
        ours = dtviz.predict_x0(scheduler, output, scheduler.timesteps[0], x_t, arguments=arguments)
        torch.testing.assert_close(ours, x0, atol=1e-5, rtol=0)
        last = scheduler.step(output, scheduler.timesteps[0], x_t, **arguments).prev_sample
    torch.testing.assert_close(ours, last, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recording_does_not_wait_for_the_gpu():
    scheduler, recorder = diffusers.EulerDiscreteScheduler(), Recorder(x_t=True)
    scheduler.set_timesteps(4, device="cuda")
    x, output = torch.randn(2, 2, 4, 8, 8, device="cuda")
    try:
        for i, t in enumerate(scheduler.timesteps):
            # the second step copies the first, and so allocates memory, which may wait
            torch.cuda.set_sync_debug_mode("error" if i > 1 else "default")
            scheduler._step_index = i
            recorder.before_step(scheduler, output, t, x, expected=4, arguments={})
            recorder.final = x
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert recorder.fields()["x0"].isfinite().all()
