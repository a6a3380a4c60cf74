"""Every scheduler class of diffusers, against a known clean sample."""

import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch

import dtviz
from dtviz.core.schedulers import REFUSED, RULES, prediction

from .oracle import run, scheduler_level

SDXL = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ORDER_2 = ("CosineDPMSolverMultistepScheduler", "HeliosScheduler")  # Helios' third order is nan after sigma 1
REQUIRED = {
    "HeliosScheduler": {"stages": 1},
    "HeliosDMDScheduler": {"stages": 1},
    "SCMScheduler": {"sigma_data": 1.0},
    "KarrasVeScheduler": {"sigma_max": 10.0},  # its noise levels are the squares
    "RFD4ProteinaScheduler": {
        "schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0, "tail_steps": 0,
    },
}  # fmt: skip


def classes() -> dict[str, type]:
    """Every scheduler class in the installed diffusers, exported or not."""
    package, base = importlib.import_module("diffusers.schedulers"), diffusers.SchedulerMixin
    names = [info.name for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
    values = [v for name in names if "flax" not in name for v in vars(importlib.import_module(name)).values()]
    return {v.__name__: v for v in values if isinstance(v, type) and issubclass(v, base) and v is not base}


CLASSES = classes()
INSTALLED = [name for name in RULES if name in CLASSES]  # an older diffusers lacks some
SHAPES = {"HeliosDMDScheduler": (1, 4, 1, 8, 8), "RFD4ProteinaScheduler": (1, 64, 8)}
FEW = ("SCMScheduler", "ConsistencyDecoderScheduler")  # made for two steps


def accepts(name: str) -> tuple[str, ...]:
    return CLASSES[name].__init__.__wrapped__.__code__.co_varnames


def markdown() -> str:
    """The table of docs/schedulers.md, with classes of equal rules in one row."""
    table = dtviz.schedulers()
    table["scheduler"] = table["scheduler"].str.removesuffix("Scheduler").str.removesuffix("Discrete")
    groups = table.groupby(list(table.columns[1:]), sort=False)["scheduler"].agg(", ".join)
    lines = [f"| {' | '.join((names, *cells))} |" for cells, names in groups.items()]
    return "\n".join(["| schedulers | space | denoiser predicts | calls for N steps |", "|---|---|---|---|", *lines])


def test_every_class_has_a_rule_or_a_reason():
    """A class that a later diffusers adds fails here until its x0 is decided."""
    assert CLASSES.keys() <= RULES.keys() | REFUSED.keys()
    assert not RULES.keys() & REFUSED.keys()
    table = dtviz.schedulers()
    assert set(table["scheduler"]) == RULES.keys() | REFUSED.keys()
    assert set(table[table["space"] == ""]["scheduler"]) == set(REFUSED)
    assert table.set_index("scheduler").loc["HeunDiscreteScheduler", "calls"] == "2N - 1"
    page = (Path(__file__).parents[1] / "docs" / "schedulers.md").read_text()
    assert markdown() in page
    assert f"{len(RULES)} classes of diffusers 0.42" in page and f"{len(REFUSED)} without" in page


def settings() -> Iterator[tuple[str, dict]]:
    """Yield (class name, settings): every setting that changes a class's noise levels."""
    for name in INSTALLED:
        rule, takes = RULES[name], accepts(name)
        betas = SDXL if "beta_schedule" in takes and name != "UnCLIPScheduler" else {}
        free = {"clip_sample": False} if "clip_sample" in takes else {}  # the scheduler must keep x0 too
        free |= {"clip_denoised": False} if "clip_denoised" in takes else {}
        spacings = ["leading", "linspace", "trailing"]
        spacings.remove("linspace") if name == "DDIMInverseScheduler" else None
        schedules = [{"timestep_spacing": spacing} for spacing in spacings] if "timestep_spacing" in takes else [{}]
        schedules += [
            {option: value}
            for option, value in (
                ("use_karras_sigmas", True), ("use_exponential_sigmas", True), ("use_beta_sigmas", True), ("use_lu_lambdas", True),
                ("sigma_schedule", "exponential"), ("shift", 3.0), ("stochastic_sampling", True), ("skip_prk_steps", True),
                ("final_sigmas_type", "sigma_min"),
            )
            if option in takes
        ]  # fmt: skip
        schedules += [{"invert_sigmas": True}] if name == "FlowMatchEulerDiscreteScheduler" else []
        schedules += [{"solver_order": 3}] if "solver_order" in takes and name not in ORDER_2 else []
        edm = name.startswith(("EDM", "Cosine"))
        for i, kind in enumerate(("epsilon", "v_prediction") if edm else rule.predictions):
            named = kind in ("epsilon", "sample", "v_prediction", "flow_prediction") and "prediction_type" in takes
            predicts = {"prediction_type": kind} if named else {}
            for schedule in schedules if i == 0 else schedules[:1]:  # noise levels do not depend on the prediction
                if kind != "flow_prediction" or "flow_shift" not in takes:
                    yield name, betas | free | predicts | schedule | REQUIRED.get(name, {})
            if "flow_shift" in takes and kind != "v_prediction":
                for shift in (1.0, 3.0):
                    yield name, predicts | {"use_flow_sigmas": True, "flow_shift": shift}
            if "rescale_betas_zero_snr" in takes and kind in ("sample", "v_prediction"):
                yield name, betas | free | predicts | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for kind in ("data_prediction", "noise_prediction"):
        yield "SASolverScheduler", SDXL | {"algorithm_type": kind}
    for kind in ("sde-dpmsolver++", "dpmsolver"):
        yield "DPMSolverMultistepScheduler", SDXL | {"algorithm_type": kind, "final_sigmas_type": "sigma_min"}
    yield "DPMSolverSinglestepScheduler", SDXL | {"algorithm_type": "sde-dpmsolver++"}
    yield "UniPCMultistepScheduler", SDXL | {"predict_x0": False}
    continuous = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    yield "EulerDiscreteScheduler", SDXL | continuous
    yield "HeliosScheduler", {"stages": 1, "scheduler_type": "euler"}


# Where diffusers' own steps leave the line x0 - noise, or reach it only at the end, each call gets a sample of the noise
# level that the scheduler announces to the denoiser.


def _table(scheduler, _, timestep) -> tuple[float, float]:
    alpha = float(scheduler.alphas_cumprod[int(timestep)])
    return alpha**0.5, (1 - alpha) ** 0.5


def _score_vp(scheduler, _, timestep) -> tuple[float, float]:
    """Song et al. 2021, equation 33, with beta from .1 to 20."""
    mean = math.exp(-(19.9 * float(timestep) ** 2) / 4 - 0.1 * float(timestep) / 2)
    return mean, (1 - mean**2) ** 0.5


def nominal(name: str, configuration: dict):
    """The announced noise level, if the scheduler's own samples do not keep to it."""
    if configuration.get("timestep_spacing") == "linspace" and name.startswith(("DDIM", "CogVideoX", "PNDM")):
        return _table  # they step by a whole number of timesteps, which linspace does not
    if name == "PNDMScheduler" and configuration["prediction_type"] == "v_prediction":
        return _table  # converts v at the step's beginning, not where it was predicted
    if name == "SASolverScheduler" and configuration.get("algorithm_type") == "noise_prediction":
        return scheduler_level  # leaves the line from the fourth step on
    if configuration.get("use_flow_sigmas") and configuration.get("prediction_type") == "epsilon":
        return scheduler_level  # its own x0 at sigma 1 has rounding errors as large as x0, and stays in the sample
    return {
        "ScoreSdeVpScheduler": _score_vp,  # Euler-Maruyama: exact only in the limit of many steps
        "RFD4ProteinaScheduler": lambda _, __, t: (float(t), 1 - float(t)),  # the same
        "IPNDMScheduler": lambda scheduler, call, _: (float(scheduler.alphas[call]), float(scheduler.betas[call])),
    }.get(name)  # IPNDM divides by its zero signal at the first step


@pytest.mark.filterwarnings("ignore:`algorithm_types dpmsolver:FutureWarning")
@pytest.mark.parametrize(("name", "configuration"), list(settings()), ids=str)
def test_known_x0(name, configuration, monkeypatch):
    """With exact denoiser outputs x0 is the known one, at every call of a whole run on the scheduler's own samples."""
    scheduler = CLASSES[name](**configuration)
    kind, errors, bounds = prediction(scheduler), [], []

    def check(x0, truth, x_t):
        assert x0.dtype == torch.float32
        a, b, _ = truth.parts(x_t)
        errors.append(float((x0.double() - truth.x0).abs().max()))
        # Under 1e-3, but for what float32 cannot hold: x_t's last bit, 4 sigma of noise * 6e-8, grows by 1 / a
        bounds.append(max(1e-3, 3e-7 * b / max(abs(a), 1e-7)) if kind == "epsilon" else 1e-3)

    steps = 2 if name in FEW else 10
    how = {"nominal": nominal(name, configuration), "shape": SHAPES.get(name, (1, 4, 8, 8))}
    run(scheduler, monkeypatch, steps=steps, check=check, **how)
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), (errors, bounds)


