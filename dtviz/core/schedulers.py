"""How each diffusers scheduler class keeps its samples: the table behind `predict_x0` and `capture`.

A sample of clean x0 and unit noise eps is, in the three spaces,

    vp    (x0 + sigma eps) / sqrt(1 + sigma^2)   variance-preserving; sigma = noise std / signal std
    ve    x0 + sigma eps                         variance-exploding
    flow  (1 - sigma) x0 + sigma eps             rectified flow; sigma is the scheduler's own, 0 to 1

Classes with continuous samples have a rule in `RULES`, the others a reason in `REFUSED`. A class in neither is refused.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

Sigma = Callable[[Any, Any, Mapping[str, Any]], torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """How to read one scheduler class just before its `step`."""

    space: str  # "vp", "ve" or "flow"; with `use_flow_sigmas=True` a "vp" class is "flow"
    sigma: Sigma  # (scheduler, timestep, the step's other arguments) -> the sample's noise level
    # Allowed values of `prediction_type`, or the one thing that the denoiser always predicts
    predictions: tuple[str, ...] = ("epsilon", "sample", "v_prediction")
    calls: str = "N"  # denoiser calls for N steps
    first: Callable[[Any], bool] | None = None  # whether the coming call starts a step; None: each call is a step
    step: str = "step"  # the stepping method, and its names of model output, timestep and sample
    names: tuple[str, str, str] = ("model_output", "timestep", "sample")

    def begins(self, scheduler) -> bool:
        """Tell whether the coming call starts a step."""
        return self.first is None or bool(self.first(scheduler))


def exact(value) -> torch.Tensor:
    """Return the value in float64, or in float32 on devices without it."""
    value = torch.as_tensor(value)
    return value.float() if value.device.type == "mps" else value.double()


def _ratio(alpha_cumprod) -> torch.Tensor:
    alpha_cumprod = exact(alpha_cumprod)
    return ((1 - alpha_cumprod) / alpha_cumprod).sqrt()


def index_of(scheduler, timestep) -> int:
    """Return the number of the coming step, as the scheduler's own `step` counts it."""
    for index in (scheduler.step_index, getattr(scheduler, "begin_index", None)):
        if index is not None:
            return index
    timestep = torch.as_tensor(timestep, device=scheduler.timesteps.device)
    # Some classes take their last timestep instead of an unknown one
    if not bool((scheduler.timesteps == timestep).any()):
        raise ValueError(f"timestep={timestep.tolist()} is not one of the {type(scheduler).__name__}'s timesteps")
    probe = copy.copy(scheduler)
    probe._init_step_index(timestep)
    return probe.step_index


# Functions that read sigma: (scheduler, timestep, arguments of the step) -> noise level


def _by_timestep(scheduler, timestep, _) -> torch.Tensor:
    table = scheduler.alphas_cumprod
    return _ratio(table[torch.as_tensor(timestep, device=table.device).long()])


def _by_shifted_timestep(scheduler, timestep, _) -> torch.Tensor:
    """DDIM inversion has its sample one step below the timestep that the denoiser gets."""
    train = scheduler.config.num_train_timesteps
    below = min(int(timestep) - train // scheduler.num_inference_steps, train - 1)
    return _ratio(scheduler.alphas_cumprod[below] if below >= 0 else scheduler.initial_alpha_cumprod)


def _by_index(scheduler, timestep, _) -> torch.Tensor:
    # Before set_timesteps the sigmas are in another order than the timesteps
    if find(scheduler).space == "vp" and scheduler.num_inference_steps is None:
        raise ValueError(f"{type(scheduler).__name__} has no timesteps yet: call its set_timesteps first")
    return exact(scheduler.sigmas[index_of(scheduler, timestep)])


def _in_two_calls(second: Callable[[Any, int], torch.Tensor]) -> Sigma:
    """Read the level of a step's second call by `second`."""

    def sigma(scheduler, timestep, _) -> torch.Tensor:
        index = index_of(scheduler, timestep)
        return exact(scheduler.sigmas[index] if scheduler.state_in_first_order else second(scheduler, index))

    return sigma


def _flow_match(scheduler, timestep, arguments) -> torch.Tensor:
    tokens = arguments.get("per_token_timesteps")
    if tokens is not None:
        return exact(tokens)[..., None] / scheduler.config.num_train_timesteps
    sigma = _by_index(scheduler, timestep, arguments)
    return 1 - sigma if scheduler.config.get("invert_sigmas") else sigma


def _helios_dmd(scheduler, timestep, arguments) -> torch.Tensor:
    sigmas, timesteps = (arguments.get(name) for name in ("dmd_sigmas", "dmd_timesteps"))
    if sigmas is None or timesteps is None:
        raise ValueError("HeliosDMDScheduler takes its noise level from the arguments dmd_sigmas and dmd_timesteps")
    nearest = (timesteps - torch.as_tensor(timestep, device=timesteps.device)).abs().argmin()
    return exact(sigmas.to(timesteps.device)[nearest])


def _cosine(scheduler, timestep, _) -> torch.Tensor:
    timestep = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)
    return _ratio(scheduler._alpha_cumprod(timestep, timestep.device))


