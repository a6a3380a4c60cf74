"""Predicted x0 (equation 2 of the paper) for every scheduler, and the step from one scheduler's noise level to another's.

`schedulers.py` says how each scheduler keeps its samples. Coefficients are computed in float64 and applied in float32.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .schedulers import exact, find, prediction, space


def predict_x0(scheduler, model_output, timestep, sample, *, arguments: Mapping | None = None) -> torch.Tensor:
    """Return the clean sample that the denoiser predicts (equation 2).

    For a noise prediction eps on variance-preserving samples:
        x0 = (x_t - sqrt(1 - alpha_t) * eps) / sqrt(alpha_t)

    Args:
        scheduler: the diffusers scheduler, with its timesteps set. Its counter need not stand at `timestep`.
        model_output: (n, channels, ...) the denoiser's output after guidance. Channels of a learned variance are dropped.
        timestep: the timestep of the sample, or one for each sample, as in training.
        sample: (n, channels, ...) the noisy sample in the scheduler's own scale, before the step.
        arguments: other arguments of the `step` call. Two video schedulers read their noise level there.

    Returns:
        (n, channels, ...) float32, never clipped. In half precision x0 at sigma 15 would be off by 0.05.

    Raises:
        NotImplementedError: the scheduler class or its prediction type has no x0.
        ValueError: the shapes differ, or the timestep is not one of the scheduler's.

        x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)
    """
    arguments, times = arguments or {}, torch.as_tensor(timestep).flatten()
    if len(times) > 1 and arguments.get("per_token_timesteps") is None:
        if len(times) != len(sample):
            raise ValueError(f"timestep has {len(times)} values for {len(sample)} samples: give one, or one for each")
        rows = zip(model_output.split(1), times, sample.split(1), strict=True)
        return torch.cat([predict_x0(scheduler, y, t, x, arguments=arguments) for y, t, x in rows])
    scheduler = _at_timestep(scheduler, timestep, arguments)
    level = noise_level(scheduler, timestep, arguments)
    return x0_at_level(scheduler, model_output, timestep, sample, level, arguments)


def _at_timestep(scheduler, timestep, arguments: Mapping[str, Any]):
    """Return the scheduler, or a copy at this timestep if its own counter stands at another."""
    index, twice = getattr(scheduler, "step_index", None), hasattr(scheduler, "state_in_first_order")
    index = getattr(scheduler, "begin_index", None) if index is None else index
    times, levels = scheduler.timesteps, set()
    stands = index is not None and index < len(times) and same_timestep(times[index], timestep)
    if stands or (index is None and not twice):
        return scheduler
    scheduler = copy.copy(scheduler)
    scheduler._step_index = scheduler._begin_index = None
    for scheduler._step_index in (times == torch.as_tensor(timestep, device=times.device)).nonzero().flatten().tolist():
        if twice:  # the calls of a second-order scheduler alternate
            scheduler.sample = scheduler.dt = None if scheduler._step_index % 2 == 0 else timestep
        levels.add(sigma_at(scheduler, timestep, arguments))
    if len(levels) > 1:
        raise ValueError(f"timestep={float(timestep):g} stands for {len(levels)} noise levels: ask before its step")
    return scheduler


def same_timestep(a, b, *, read: bool = True) -> bool:
    """Tell whether two timesteps are equal. `read=False` never waits for a device: it compares only addresses there."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.device == b.device and (a.data_ptr(), a.storage_offset()) == (b.data_ptr(), b.storage_offset()):
        return True
    return (read or a.device.type == b.device.type == "cpu") and bool((a.to(b.device) == b).all())


