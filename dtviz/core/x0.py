"""Predicted x0 (equation 2 of the paper) for every scheduler, and the step from one scheduler's noise level to another's.

x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)  # just before pipe.scheduler.step(...)

`schedulers.py` says how each scheduler keeps its samples. Coefficients are computed in float64 and applied in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .schedulers import exact, find, prediction, space


def predict_x0(
    scheduler,
    model_output: torch.Tensor,
    timestep,
    sample: torch.Tensor,
    *,
    clip: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Return the clean sample that the denoiser predicts (equation 2).

    For a noise prediction eps on variance-preserving samples:
        x0 = (x_t - sqrt(1 - alpha_t) * eps) / sqrt(alpha_t)

    Args:
        scheduler: the diffusers scheduler. Second-order ones have to stand before their `step` for this timestep.
        model_output: (n, channels, ...) the denoiser's output after guidance. Channels of a learned variance are dropped.
        timestep: the timestep given to `step`.
        sample: (n, channels, ...) the noisy sample in the scheduler's own scale, before the step.
        clip: clip or threshold x0 if the scheduler's settings say so.
        arguments: other arguments of the `step` call. Two video schedulers read their noise level there.

    Returns:
        (n, channels, ...) float32, whatever the input type. In half precision x0 at sigma 15 would be off by 0.05.

    Raises:
        NotImplementedError: the scheduler class or its prediction type has no x0. The message says why.
        ValueError: the shapes differ.

        x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)
    """
    scheduler = _at_timestep(scheduler, timestep)
    level = noise_level(scheduler, timestep, arguments)
    return x0_at_level(scheduler, model_output, timestep, sample, level, clip=clip)


def _at_timestep(scheduler, timestep):
    """Return the scheduler, or a copy that has forgotten its step counter if that stands at another timestep."""
    index, timesteps = getattr(scheduler, "step_index", None), scheduler.timesteps
    timestep = torch.as_tensor(timestep, device=getattr(timesteps, "device", None))
    if index is None or (timestep.numel() == 1 and index < len(timesteps) and timesteps[index] == timestep):
        return scheduler
    scheduler = copy.copy(scheduler)
    scheduler._step_index = scheduler._begin_index = None
    return scheduler


def x0_at_level(scheduler, model_output, timestep, sample, level: torch.Tensor, *, clip: bool = False) -> torch.Tensor:
    """Return `predict_x0` for a noise level that is known already."""
    formula = FORMULAS[prediction(scheduler)]
    x_t, output = sample.float(), model_output.float()
    if output.ndim > 1 and output.shape[1] == 2 * x_t.shape[1] and _learns_variance(scheduler):
        output = output[:, : x_t.shape[1]]
    if output.shape != x_t.shape:
        raise ValueError(
            f"model_output has shape {tuple(model_output.shape)}, sample {tuple(sample.shape)}: must be equal"
        )
    if level.ndim == 1:  # one level per sample
        level = level.reshape(-1, *[1] * (x_t.ndim - 1))
    x0 = formula(scheduler, timestep, level, x_t, output)
    return _clip(scheduler, x0) if clip else x0


