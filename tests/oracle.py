"""The oracle that needs no weights: a known clean sample, noise that is orthogonal to it, and an exact denoiser.

Every noise that a scheduler draws is made orthogonal to the clean sample and to all earlier noise, and of unit size. So
a sample a x0 + b n gives its a and b back exactly, whatever a stochastic scheduler added, and the exact output of a
denoiser follows from the sample alone: no noise level of dtviz takes part in it. `Watch` and `WatchPython` are the oracle of
what would make the host of a GPU wait.
"""

import inspect
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dtviz
from dtviz.core.schedulers import find, index_of, prediction
from dtviz.core.x0 import noise_level, signal_and_noise

SHAPE = (1, 4, 8, 8)


class Truth:
    """A clean sample in [-1, 1], and a supply of orthogonal unit noise."""

    def __init__(self, shape: tuple[int, ...] = SHAPE) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(0)
        self.x0 = torch.rand(shape, generator=self.generator, dtype=torch.float64) * 2 - 1
        self.basis = [self.x0 / self.x0.norm()]

    def noise(self, *_, **__) -> torch.Tensor:
        """Stands in for every random draw of a scheduler."""
        draw = torch.randn(self.shape, generator=self.generator, dtype=torch.float64)
        for _ in range(2):  # twice: orthogonal to rounding
            for earlier in self.basis:
                draw = draw - (draw * earlier).sum() * earlier
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

    def sample(self, a: float, b: float) -> torch.Tensor:
        """a x0 + b n with new noise."""
        return (a * self.x0 + b * self.noise().double()).float()

    def output(self, kind: str, x_t: torch.Tensor, scheduler, timestep) -> torch.Tensor:
        """What an exact denoiser returns, from the definitions."""
        a, b, n = self.parts(x_t)
        x_t, x0, config = x_t.double(), self.x0, scheduler.config
        v = (a * n - b * x0) / (a**2 + b**2) ** 0.5
        linear = {
            "epsilon": n, "negative epsilon": -n, "score": -n / b, "sample": x0, "flow_prediction": n - x0,
            "velocity to the data": x0 - n, "v_prediction": v, "trigflow": v,
        }  # fmt: skip
        if kind in linear:
            return linear[kind].float()
        match kind:
            case "edm":  # the network F whose preconditioned output is the clean sample
                data, sign = config.sigma_data, -1 if config.prediction_type == "v_prediction" else 1
                skip, out = data**2 / (b**2 + data**2), sign * b * data / (b**2 + data**2) ** 0.5
                value = (x0 - skip * x_t) / out
            case "consistency":
                level = scheduler.sigmas[index_of(scheduler, timestep)]
                skip, out = (float(c) for c in scheduler.get_scalings_for_boundary_condition(level))
                value = (x0 - skip * x_t) / out
            case "consistency decoder":
                value = (x0 - float(scheduler.c_skip[timestep]) * x_t) / float(scheduler.c_out[timestep])
        return value.float()


def scheduler_level(scheduler, call: int, _) -> tuple[float, float]:
    """a and b of a sample at the noise level that the scheduler keeps for this call: variance-preserving, or flow."""
    sigma = float(scheduler.sigmas[call])
    if scheduler.config.use_flow_sigmas:
        return 1 - sigma, sigma
    return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


