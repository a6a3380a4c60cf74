"""The oracle that needs no weights: a known clean sample, noise that is orthogonal to it, and an exact denoiser.

Every noise that a scheduler draws is made orthogonal to the clean sample and to all earlier noise, and of unit size. So
a sample a x0 + b n gives its a and b back exactly, whatever a stochastic scheduler added, and the exact output of a
denoiser follows from the sample alone: no noise level of dtviz takes part in it.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, field

import torch

import dtviz
from dtviz import rules
from dtviz.schedule import coefficients, noise_level

SHAPE = (1, 4, 8, 8)


@dataclass
class Truth:
    """A clean sample in [-1, 1], and a supply of orthogonal unit noise."""

    shape: tuple[int, ...] = SHAPE
    basis: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.x0 = torch.rand(self.shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        self.basis.append(self.x0 / self.x0.norm())

    def noise(self, *_, **__) -> torch.Tensor:
        """Stands in for every random draw of a scheduler."""
        draw = torch.randn(self.shape, generator=self.generator, dtype=torch.float64)
        for _ in range(2):  # twice: orthogonal to rounding
            for known in self.basis:
                draw = draw - (draw * known).sum() * known
        draw = draw / draw.norm()
        self.basis.append(draw)
        return (draw * self.x0.numel() ** 0.5).float()

    def parts(self, x_t: torch.Tensor) -> tuple[float, float, torch.Tensor]:
        """a, b and the unit noise n of x_t = a x0 + b n."""
        x_t = x_t.double()
        a = float((x_t * self.x0).sum() / (self.x0**2).sum())
        rest = x_t - a * self.x0
        b = float(rest.norm() / rest.numel() ** 0.5)
        return a, b, rest / b

    def output(self, prediction: str, x_t: torch.Tensor, scheduler, timestep) -> torch.Tensor:
        """What an exact denoiser returns, from the definitions."""
        a, b, n = self.parts(x_t)
        size = (a**2 + b**2) ** 0.5
        x_t = x_t.double()
        match prediction:
            case "epsilon":
                value = n
            case "negative epsilon":
                value = -n
            case "sample":
                value = self.x0
            case "v_prediction" | "trigflow":
                value = (a * n - b * self.x0) / size
            case "flow_prediction":
                value = n - self.x0
            case "velocity to the data":
                value = self.x0 - n
            case "score":
                value = -n / b
            case "edm":  # the network F whose preconditioned output is the clean sample
                data = scheduler.config.sigma_data
                sign = -1 if scheduler.config.prediction_type == "v_prediction" else 1
                skip, out = data**2 / (b**2 + data**2), sign * b * data / (b**2 + data**2) ** 0.5
                value = (self.x0 - skip * x_t) / out
            case "consistency":
                level = scheduler.sigmas[rules.index_of(scheduler, timestep)]
                skip, out = (float(c) for c in scheduler.get_scalings_for_boundary_condition(level))
                value = (self.x0 - skip * x_t) / out
            case "consistency decoder":
                value = (self.x0 - float(scheduler.c_skip[timestep]) * x_t) / float(scheduler.c_out[timestep])
        return value.float()


def told(scheduler, call: int, _) -> tuple[float, float]:
    """a and b of a sample at the noise level that the scheduler keeps for this call: variance-preserving, or flow."""
    sigma = float(scheduler.sigmas[call])
    if scheduler.config.use_flow_sigmas:
        return 1 - sigma, sigma
    return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


def run(scheduler, monkeypatch, *, steps: int, check, nominal=None, **how):
    """Step through a whole run on exact outputs; `check(x0, truth, x_t)` at every call.

    The samples are the scheduler's own, or, with `nominal(scheduler, call, timestep) -> (a, b)`, a x0 + b n anew at each.
    """
    truth = Truth(how.pop("shape", SHAPE))
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", truth.noise)
    if hasattr(module, "BrownianTreeNoiseSampler"):
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *_, **__: truth.noise)
    scheduler.set_timesteps(steps, **how)
    if hasattr(scheduler, "set_begin_index"):  # spacings may repeat a timestep, which no longer says where the run is
        scheduler.set_begin_index(0)
    timesteps = scheduler.timesteps
    if type(scheduler).__name__ in ("SCMScheduler", "DDPMWuerstchenScheduler"):
        timesteps = timesteps[:-1]  # the last one is where the run ends
    rule, kind = rules.find(scheduler), rules.prediction(scheduler)
    x_t, old = None, None
    for i, t in enumerate(timesteps):
        timestep, extra = _arguments(scheduler, timesteps, i, t, truth, old)
        if nominal is not None:
            a, b = nominal(scheduler, i, t)
            x_t = (a * truth.x0 + b * truth.noise().double()).float()
        elif x_t is None:
            a, b = (float(c) for c in coefficients(scheduler, noise_level(scheduler, timestep, extra).max()))
            x_t = (a * truth.x0 + b * truth.noise().double()).float()
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x_t, t)
        output = truth.output(kind, x_t, scheduler, timestep)
        x0 = dtviz.predict_x0(scheduler, output, timestep, x_t, arguments=extra)
        check(x0, truth, x_t)
        given = dict(zip(rule.names, (output, timestep, x_t), strict=True)) | extra
        step = getattr(scheduler, rule.step)
        takes = inspect.signature(step).parameters
        stepped = step(**{name: value for name, value in given.items() if name in takes})
        x_t = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        if type(scheduler).__name__ == "CogVideoXDPMScheduler":
            old = stepped[1]


def _arguments(scheduler, timesteps, i: int, t, truth: Truth, old) -> tuple:
    """The timestep as this class takes it, and the other arguments of its `step`."""
    match type(scheduler).__name__:
        case "CogVideoXDPMScheduler":
            return t, {"old_pred_original_sample": old, "timestep_back": timesteps[i - 1] if i else None}
        case "RePaintScheduler":
            return t, {"original_image": truth.x0.float(), "mask": torch.zeros(truth.shape)}
        case "UnCLIPScheduler":
            return t, {"prev_timestep": timesteps[i + 1] if i + 1 < len(timesteps) else None}
        case "HeliosDMDScheduler":
            return t, {
                "cur_sampling_step": i, "dmd_noisy_tensor": truth.noise(), "dmd_sigmas": scheduler.sigmas,
                "dmd_timesteps": scheduler.timesteps, "all_timesteps": timesteps,
            }  # fmt: skip
        case "DDPMWuerstchenScheduler":
            return t.expand(truth.shape[0]), {}
        case "KarrasVeScheduler":
            levels = scheduler.schedule[timesteps]
            return levels[i], {"sigma_prev": levels[i + 1] if i + 1 < len(levels) else torch.tensor(0.0)}
        case "RFD4ProteinaScheduler":
            return t, {"emit_mask": torch.ones(truth.shape[:2])}
        case "DDIMScheduler" | "DDIMParallelScheduler" | "DDIMInverseScheduler":
            return int(t), {}
        case _:
            return t, {}
