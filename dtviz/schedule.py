"""One noise coordinate for every scheduler, the predicted clean sample x̂0, and the hand-over between schedulers.

dtviz.schedulers()          # the scheduler classes of diffusers, how they keep their samples, and which have no x̂0
x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)    # just before pipe.scheduler.step(...)

`sigma` is the noise level in the scheduler's own space, see `dtviz.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch

from .rules import exact, find, prediction, rows, space


def schedulers() -> pd.DataFrame:
    """The scheduler classes of diffusers: how each keeps its samples, what its denoiser predicts, calls for N steps.

    Columns `scheduler`, `space` ("vp", "ve", "flow", see `dtviz.rules`; empty where there is no x̂0), `denoiser predicts`
    (or why it is refused) and `calls`.

        dtviz.schedulers().query("space == 'flow'")
    """
    return pd.DataFrame(rows())


def noise_level(scheduler, timestep, arguments: Mapping[str, Any] | None = None) -> torch.Tensor:
    """The noise level of the sample that enters the step at `timestep`; scalar, (n,) or one a token; on its own device."""
    return find(scheduler).sigma(scheduler, timestep, arguments or {})


def sigma(scheduler, timestep) -> float:
    """`noise_level` of a batch whose samples share it."""
    return float(noise_level(scheduler, timestep).flatten()[0])


def ratio(scheduler, sigma: float) -> float:
    """Noise deviation over signal at this scheduler's `sigma`: the noise level that all spaces share; infinite without signal."""
    if space(scheduler) != "flow":
        return sigma
    return sigma / (1 - sigma) if sigma < 1 else math.inf


def coefficients(scheduler, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, b) of this scheduler's samples x_t = a x0 + b noise at noise level `sigma`."""
    match space(scheduler):
        case "vp":
            a = (1 + sigma**2).rsqrt()
            return a, (1 - a**2).sqrt()  # not sigma * a: sigma is infinite where no signal is left
        case "ve":
            return torch.ones_like(sigma), sigma
        case _:
            return 1 - sigma, sigma