def run(scheduler, monkeypatch, *, steps: int, check, nominal=None, shape=SHAPE, **how) -> list[tuple]:
    """Step through a whole run on exact outputs; `check(x0, truth, x_t)` at every call, and at the end if that is at sigma 0.

    Returns output, timestep, sample and other arguments of each call. The samples are the scheduler's own, or, with `nominal(scheduler, call, timestep) -> (a, b)`, a x0 + b n anew at each.
    """
    truth, name = Truth(shape), type(scheduler).__name__
    module = sys.modules[type(scheduler).__module__]
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", truth.noise)
    if hasattr(module, "BrownianTreeNoiseSampler"):
        monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda *_, **__: truth.noise)
    scheduler.set_timesteps(steps, **how)
    if hasattr(scheduler, "set_begin_index"):  # spacings may repeat a timestep, which no longer says where the run is
        scheduler.set_begin_index(0)
    timesteps = scheduler.timesteps
    if name in ("SCMScheduler", "DDPMWuerstchenScheduler"):
        timesteps = timesteps[:-1]  # the last one is where the run ends
    rule, x_t, earlier_x0, calls = find(scheduler), None, None, []
    for i, t in enumerate(timesteps):
        timestep, extra = _arguments(scheduler, timesteps, i, t, truth, earlier_x0)
        if nominal is not None:
            x_t = truth.sample(*nominal(scheduler, i, t))
        elif x_t is None:
            level = noise_level(scheduler, timestep, extra).max()
            x_t = truth.sample(*(float(c) for c in signal_and_noise(scheduler, level)))
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x_t, t)
        output = truth.output(prediction(scheduler), x_t, scheduler, timestep)
        check(dtviz.predict_x0(scheduler, output, timestep, x_t, arguments=extra), truth, x_t)
        calls.append((output, timestep, x_t, extra))
        step = getattr(scheduler, rule.step)
        arguments = dict(zip(rule.names, (output, timestep, x_t), strict=True)) | extra
        accepted = inspect.signature(step).parameters
        stepped = step(**{key: value for key, value in arguments.items() if key in accepted})
        x_t = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        if name == "CogVideoXDPMScheduler":
            earlier_x0 = stepped[1]
    sigmas = getattr(scheduler, "sigmas", None)
    ends = sigmas is not None and float(sigmas[-1]) == 0 and scheduler.config.get("predict_x0", True)
    if nominal is None and ends and "Inverse" not in name:
        check(x_t.float(), truth, x_t)
    return calls


def _arguments(scheduler, timesteps, i: int, t, truth: Truth, earlier_x0) -> tuple:
    """The timestep as this class takes it, and the other arguments of its `step`."""
    following = timesteps[i + 1] if i + 1 < len(timesteps) else None
    match type(scheduler).__name__:
        case "CogVideoXDPMScheduler":
            return t, {"old_pred_original_sample": earlier_x0, "timestep_back": timesteps[i - 1] if i else None}
        case "RePaintScheduler":
            return t, {"original_image": truth.x0.float(), "mask": torch.zeros(truth.shape)}
        case "UnCLIPScheduler":
            return t, {"prev_timestep": following}
        case "HeliosDMDScheduler":
            return t, {
                "cur_sampling_step": i, "dmd_noisy_tensor": truth.noise(), "dmd_sigmas": scheduler.sigmas,
                "dmd_timesteps": scheduler.timesteps, "all_timesteps": timesteps,
            }  # fmt: skip
        case "DDPMWuerstchenScheduler":
            return t.expand(truth.shape[0]), {}
        case "KarrasVeScheduler":
            level, lower = (0.0 if s is None else scheduler.schedule[s] for s in (t, following))
            return level, {"sigma_prev": torch.as_tensor(lower)}
        case "RFD4ProteinaScheduler":
            return t, {"emit_mask": torch.ones(truth.shape[:2])}
        case "DDIMScheduler" | "DDIMParallelScheduler" | "DDIMInverseScheduler":
            return int(t), {}
        case _:
            return t, {}


class Waits(Exception):
    """The host would wait for the device."""


class Watch(TorchDispatchMode):
    """Fail on copies between the CPU and the samples' device, meta, and on read-backs. Page-locked targets may be filled."""

    locked: frozenset[int] = frozenset()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # a CPU scalar mixes with a CUDA tensor without a copy
        devices = {x.device.type for x in tensors if x.ndim or name in ("copy_", "_to_copy")}
        if tensors and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        if name == "copy_" and args[0].untyped_storage()._cdata in self.locked and args[2:] == (True,):
            return args[0]
        reads = name in ("_local_scalar_dense", "nonzero", "equal") and any(x.is_meta for x in tensors)
        if reads or len(devices) > 1:
            raise Waits(f"{func} on {devices}")
        locked = kwargs.pop("pin_memory", False)
        result = func(*args, **kwargs)
        if locked:
            self.locked |= {result.untyped_storage()._cdata}
        return result


class WatchPython(TorchFunctionMode):
    """Fail on a tensor made from numbers on the device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor)
        if made and "meta" in str(kwargs.get("device")):
            raise Waits(func)
        return func(*args, **kwargs)