def _score_ve(scheduler, timestep, _) -> torch.Tensor:
    index = (torch.as_tensor(timestep) * (len(scheduler.timesteps) - 1)).long()
    return exact(scheduler.discrete_sigmas[index.to(scheduler.discrete_sigmas.device)])


def _score_vp(scheduler, timestep, _) -> torch.Tensor:
    t, low, high = exact(timestep), scheduler.config.beta_min, scheduler.config.beta_max
    return _ratio(torch.exp(2 * (-0.25 * t**2 * (high - low) - 0.5 * t * low)))


def _prk(scheduler) -> bool:
    """PNDM's Runge-Kutta steps take four calls. Without them the first step takes two."""
    if scheduler.config.skip_prk_steps:
        return scheduler.counter != 1
    return scheduler.counter >= len(scheduler.prk_timesteps) or scheduler.counter % 4 == 0


_EPS_V = ("epsilon", "v_prediction")
_FLOW = ("flow_prediction",)
_TWICE = {"calls": "2N - 1", "first": lambda scheduler: scheduler.state_in_first_order}
# flow_prediction only with use_flow_sigmas, see `prediction`
_MULTISTEP = Rule("vp", _by_index, ("epsilon", "sample", "v_prediction", "flow_prediction"))

RULES: dict[str, Rule] = {
    "DDIMScheduler": Rule("vp", _by_timestep),
    "DDIMParallelScheduler": Rule("vp", _by_timestep),
    "DDIMInverseScheduler": Rule("vp", _by_shifted_timestep),
    "DDPMScheduler": Rule("vp", _by_timestep),
    "DDPMParallelScheduler": Rule("vp", _by_timestep),
    "DDPMWuerstchenScheduler": Rule("vp", _cosine, ("epsilon",)),
    "UnCLIPScheduler": Rule("vp", _by_timestep, ("epsilon", "sample")),
    "RePaintScheduler": Rule("vp", _by_timestep, ("epsilon",)),
    "CogVideoXDDIMScheduler": Rule("vp", _by_timestep),
    "CogVideoXDPMScheduler": Rule("vp", _by_timestep),
    "LCMScheduler": Rule("vp", _by_timestep),
    "TCDScheduler": Rule("vp", _by_timestep),
    "PNDMScheduler": Rule("vp", _by_timestep, _EPS_V, calls="N + 1 (N + 9 with Runge-Kutta)", first=_prk),
    "IPNDMScheduler": Rule("vp", lambda s, t, _: exact(s.betas[i := index_of(s, t)]) / exact(s.alphas[i]), ("v_prediction",)),
    "ConsistencyDecoderScheduler": Rule("vp", lambda s, t, _: _ratio(exact(s.sqrt_alphas_cumprod[t]) ** 2), ("consistency decoder",)),
    "ScoreSdeVpScheduler": Rule("vp", _score_vp, ("epsilon",), step="step_pred", names=("score", "t", "x")),
    "DPMSolverMultistepScheduler": _MULTISTEP,
    "DPMSolverMultistepInverseScheduler": _MULTISTEP,
    "DPMSolverSinglestepScheduler": _MULTISTEP,
    "UniPCMultistepScheduler": _MULTISTEP,
    "DEISMultistepScheduler": _MULTISTEP,
    "SASolverScheduler": _MULTISTEP,
    "SCMScheduler": Rule("vp", lambda s, t, _: exact(s.timesteps[index_of(s, t)]).tan().abs(), ("trigflow",)),
    "EulerDiscreteScheduler": Rule("ve", _by_index),
    "EulerAncestralDiscreteScheduler": Rule("ve", _by_index, _EPS_V),
    "LMSDiscreteScheduler": Rule("ve", _by_index),
    "HeunDiscreteScheduler": Rule("ve", _by_index, **_TWICE),
    "KDPM2DiscreteScheduler": Rule("ve", _in_two_calls(lambda s, i: s.sigmas_interpol[i]), _EPS_V, **_TWICE),
    "KDPM2AncestralDiscreteScheduler": Rule("ve", _in_two_calls(lambda s, i: s.sigmas_interpol[i - 1]), _EPS_V, **_TWICE),
    "DPMSolverSDEScheduler": Rule("ve", _in_two_calls(lambda s, i: (exact(s.sigmas[i - 1]) * s.sigmas[i]).sqrt()), _EPS_V, **_TWICE),
    "EDMEulerScheduler": Rule("ve", _by_index, ("edm",)),
    "EDMDPMSolverMultistepScheduler": Rule("ve", _by_index, ("edm",)),
    "CosineDPMSolverMultistepScheduler": Rule("ve", _by_index, ("edm",)),
    "CMStochasticIterativeScheduler": Rule("ve", _by_index, ("consistency",)),
    "KarrasVeScheduler": Rule(
        "ve", lambda _, sigma_hat, __: exact(sigma_hat), ("negative epsilon",),
        names=("model_output", "sigma_hat", "sample_hat"),
    ),
    "ScoreSdeVeScheduler": Rule("ve", _score_ve, ("score",), step="step_pred"),
    "FlowMatchEulerDiscreteScheduler": Rule("flow", _flow_match, _FLOW),
    "FlowMatchHeunDiscreteScheduler": Rule("flow", _by_index, _FLOW, **_TWICE),
    "FlowMatchLCMScheduler": Rule("flow", _by_index, _FLOW),
    "LTXEulerAncestralRFScheduler": Rule("flow", _by_index, _FLOW),
    "HeliosScheduler": Rule("flow", _by_index, ("sample", "flow_prediction")),
    "HeliosDMDScheduler": Rule("flow", _helios_dmd, _FLOW),
    "MiniMaxH3Scheduler": Rule("flow", lambda _, t, __: 1 - exact(t), ("velocity to the data",)),
    "RFD4ProteinaScheduler": Rule("flow", lambda _, t, __: 1 - exact(t), ("velocity to the data",)),
}  # fmt: skip