@pytest.mark.parametrize("name", INSTALLED)
def test_x0_does_not_depend_on_the_counter(name, monkeypatch):
    """The same x0 after the run, on a fresh scheduler inside its schedule, and with one timestep for each sample."""
    options = SDXL if "beta_schedule" in accepts(name) and name != "UnCLIPScheduler" else {}
    scheduler, fresh = (CLASSES[name](**options | REQUIRED.get(name, {})) for _ in range(2))
    steps, results = 2 if name in FEW else 6, []
    how = {"nominal": nominal(name, {"prediction_type": ""}), "shape": SHAPES.get(name, (1, 4, 8, 8))}
    calls = run(scheduler, monkeypatch, steps=steps, check=lambda x0, *_: results.append(x0), **how)
    fresh.set_timesteps(steps)
    if name == "KDPM2AncestralDiscreteScheduler":  # its last two calls have one timestep at two noise levels
        scheduler.timesteps[-2:] = 0  # but for rounding on some processors
        for output, _, x_t, _ in (calls.pop(), calls.pop()):
            with pytest.raises(ValueError, match="timestep=0 stands for 2 noise levels"):
                dtviz.predict_x0(scheduler, output, scheduler.timesteps[-1], x_t)
    for (output, t, x_t, arguments), x0 in list(zip(calls, results, strict=False))[::-1]:
        for other in (scheduler, fresh):
            assert torch.equal(dtviz.predict_x0(other, output, t, x_t, arguments=arguments), x0)
    outputs, times, samples, _ = zip(*calls, strict=True)
    times = torch.stack([torch.as_tensor(t).reshape(()) for t in times])
    batch = torch.cat(outputs), times, torch.cat(samples)
    assert torch.equal(dtviz.predict_x0(scheduler, *batch, arguments=arguments), torch.cat(results[: len(calls)]))
    with pytest.raises(ValueError, match=f"timestep has {len(times)} values for 1 samples"):
        dtviz.predict_x0(scheduler, output, times, x_t, arguments=arguments)