def noise_level(scheduler, timestep, arguments: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return the sigma of the sample that enters the step at `timestep`: a scalar, (n,), or one per token."""
    return find(scheduler).sigma(scheduler, timestep, arguments or {})


def sigma_at(scheduler, timestep) -> float:
    """Return `noise_level` of a batch whose samples share it."""
    return float(noise_level(scheduler, timestep).flatten()[0])


def noise_to_signal(scheduler, sigma: float) -> float:
    """Return noise std / signal std at this scheduler's `sigma`, the coordinate all spaces share. inf without signal."""
    if space(scheduler) != "flow":
        return sigma
    return sigma / (1 - sigma) if sigma < 1 else math.inf


def signal_and_noise(scheduler, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (a, b) of this scheduler's samples x_t = a x0 + b eps at noise level `sigma`."""
    match space(scheduler):
        case "vp":
            a = (1 + sigma**2).rsqrt()
            return a, (1 - a**2).sqrt()  # not sigma * a, because sigma is infinite at zero signal
        case "ve":
            return torch.ones_like(sigma), sigma
        case _:
            return 1 - sigma, sigma


def ddim_step(x_t: torch.Tensor, x0: torch.Tensor, *, scheduler, sigma: float, to, to_sigma: float) -> torch.Tensor:
    """Make one deterministic step from `scheduler` at `sigma` to the scheduler `to` at `to_sigma` (Song et al. 2021, eq. 12).

    The noise in x_t that x0 does not explain is kept and rescaled: x = a' x0 + b' (x_t - a x0) / b. Each sigma is in its own
    scheduler's space. (n, ...) float32 in and out.
    """
    a, b = (float(c) for c in signal_and_noise(scheduler, exact(sigma)))
    to_a, to_b = (float(c) for c in signal_and_noise(to, exact(to_sigma)))
    return to_a * x0 + to_b * (x_t.float() - a * x0) / b


def _learns_variance(scheduler) -> bool:
    return str(scheduler.config.get("variance_type", "")).startswith("learned")


def _clip(scheduler, x0: torch.Tensor) -> torch.Tensor:
    config, clips = scheduler.config, find(scheduler).clips
    if "thresholding" in clips and config.thresholding:
        return scheduler._threshold_sample(x0)
    limit = config.get("clip_sample_range", 1.0)
    return x0.clamp(-limit, limit) if any(config[name] for name in clips) else x0


# Formulas: (scheduler, timestep, level, x_t, denoiser output) -> x0


def _on(x: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
    # A scalar on the CPU mixes with a CUDA tensor without a copy. Copying it to the device would make the host wait.
    return [value.float() if value.ndim == 0 else value.to(x.device, torch.float32) for value in values]


def _epsilon(scheduler, _, level, x_t, output):
    a, b = signal_and_noise(scheduler, level)
    # Only these settings reach zero signal. Reading the tensor in all cases would wait for the device at every step.
    if (scheduler.config.get("rescale_betas_zero_snr") or space(scheduler) == "flow") and bool((a <= 0).any()):
        raise NotImplementedError(
            f"{type(scheduler).__name__} with prediction_type='epsilon' has no x0 at zero signal (sigma "
            f"{float(level.max()):g}): the sample is pure noise there"
        )
    a, b = _on(x_t, a, b)
    return (x_t - b * output) / a


def _v(scheduler, _, level, x_t, output):
    """Salimans & Ho 2022: v = alpha eps - beta x0, on samples of unit variance."""
    a, b = signal_and_noise(scheduler, level)
    scale = (a**2 + b**2).sqrt()
    to_x, to_v = _on(x_t, a / scale**2, b / scale)
    return to_x * x_t - to_v * output


def _flow(scheduler, _, level, x_t, output):
    """Liu et al. 2023: v = eps - x0 on the straight line between the two."""
    (level,) = _on(x_t, level)
    return x_t - level * output


def _edm(scheduler, _, level, x_t, output):
    """Karras et al. 2022, table 1. With v_prediction the output has the opposite sign (Evans et al. 2024)."""
    data, sign = scheduler.config.sigma_data, {"epsilon": 1, "v_prediction": -1}.get(scheduler.config.prediction_type)
    if sign is None:
        kind = scheduler.config.prediction_type
        raise NotImplementedError(f"{type(scheduler).__name__} with prediction_type={kind!r} has no x0 rule")
    total = level**2 + data**2
    skip, out = _on(x_t, data**2 / total, sign * level * data / total.sqrt())
    return skip * x_t + out * output


def _consistency(scheduler, _, level, x_t, output):
    """Song et al. 2023, appendix C: the skip that makes f(x, sigma_min) = x."""
    data, above = scheduler.config.sigma_data, level - scheduler.config.sigma_min
    skip, out = _on(x_t, data**2 / (above**2 + data**2), above * data / (level**2 + data**2).sqrt())
    return skip * x_t + out * output


def _consistency_decoder(scheduler, timestep, _, x_t, output):
    out, skip = _on(x_t, scheduler.c_out[timestep], scheduler.c_skip[timestep])
    return out * output + skip * x_t


def _score(scheduler, _, level, x_t, output):
    """Tweedie's formula: the output is the gradient of log p(x_t)."""
    (variance,) = _on(x_t, level**2)
    return x_t + variance * output


FORMULAS: dict[str, Callable[..., torch.Tensor]] = {
    "epsilon": _epsilon,
    "sample": lambda *arguments: arguments[-1].clone(),  # the pipeline may change its own tensor in place
    "v_prediction": _v,
    "trigflow": _v,  # Lu & Song 2024: x_t = cos(t) x0 + sin(t) eps
    "flow_prediction": _flow,
    "velocity to the data": lambda *arguments: _flow(*arguments[:-1], -arguments[-1]),
    "negative epsilon": lambda *arguments: _epsilon(*arguments[:-1], -arguments[-1]),
    "edm": _edm,
    "consistency": _consistency,
    "consistency decoder": _consistency_decoder,
    "score": _score,
}