_TOKENS = "it samples discrete tokens, which have no continuous x0"
REFUSED: dict[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "its model predicts the average velocity to another noise level, not to the data",
    "PiflowScheduler": "its model predicts a policy that is rolled out inside the step",
}


def find(scheduler) -> Rule:
    """Return the rule of this scheduler's class, or raise NotImplementedError."""
    kind, name = type(scheduler), type(scheduler).__name__
    if name in REFUSED:
        raise NotImplementedError(f"{name} has no x0: {REFUSED[name]}")
    if name not in RULES or not kind.__module__.startswith("diffusers."):
        raise NotImplementedError(f"{kind.__module__}.{name} has no x0 rule; dtviz.schedulers() lists those that have")
    if (stages := scheduler.config.get("stages", 1)) != 1:
        raise NotImplementedError(f"{name} with stages={stages} has no x0: a stage flows to the next, not to the data")
    return RULES[name]


def active(scheduler) -> Any:
    """Return the scheduler that makes the next step: of a `HandoverScheduler` the one of its coming call, else itself."""
    call = getattr(scheduler, "call", None)
    return scheduler if call is None else call.scheduler


def space(scheduler) -> str:
    """Return how this scheduler keeps its samples: "vp", "ve" or "flow"."""
    return "flow" if scheduler.config.get("use_flow_sigmas") else find(scheduler).space


def prediction(scheduler) -> str:
    """Return what the denoiser predicts for this scheduler, or raise NotImplementedError if there is no rule for it."""
    rule, config, name = find(scheduler), scheduler.config, type(scheduler).__name__
    if config.get("invert_sigmas"):
        if rule.sigma is not _flow_match:
            raise NotImplementedError(f"{name} with invert_sigmas=True has no x0 rule: its step ignores it")
        return "velocity to the data"
    if len(rule.predictions) == 1:
        return rule.predictions[0]
    kind = "sample" if config.prediction_type == "original_sample" else config.prediction_type
    # v_prediction on flow sigmas, or the reverse: diffusers' formulas and the definitions of v disagree there
    fits = kind != ("v_prediction" if space(scheduler) == "flow" else "flow_prediction")
    if kind not in rule.predictions or not fits:
        flow = f" and use_flow_sigmas={config.use_flow_sigmas}" if "use_flow_sigmas" in config else ""
        raise NotImplementedError(f"{name} with prediction_type={kind!r}{flow} has no x0 rule")
    return kind


def schedulers() -> pd.DataFrame:
    """Return the scheduler classes of diffusers: their space, what the denoiser predicts or why they are refused, and calls.

    dtviz.schedulers().query("space == 'flow'")
    """
    rows = [
        (name, f"{rule.space} or flow" if rule is _MULTISTEP else rule.space, ", ".join(rule.predictions), rule.calls)
        for name, rule in RULES.items()
    ]
    rows += [(name, "", f"refused: {reason}", "") for name, reason in REFUSED.items()]
    return pd.DataFrame(rows, columns=["scheduler", "space", "denoiser predicts", "calls"])
