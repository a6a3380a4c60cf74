"""Base and student pairs: what they are, whether this machine has them, and how they are loaded.

pair = dtviz.load("emoji-dmd")      # shipped with dtviz
pair = dtviz.load("sdxl-dmd")       # from the model hub or its local cache
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .models.available import check as check
from .models.available import missing as missing
from .models.available import models as models
from .models.hub import LORA as LORA
from .models.loading import base_pipeline, place, settings_of, student_of
from .models.spec import Spec as Spec
from .models.specs import SPECS as SPECS
from .models.specs import licence

# torch, diffusers and pandas are imported where they are used: a wrong name is refused before they are loaded
if TYPE_CHECKING:
    import pandas as pd
    import torch

HANDOVERS = ("distilled-scheduler", "matched-sigma")


@dataclass(frozen=True)
class Pair:
    """A base model and the few-step student distilled from it.

    Attributes:
        pipeline: a diffusers text-to-image pipeline that holds the base denoiser (`unet` or `transformer`).
        distilled: the student: a denoiser module, the name of an adapter loaded on the base denoiser, or a pipeline, of which
            the denoiser is kept and, unless given, the scheduler.
        base_scheduler, distilled_scheduler: each denoiser's scheduler; None takes the pipeline's own.
        name: for figures and files.
        steps, base_steps: default numbers of steps of the student and of the base.
        timesteps: the student's trained timesteps, used when it runs `steps` steps; None leaves it to its scheduler. Of a flow
            model 1000 times its noise levels.
        guidance, base_guidance: default guidance scales; 0 and 1 both mean the conditional model without guidance.
        handover: how a hybrid goes from base to student, see `generate`.
        batch_size: samples generated together.
        size: (height, width) in pixels that base and student are run at; None takes the pipeline's own.
        call: more arguments of every call of the pipeline, such as `max_sequence_length`.
        published: whether settings outside of what the student was trained for are meant, as the paper's code has them.
        offload: keep the denoiser whose turn it is not in the host's memory, so that an accelerator holds one of the two; for
            pairs of two networks.
        fingerprint: changes whenever the weights do; "" for a pair made by hand, whose results are not stored.
        base_fingerprint: the same of the base alone, whose samples all its students share; "" where it is not known.

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
    published: bool = False
    offload: bool = False
    fingerprint: str = ""
    base_fingerprint: str = ""

    def __post_init__(self) -> None:
        from .fit import check_autoencoders, check_schedulers, check_student

        if hasattr(self.distilled, "scheduler"):
            check_autoencoders(self.pipeline, self.distilled)
            if self.distilled_scheduler is None:
                object.__setattr__(self, "distilled_scheduler", self.distilled.scheduler)
            object.__setattr__(self, "distilled", getattr(self.distilled, self.denoiser_name, self.distilled))
        for role in ("base_scheduler", "distilled_scheduler"):
            if getattr(self, role) is None:
                object.__setattr__(self, role, self.pipeline.scheduler)
        if self.handover not in HANDOVERS:
            raise ValueError(f"handover={self.handover!r} is not one of {', '.join(HANDOVERS)}")
        for name in ("steps", "base_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size={self.size} must be (height, width) in pixels, or None for the pipeline's own")
        if self.timesteps is not None:
            if len(self.timesteps) != self.steps or list(self.timesteps) != sorted(set(self.timesteps), reverse=True):
                raise ValueError(
                    f"timesteps={self.timesteps} must be {self.steps} falling values, one for each of steps"
                )
            if not {"timesteps", "sigmas"} & set(inspect.signature(self.distilled_scheduler.set_timesteps).parameters):
                raise ValueError(f"timesteps={self.timesteps}: {type(self.distilled_scheduler).__name__} takes none")
        check_student(self.base, self.distilled, name="distilled")
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


def load(
    name: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    offload: bool | str = False,
    published: bool = False,
    revision: str | None = None,
    student_revision: str | None = None,
) -> Pair:
    """The pair of this name, ready for `generate`.

    Args:
        name: one of `dtviz.pairs()`.
        device: torch device; None takes CUDA when there is one.
        dtype: None takes float32 on a CPU and for embedded pairs, and on a GPU what the models were published for.
        offload: True: see `Pair`; the student waits in the host's memory until its first step. "model": text encoders,
            denoisers and autoencoder all wait there for their turn (diffusers' model offload).
        published: take the settings of the paper's code where they are not those that the student was trained for: another
            grid of timesteps for DMD2, guidance 0 for LCM.
        revision, student_revision: commits of the two repositories; None takes those that dtviz knows, else "main".

    Raises:
        ValueError: no pair has this name, its files are damaged, or `offload` is something else.
        Unavailable: its weights are not on this machine and the hub is out of reach.

        pair = dtviz.load("sdxl-dmd", device="cuda", dtype=torch.float16)
    """
    if offload not in (False, True, "model"):
        raise ValueError(f"offload={offload!r} is not one of False, True, 'model'")
    spec, where = place(name, device=device, dtype=dtype, revision=revision, student_revision=student_revision)
    pipeline = base_pipeline(spec, where, move=offload != "model")
    student = student_of(spec, pipeline, where)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=where.device)
    if not isinstance(student, str):
        student = student.to("cpu" if offload else where.device).eval().requires_grad_(False)
    waits = bool(offload) and not isinstance(student, str)
    return Pair(pipeline, student, offload=waits, name=name, **settings_of(spec, pipeline, where, published=published))


def table() -> pd.DataFrame:
    """Every pair known by name: student, base, licence, size of the weights, and whether this machine has it.

    `size` is that of all parameters at two bytes each, text encoders included; files may be larger.

        dtviz.pairs()
    """
    import pandas as pd

    from .memory import size

    rows = [
        {
            "pair": name,
            "base": spec.base,
            "student": spec.student,
            "licence": licence(spec),
            "size": size(name),
            "available": not missing(name),
        }
        for name, spec in SPECS.items()
    ]
    return pd.DataFrame(rows).set_index("pair")