MULTISTEP = [n for n in INSTALLED if "flow_prediction" in RULES[n].predictions and RULES[n].space == "vp"]


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_timestep_outside_the_schedule_is_refused(name):
    """diffusers would take the last one. Before set_timesteps the sigmas are in another order than the timesteps."""
    scheduler, x = CLASSES[name](), torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match=f"{name} has no timesteps yet"):
        dtviz.predict_x0(scheduler, x, 999, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=f"timestep=123 is not one of the {name}'s timesteps"):
        dtviz.predict_x0(scheduler, x, 123, x)


# The schedulers whose `pred_original_sample` is a true x0 of the sample given: not LCM's (boundary scaling) nor TCD's
TRUE_X0 = [
    "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler", "DDPMParallelScheduler",
    "UnCLIPScheduler", "RePaintScheduler", "CogVideoXDDIMScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler", "SCMScheduler",
]  # fmt: skip


@pytest.mark.parametrize("name", TRUE_X0)
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on rounded noise levels
def test_agrees_with_diffusers_own(name):
    """On arbitrary outputs, where the class does not clip."""
    options = {"clip_sample": False} if "clip_sample" in accepts(name) else {}
    scheduler, steps = CLASSES[name](**options), 2 if name == "SCMScheduler" else 5
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, 4, 8, 8, generator=generator) * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps[:steps]:
        timestep = int(timestep) if name.startswith("DDIM") else timestep
        if name != "SCMScheduler":
            scheduler.scale_model_input(x_t, timestep)
        output = torch.randn(x_t.shape, generator=generator)
        ours = dtviz.predict_x0(scheduler, output, timestep, x_t)
        extra = {"original_image": x_t, "mask": torch.zeros_like(x_t)} if name == "RePaintScheduler" else {}
        stepped = scheduler.step(output, timestep, x_t, **extra)
        # relative: random outputs make x0 as large as sigma
        torch.testing.assert_close(ours, stepped.pred_original_sample, rtol=1e-4, atol=1e-3 * float(ours.abs().max()))
        x_t = stepped.prev_sample


def test_a_class_without_x0_is_refused_by_name_and_reason():
    needs = {"AmusedScheduler": {"mask_token_id": 1}, "VQDiffusionScheduler": {"num_vec_classes": 2}}
    for name in REFUSED.keys() & CLASSES.keys():
        with pytest.raises(NotImplementedError, match=f"{name} has no x0: it"):
            dtviz.predict_x0(CLASSES[name](**needs.get(name, {})), torch.zeros(1, 4), 1, torch.zeros(1, 4))
    own = type("DDIMScheduler", (diffusers.DDIMScheduler,), {})  # it may keep its samples another way
    with pytest.raises(NotImplementedError, match=r"test_core_schedulers.DDIMScheduler has no x0 rule"):
        dtviz.predict_x0(own(), torch.zeros(1, 4), 1, torch.zeros(1, 4))


def test_settings_without_x0_are_refused():
    for name, configuration, reason in (
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "v_prediction"}, "v_prediction"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas=False"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "'sample'"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "'sample'"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "'sample'"),
        ("HeliosScheduler", {}, "stages=3"),
        ("FlowMatchLCMScheduler", {"invert_sigmas": True}, "its step ignores it"),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "zero signal"),
    ):
        scheduler, x = CLASSES[name](**configuration), torch.zeros(1, 4, 2, 2)
        scheduler.set_timesteps(4, **({"stage_index": 0} if name == "HeliosScheduler" else {}))
        with pytest.raises(NotImplementedError, match=reason):
            dtviz.predict_x0(scheduler, x, scheduler.timesteps[0], x)