def predict_x0(
    scheduler,
    model_output: torch.Tensor,
    timestep,
    sample: torch.Tensor,
    *,
    clip: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """The clean sample that the denoiser plans (equation 2 of the paper).

        x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)    # just before pipe.scheduler.step(...)

    Args:
        scheduler: the diffusers scheduler, before its `step` for this timestep.
        model_output: (n, channels, ...) what the denoiser returned, after guidance; channels may be doubled by a
            learned variance, which is dropped.
        timestep: the timestep given to `step`.
        sample: (n, channels, ...) the noisy sample in the scheduler's own scale, before the step.
        clip: as the scheduler itself clips or thresholds it, if its settings say so; raw otherwise.
        arguments: the other arguments of the `step` call; two video schedulers have their noise level there.

    Returns:
        (n, channels, ...) float32, whatever the inputs' type: near sigma 15 half precision is off by 0.05.

    Raises:
        NotImplementedError: the scheduler class, or its prediction type, has no x̂0; the message says why.
        ValueError: the shapes do not fit.
    """
    return planned(scheduler, model_output, timestep, sample, noise_level(scheduler, timestep, arguments), clip=clip)


def planned(
    scheduler, model_output: torch.Tensor, timestep, sample: torch.Tensor, level: torch.Tensor, *, clip: bool
) -> torch.Tensor:
    """`predict_x0` where the noise level is known already."""
    formula = FORMULAS[prediction(scheduler)]
    x_t, output = sample.float(), model_output.float()
    if output.ndim > 1 and output.shape[1] == 2 * x_t.shape[1] and _learns_variance(scheduler):
        output = output[:, : x_t.shape[1]]
    if output.shape != x_t.shape:
        raise ValueError(
            f"model_output has shape {tuple(model_output.shape)}, sample {tuple(sample.shape)}: they must agree"
        )
    if level.ndim == 1:  # one a sample
        level = level.reshape(-1, *[1] * (x_t.ndim - 1))
    x0 = formula(scheduler, timestep, level, x_t, output)
    return _clip(scheduler, x0) if clip else x0


def _learns_variance(scheduler) -> bool:
    return str(scheduler.config.get("variance_type", "")).startswith("learned")


def _clip(scheduler, x0: torch.Tensor) -> torch.Tensor:
    config, clips = scheduler.config, find(scheduler).clips
    if "thresholding" in clips and config.thresholding:
        return scheduler._threshold_sample(x0)
    if any(name in clips and config[name] for name in ("clip_sample", "clip_denoised")):
        limit = config.get("clip_sample_range", 1.0)
        return x0.clamp(-limit, limit)
    return x0


# What the denoiser returned -> x0. Coefficients are computed in float64 and applied in float32.


def _on(x: torch.Tensor, *values: torch.Tensor) -> list[torch.Tensor]:
    return [value.to(x.device, torch.float32) for value in values]


def _epsilon(scheduler, _, level, x_t, output):
    a, b = coefficients(scheduler, level)
    # only these settings reach zero signal: asking the tensor itself would wait for the device at every step
    if (scheduler.config.get("rescale_betas_zero_snr") or space(scheduler) == "flow") and bool((a <= 0).any()):
        raise NotImplementedError(
            f"{type(scheduler).__name__} with prediction_type='epsilon' has no x̂0 at zero signal, sigma "
            f"{float(level.max()):g}: nothing but noise is left in the sample"
        )
    a, b = _on(x_t, a, b)
    return (x_t - b * output) / a


def _v(scheduler, _, level, x_t, output):
    """Salimans & Ho 2022: v = alpha noise - beta x0, on samples of unit variance."""
    a, b = coefficients(scheduler, level)
    scale = (a**2 + b**2).sqrt()
    to_x, to_v = _on(x_t, a / scale**2, b / scale)
    return to_x * x_t - to_v * output


def _flow(scheduler, _, level, x_t, output):
    """Liu et al. 2023: v = noise - x0 on the straight line between the two."""
    (level,) = _on(x_t, level)
    return x_t - level * output


def _edm(scheduler, _, level, x_t, output):
    """Karras et al. 2022, table 1; with v_prediction the output's sign is turned (Evans et al. 2024)."""
    data, sign = scheduler.config.sigma_data, {"epsilon": 1, "v_prediction": -1}.get(scheduler.config.prediction_type)
    if sign is None:
        raise NotImplementedError(
            f"{type(scheduler).__name__} with prediction_type={scheduler.config.prediction_type!r} has no x̂0 rule"
        )
    total = level**2 + data**2
    skip, out = _on(x_t, data**2 / total, sign * level * data / total.sqrt())
    return skip * x_t + out * output


def _consistency(scheduler, _, level, x_t, output):
    """Song et al. 2023, appendix C: the skip that makes f(x, sigma_min) = x."""
    data, least = scheduler.config.sigma_data, scheduler.config.sigma_min
    skip, out = _on(
        x_t, data**2 / ((level - least) ** 2 + data**2), (level - least) * data / (level**2 + data**2).sqrt()
    )
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
    "sample": lambda *arguments: arguments[-1].clone(),  # the denoiser's own may be changed in place
    "v_prediction": _v,
    "trigflow": _v,  # Lu & Song 2024: x_t = cos(t) x0 + sin(t) noise
    "flow_prediction": _flow,
    "velocity to the data": lambda *arguments: _flow(*arguments[:-1], -arguments[-1]),
    "negative epsilon": lambda *arguments: _epsilon(*arguments[:-1], -arguments[-1]),
    "edm": _edm,
    "consistency": _consistency,
    "consistency decoder": _consistency_decoder,
    "score": _score,
}


def move(x_t: torch.Tensor, x0: torch.Tensor, *, scheduler, sigma: float, to, to_sigma: float) -> torch.Tensor:
    """One deterministic (DDIM) step from `scheduler` at `sigma` to the scheduler `to` at `to_sigma`.

    The noise in `x_t` that `x0` does not explain is kept and rescaled, so that both the change of noise level and the
    change of space are exact. Each sigma is in its own scheduler's space. (n, ...) float32 in and out.
    """
    a, b = (float(c) for c in coefficients(scheduler, exact(sigma)))
    to_a, to_b = (float(c) for c in coefficients(to, exact(to_sigma)))
    return to_a * x0 + to_b * (x_t.float() - a * x0) / b
