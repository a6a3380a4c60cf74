"""Noise levels, precision and the hand-over; what x̂0 is, class by class, is in test_rules.py."""

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import dtviz
from dtviz.recorder import Recorder
from dtviz.rules import exact
from dtviz.schedule import coefficients, move, noise_level, sigma

from .oracle import run, told

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


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
    ("source", "target"),
    [
        ("DDIMScheduler", "EulerDiscreteScheduler"),
        ("EulerDiscreteScheduler", "LCMScheduler"),
        ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler"),
    ],
)
def test_move_keeps_signal_and_noise(source, target):
    """Handing over known x0 and noise gives exactly their mixture at the new level and in the new space."""
    source, target = (
        getattr(diffusers, name)(**({} if name.startswith("Flow") else SDXL)) for name in (source, target)
    )
    x0, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    here, there = 0.875, 0.6
    a, b = coefficients(source, exact(here))
    to_a, to_b = coefficients(target, exact(there))
    x_t = (a * x0 + b * noise).float()
    moved = move(x_t, x0, scheduler=source, sigma=here, to=target, to_sigma=there)
    torch.testing.assert_close(moved, (to_a * x0 + to_b * noise).float(), atol=1e-5, rtol=0)


def test_coefficients_of_the_three_spaces():
    level = exact(0.75)
    for name, expected in (
        ("DDIMScheduler", (0.8, 0.6)),
        ("EulerDiscreteScheduler", (1.0, 0.75)),
        ("FlowMatchEulerDiscreteScheduler", (0.25, 0.75)),
    ):
        np.testing.assert_allclose([float(c) for c in coefficients(getattr(diffusers, name)(), level)], expected)


def test_zero_signal_is_infinite_sigma():
    scheduler = diffusers.DDIMScheduler(**SDXL, rescale_betas_zero_snr=True)
    assert sigma(scheduler, 999) == float("inf")
    assert [float(c) for c in coefficients(scheduler, noise_level(scheduler, 999))] == [0.0, 1.0]


VP = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)
VE = ("EulerDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler")


@settings(
    derandomize=True, max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from((*VP, *VE, "EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")),
    steps=st.integers(2, 40),
    spacing=st.sampled_from(["leading", "linspace", "trailing"]),
    sigmas=st.sampled_from([None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]),
    prediction=st.sampled_from(["epsilon", "v_prediction"]),
    betas=st.sampled_from([("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012), ("squaredcos_cap_v2", 0.0, 0.0)]),
    shift=st.floats(0.3, 12),
)
def test_known_x0_whatever_the_settings(monkeypatch, name, steps, spacing, sigmas, prediction, betas, shift):
    """The known-x0 oracle on settings nobody listed, on the scheduler's own samples."""
    kind = getattr(diffusers, name)
    asked = {"timestep_spacing": spacing, "prediction_type": prediction, "shift": shift}
    asked |= dict(zip(("beta_schedule", "beta_start", "beta_end"), betas, strict=True)) | (
        {sigmas: True} if sigmas else {}
    )
    takes = kind.__init__.__wrapped__.__code__.co_varnames
    scheduler = kind(**{key: value for key, value in asked.items() if key in takes})

    def check(x0, truth, x_t):
        a, b, _ = truth.parts(x_t)
        assume(b / a < 1000)  # beyond, float32 holds nothing of x0
        # 1e-3 up to sigma 10; beyond, float32 rounding in the schedulers' own steps moves the sample off its line
        assert float((x0.double() - truth.x0).abs().max()) < max(1e-3, 1e-4 * b / a)

    # DEIS divides by differences of log sigma, which beta spacing makes tiny: its own samples leave the line
    level = told if name == "DEISMultistepScheduler" else None
    run(scheduler, monkeypatch, steps=steps, check=check, nominal=level)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 6, 4, 4\)"):
        dtviz.predict_x0(diffusers.DDIMScheduler(**SDXL), torch.zeros(1, 6, 4, 4), 10, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "LCMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler",
     "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"],
)  # fmt: skip
def test_x0_never_asks_the_device_for_a_number(name):
    """A tensor on the meta device has no numbers: asking for one, as waiting for a GPU does, fails."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(0) if hasattr(scheduler, "set_begin_index") else None
    x = torch.zeros(1, 4, 8, 8, device="meta")
    x0 = dtviz.predict_x0(scheduler, x, scheduler.timesteps[1], x)
    assert x0.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_recording_does_not_wait_for_the_gpu(name):
    """torch refuses every synchronising call."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(4, device="cuda")
    scheduler.set_begin_index(0)
    x, output = torch.randn(2, 4, 8, 8, device="cuda"), torch.randn(2, 4, 8, 8, device="cuda")
    recorder = Recorder(x_t=True)
    recorder.before(scheduler, output, scheduler.timesteps[0], x)  # sets memory aside, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder.before(scheduler, output, scheduler.timesteps[0], x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.after((x,))
    torch.testing.assert_close(
        recorder.fields()["x0"][1], dtviz.predict_x0(scheduler, output, scheduler.timesteps[0], x).cpu()
    )