def x0_at_level(scheduler, model_output, timestep, sample, level, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return `predict_x0` for a noise level that is known already."""
    x_t, output = sample.float(), model_output.float()
    if "learned" in str(scheduler.config.get("variance_type")) and output.shape[1] == 2 * x_t.shape[1]:
        output = output[:, : x_t.shape[1]]
    if output.shape != x_t.shape:
        raise ValueError(f"model_output {tuple(model_output.shape)} and sample {tuple(sample.shape)} differ in shape")
    # FlowMatchEuler's step then takes the velocity to the data, but for its stochastic steps
    if arguments.get("per_token_timesteps") is not None and not scheduler.config.stochastic_sampling:
        output = -output
    if level.ndim == 1:  # one level per sample
        level = level.reshape(-1, *[1] * (x_t.ndim - 1))
    return FORMULAS[prediction(scheduler)](scheduler, timestep, level, x_t, output)


def noise_level(scheduler, timestep, arguments: Mapping[str, Any] | None = None) -> torch.Tensor:
    """Return the sigma of the sample that enters the step at `timestep`: a scalar, (n,), or one per token."""
    return find(scheduler).sigma(scheduler, timestep, arguments or {})


def sigma_at(scheduler, timestep, arguments: Mapping[str, Any] | None = None) -> float:
    """Return `noise_level` of a batch whose samples share it."""
    return float(noise_level(scheduler, timestep, arguments).flatten()[0])


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

    x = a' x0 + b' (x_t - a x0) / b, in float32. Each sigma is in its own scheduler's space.
    """
    a, b = (float(c) for c in signal_and_noise(scheduler, exact(sigma)))
    to_a, to_b = (float(c) for c in signal_and_noise(to, exact(to_sigma)))
    return to_a * x0 + to_b * (x_t.float() - a * x0) / b


# Formulas: (scheduler, timestep, level, x_t, denoiser output) -> x0


def on(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return a coefficient for `x`. A scalar stays on the CPU: it mixes with a GPU's tensors, and copying it would wait."""
    return value.float() if value.ndim == 0 else value.to(x.device, torch.float32)


def _epsilon(scheduler, _, level, x_t, output):
    a, b = signal_and_noise(scheduler, level)
    # Only these settings reach zero signal. Reading the tensor in all cases would wait for the device at every step.
    if (scheduler.config.get("rescale_betas_zero_snr") or space(scheduler) == "flow") and bool((a <= 0).any()):
        kind = type(scheduler).__name__
        raise NotImplementedError(f"{kind} with 'epsilon' has no x0 at zero signal: the sample is pure noise there")
    return (x_t - on(x_t, b) * output) / on(x_t, a)


def _v(scheduler, _, level, x_t, output):
    """Salimans & Ho 2022: v = alpha eps - beta x0, on samples of unit variance."""
    a, b = signal_and_noise(scheduler, level)
    scale = (a**2 + b**2).sqrt()
    return on(x_t, a / scale**2) * x_t - on(x_t, b / scale) * output


def _flow(scheduler, _, level, x_t, output):
    """Liu et al. 2023: v = eps - x0 on the straight line between the two."""
    return x_t - on(x_t, level) * output


def _edm(scheduler, _, level, x_t, output):
    """Karras et al. 2022, table 1. With v_prediction the output has the opposite sign (Evans et al. 2024)."""
    data, sign = scheduler.config.sigma_data, {"epsilon": 1, "v_prediction": -1}.get(scheduler.config.prediction_type)
    if sign is None:
        kind = scheduler.config.prediction_type
        raise NotImplementedError(f"{type(scheduler).__name__} with prediction_type={kind!r} has no x0 rule")
    total = level**2 + data**2
    return on(x_t, data**2 / total) * x_t + on(x_t, sign * level * data / total.sqrt()) * output


def _consistency(scheduler, _, level, x_t, output):
    """Song et al. 2023, appendix C: the skip that makes f(x, sigma_min) = x."""
    data, above = scheduler.config.sigma_data, level - scheduler.config.sigma_min
    skip, out = data**2 / (above**2 + data**2), above * data / (level**2 + data**2).sqrt()
    return on(x_t, skip) * x_t + on(x_t, out) * output


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
    "consistency decoder": lambda s, t, _, x_t, output: on(x_t, s.c_out[t]) * output + on(x_t, s.c_skip[t]) * x_t,
    # Tweedie's formula: the output is the gradient of log p(x_t)
    "score": lambda _, __, level, x_t, output: x_t + on(x_t, level**2) * output,
}
