"""One noise coordinate for every scheduler, and the predicted clean sample x̂0 in it.

`sigma` is the noise standard deviation over the signal standard deviation. A scheduler keeps its samples either
variance-preserving, x_t = (x0 + sigma * noise) / sqrt(1 + sigma²), or variance-exploding, x_t = x0 + sigma * noise.
Only the rules in `RULES` are known to be right; any other scheduler class is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
)


@dataclass(frozen=True)
class Rule:
    """How one scheduler class keeps its samples: where sigma comes from and whether variance is preserved."""

    sigma: Callable[..., torch.Tensor]
    variance_preserving: bool


def _sigma_from_alphas(scheduler, timestep) -> torch.Tensor:
    alpha = scheduler.alphas_cumprod[int(timestep)].double()
    return ((1 - alpha) / alpha).sqrt()


def _sigma_from_steps(scheduler, timestep) -> torch.Tensor:
    index = scheduler.step_index
    if index is None:  # before the first step of a run
        index = scheduler.begin_index
    if index is None:
        index = scheduler.index_for_timestep(torch.as_tensor(timestep))
    return scheduler.sigmas[index].double()


# By exact class: a subclass may keep its samples another way.
RULES: dict[type, Rule] = {
    DDIMScheduler: Rule(_sigma_from_alphas, variance_preserving=True),
    DDPMScheduler: Rule(_sigma_from_alphas, variance_preserving=True),
    LCMScheduler: Rule(_sigma_from_alphas, variance_preserving=True),
    DPMSolverMultistepScheduler: Rule(_sigma_from_steps, variance_preserving=True),
    EulerDiscreteScheduler: Rule(_sigma_from_steps, variance_preserving=False),
    EulerAncestralDiscreteScheduler: Rule(_sigma_from_steps, variance_preserving=False),
}


def rule(scheduler) -> Rule:
    """The rule for this scheduler.

    Raises:
        NotImplementedError: the class, or a setting of it, has no rule; the message names it.
    """
    kind = type(scheduler)
    if kind not in RULES:
        known = ", ".join(sorted(known.__name__ for known in RULES))
        raise NotImplementedError(f"{kind.__name__} has no x̂0 rule yet; known are {known}")
    if scheduler.config.get("use_flow_sigmas"):
        raise NotImplementedError(f"{kind.__name__} with use_flow_sigmas=True has no x̂0 rule yet")
    return RULES[kind]


def sigma(scheduler, timestep) -> float:
    """The noise level of the sample that enters the step at `timestep`."""
    return float(rule(scheduler).sigma(scheduler, timestep))


def signal(scheduler, sigma: float) -> float:
    """The factor of x0 in this scheduler's samples at noise level `sigma`: 1, or 1 / sqrt(1 + sigma²)."""
    return (1 + sigma**2) ** -0.5 if rule(scheduler).variance_preserving else 1.0


def predict_x0(scheduler, model_output: torch.Tensor, timestep, sample: torch.Tensor) -> torch.Tensor:
    """The clean sample that the denoiser plans (equation 2 of the paper), unclipped.

        x0 = dtviz.predict_x0(pipe.scheduler, model_output, t, latents)    # just before pipe.scheduler.step(...)

    Args:
        scheduler: the diffusers scheduler, before its `step` for this timestep.
        model_output: (n, channels, ...) what the denoiser returned, after guidance; channels may be doubled by a
            learned variance, which is dropped.
        timestep: the timestep given to the denoiser.
        sample: (n, channels, ...) the noisy sample in the scheduler's own scale, before the step.

    Returns:
        (n, channels, ...) float32, whatever the inputs' type: near sigma 15 half precision is off by 0.05.

    Raises:
        NotImplementedError: the scheduler class or its prediction type has no rule.
        ValueError: the shapes do not fit.
    """
    preserving = rule(scheduler).variance_preserving
    level = rule(scheduler).sigma(scheduler, timestep).to(sample.device, torch.float32)
    x_t, output = sample.float(), model_output.float()
    if output.shape[1] == 2 * x_t.shape[1] and str(scheduler.config.get("variance_type", "")).startswith("learned"):
        output = output[:, : x_t.shape[1]]
    if output.shape != x_t.shape:
        raise ValueError(
            f"model_output has shape {tuple(model_output.shape)}, sample {tuple(sample.shape)}: they must agree"
        )

    alpha = (1 + level**2).rsqrt()  # 0 at zero terminal signal, where sigma is infinite
    beta = (1 - alpha**2).sqrt()
    x_t = x_t if preserving else x_t * alpha  # to alpha * x0 + beta * noise, where every formula below lives
    match scheduler.config.prediction_type:
        case "epsilon" if alpha > 0:
            return (x_t - beta * output) / alpha
        case "sample":
            return output
        case "v_prediction":  # Salimans & Ho 2022: v = alpha * noise - beta * x0
            return alpha * x_t - beta * output
        case other:
            where = "" if alpha > 0 else " at zero signal (rescale_betas_zero_snr=True)"
            raise NotImplementedError(
                f"{type(scheduler).__name__} with prediction_type={other!r} has no x̂0 rule{where}"
            )


def move(x_t: torch.Tensor, x0: torch.Tensor, *, scheduler, sigma: float, to, to_sigma: float) -> torch.Tensor:
    """One deterministic (DDIM) step from `scheduler` at `sigma` to the scheduler `to` at `to_sigma`.

    The noise in `x_t` that `x0` does not explain is kept and rescaled, so that both the change of noise level and the
    change between variance-preserving and variance-exploding samples are exact. (n, ...) float32 in and out.
    """
    alpha = (1 + sigma**2) ** -0.5
    x_t = x_t.float() if rule(scheduler).variance_preserving else x_t.float() * alpha
    noise = (x_t - alpha * x0) / (1 - alpha**2) ** 0.5
    return (x0 + to_sigma * noise) * signal(to, to_sigma)
