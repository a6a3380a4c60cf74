"""A pair: a base model, the few-step model distilled from it, their schedulers, and checks that they are compatible."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .schedulers import prediction, space

HANDOVERS = ("distilled-scheduler", "matched-sigma")
# Config keys of the inputs that one pipeline call passes to both denoisers, and of the latents of two autoencoders
_INPUTS = (
    "in_channels", "cross_attention_dim", "joint_attention_dim", "caption_channels", "pooled_projection_dim",
    "projection_class_embeddings_input_dim", "encoder_hid_dim",
)  # fmt: skip
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Pair:
    """A base model and the few-step model distilled from it.

    Attributes:
        pipeline: a diffusers text-to-image pipeline that holds the base denoiser (`unet` or `transformer`).
        distilled: a denoiser, the name of an adapter on the base denoiser, or a pipeline, whose denoiser is kept.
        base_scheduler, distilled_scheduler: each denoiser's scheduler. None takes that of its pipeline.
        name: name in figures and files.
        steps, base_steps: default numbers of steps of the distilled model and of the base.
        timesteps: trained timesteps of the distilled model, used for `steps` steps. For a flow model, 1000 times its sigmas.
        guidance, base_guidance: default guidance scales. 0 and 1 both mean the conditional model without guidance.
        handover: default hand-over of a hybrid, one of `HANDOVERS`, see `generate`.
        batch_size: default number of samples generated together.
        size: (height, width) in pixels. None takes the pipeline's own.
        call: further arguments of every pipeline call, such as `max_sequence_length`.
        paper_settings: allow settings outside the distilled model's training range, as in the paper's code.
        fingerprint, base_fingerprint: change whenever the weights do. "": results are not cached.

    Raises:
        ValueError: an argument is out of range, or base and distilled model are not compatible.

        pair = dtviz.Pair(pipeline=pipe, distilled=unet, distilled_scheduler=LCMScheduler.from_config(pipe.scheduler.config))
    """

    pipeline: Any
    distilled: torch.nn.Module | str
    base_scheduler: Any = None
    distilled_scheduler: Any = None
    name: str = "custom"
    steps: int = 4
    base_steps: int = 50
    timesteps: tuple[int, ...] | None = None
    guidance: float = 0.0
    base_guidance: float = 5.0
    handover: str = "distilled-scheduler"
    batch_size: int = 8
    size: tuple[int, int] | None = None
    call: Mapping[str, Any] = field(default_factory=dict)
    paper_settings: bool = False
    fingerprint: str = ""
    base_fingerprint: str = ""

    _set = object.__setattr__  # the class is frozen

    def __post_init__(self) -> None:
        if hasattr(self.distilled, "scheduler"):
            check_autoencoders(self.pipeline, self.distilled)
            self._set("distilled_scheduler", self.distilled_scheduler or self.distilled.scheduler)
            self._set("distilled", getattr(self.distilled, self.denoiser_name, self.distilled))
        self._set("base_scheduler", self.base_scheduler or self.pipeline.scheduler)
        self._set("distilled_scheduler", self.distilled_scheduler or self.pipeline.scheduler)
        if self.handover not in HANDOVERS:
            raise ValueError(f"handover={self.handover!r} is not one of {', '.join(HANDOVERS)}")
        for name in ("steps", "base_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size={self.size} must be (height, width) in pixels, or None for the pipeline's own")
        if self.timesteps is not None:
            if len(self.timesteps) != self.steps or list(self.timesteps) != sorted(set(self.timesteps), reverse=True):
                raise ValueError(f"timesteps={self.timesteps} must be {self.steps} falling values, one for each step")
            if not {"timesteps", "sigmas"} & set(inspect.signature(self.distilled_scheduler.set_timesteps).parameters):
                kind = type(self.distilled_scheduler).__name__
                raise ValueError(f"timesteps={self.timesteps}: {kind} does not accept timesteps")
        check_compatible(self.base, self.distilled, name="distilled")
        if self.handover == "distilled-scheduler":
            check_schedulers(self.base_scheduler, self.distilled_scheduler)

    @property
    def denoiser_name(self) -> str:
        """The pipeline's attribute that holds the denoiser."""
        return "unet" if getattr(self.pipeline, "unet", None) is not None else "transformer"

    @property
    def base(self) -> torch.nn.Module:
        """The base denoiser."""
        return getattr(self.pipeline, self.denoiser_name)

    @property
    def call_arguments(self) -> dict[str, Any]:
        """`call` with the size: arguments of every call of the pipeline."""
        return dict(self.call) | ({} if self.size is None else {"height": self.size[0], "width": self.size[1]})


def check_compatible(base: torch.nn.Module, distilled: Any, *, name: str) -> None:
    """Refuse what is no denoiser or adapter of this base, or takes other latents or text. `name` is the argument it was given as."""
    if isinstance(distilled, str):
        adapters = list(getattr(base, "peft_config", {}))
        if distilled not in adapters:
            raise ValueError(f"{name}={distilled!r} is not an adapter of the base denoiser, which has {adapters}")
        return
    if not isinstance(distilled, torch.nn.Module):
        kind = type(distilled).__name__
        raise ValueError(f"{name} is a {kind}: give a denoiser module, an adapter's name or a pipeline that holds one")
    _check_equal(name, distilled.config, base.config, _INPUTS)
    for part in ("encoder_hid_proj", "image_proj"):
        if getattr(base, part, None) is not None and getattr(distilled, part, None) is None:
            raise ValueError(f"{name} cannot see the image prompts of the base's IP-Adapter: load it on {name} too")


def _check_equal(name: str, ours: Mapping[str, Any], base: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if ours.get(key) != base.get(key):
            raise ValueError(f"{name} has {key}={ours.get(key)}, the base's {base.get(key)}: not a pair")


def check_schedulers(base: Any, distilled: Any) -> None:
    """Refuse to run the base on a scheduler for another prediction type."""
    if prediction(base) != prediction(distilled):
        theirs, ours = (f"{prediction(scheduler)} in {space(scheduler)} space" for scheduler in (base, distilled))
        kind = f"the distilled model's {type(distilled).__name__} takes {ours}, and the base predicts {theirs}"
        raise ValueError(f"handover='distilled-scheduler': {kind}; use handover='matched-sigma'")


def check_autoencoders(base: Any, distilled: Any) -> None:
    """Refuse two pipelines whose autoencoders differ in class or latent settings."""
    autoencoders = [getattr(pipe, "vae", None) for pipe in (distilled, base)]
    if None not in autoencoders:
        settings = [{"class": type(vae).__name__, **vae.config} for vae in autoencoders]
        _check_equal("distilled's autoencoder", *settings, ("class", *_LATENTS))


def role_scheduler(pair: Pair, role: str, steps: int, device: Any) -> Any:
    """Return a fresh scheduler of a role with its timesteps set, as the pair's pipeline would set them.

    The distilled model runs at its trained timesteps if it runs `pair.steps` steps.
    """
    original = pair.base_scheduler if role == "base" else pair.distilled_scheduler
    scheduler = type(original).from_config(original.config)  # without another run's history
    if role == "base" or pair.timesteps is None or steps != pair.steps:
        own = pipeline_timestep_arguments(pair.pipeline, original, pair.call_arguments, steps)
        scheduler.set_timesteps(steps, device=device, **own)
    elif space(scheduler) == "flow":  # by sigmas: given timesteps would be shifted in part only
        train = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(sigmas=[t / train for t in pair.timesteps], device=device)
    else:
        if "original_inference_steps" in scheduler.config:  # LCM would warn about timesteps outside its own grid
            scheduler.register_to_config(original_inference_steps=scheduler.config.num_train_timesteps)
        scheduler.set_timesteps(timesteps=list(pair.timesteps), device=device)
    return scheduler


_PROBED: WeakKeyDictionary[Any, dict[str, tuple[bool, float | None]]] = WeakKeyDictionary()


class _TimestepProbe(Exception):
    """Stands in for the scheduler until the pipeline calls `set_timesteps`, and carries its arguments out of the call."""

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any) -> None:
        self.config = config

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None, timesteps=None):
        self.sigmas, self.mu = sigmas, mu
        raise self


def pipeline_timestep_arguments(pipe: Any, scheduler: Any, call: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the pipeline's own arguments of this scheduler's `set_timesteps`. It runs up to there, once per setting.

    sigmas: evenly spaced from 1 to 1 / steps, before any shift.
    mu: logarithm of the shift, which grows with the image (Esser et al. 2024, section 5.3.2).
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    if "mu" not in accepted:
        return {}
    results, key = _PROBED.setdefault(pipe, {}), repr((sorted(call.items()), sorted(scheduler.config.items())))
    if key not in results:
        original, probe = pipe.scheduler, _TimestepProbe(scheduler.config)
        try:
            pipe.scheduler = probe
            pipe(prompt=["a"], num_inference_steps=4, guidance_scale=0.0, output_type="latent", **call)
        except _TimestepProbe:
            pass
        finally:
            pipe.scheduler = original
            pipe.maybe_free_model_hooks()  # the call did not reach its own
        if probe.sigmas is not None and not np.allclose(probe.sigmas, _even_sigmas(4)):
            own = [round(float(sigma), 4) for sigma in probe.sigmas]
            raise NotImplementedError(f"{type(pipe).__name__} passes uneven sigmas {own}: only even ones can be split")
        results[key] = probe.sigmas is not None, probe.mu
    even, mu = results[key]
    even = even and "sigmas" in accepted and not scheduler.config.get("use_flow_sigmas")
    return ({"sigmas": _even_sigmas(steps)} if even else {}) | ({} if mu is None else {"mu": mu})


def _even_sigmas(steps: int) -> np.ndarray:
    return np.linspace(1.0, 1 / steps, steps)
