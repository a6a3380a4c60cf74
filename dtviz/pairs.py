"""Base and student pairs: what they are, whether this machine has them, and how they are loaded.

pair = dtviz.load("emoji-dmd")      # shipped with dtviz
pair = dtviz.load("sdxl-dmd")       # from the model hub or its local cache
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .available import check as check
from .available import missing as missing
from .available import models as models
from .outside import digests, reading
from .specs import LORA as LORA
from .specs import SPECS as SPECS
from .specs import Spec as Spec
from .specs import spec_of

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
        distilled: the student: a denoiser module, or the name of an adapter loaded on the base denoiser.
        base_scheduler, distilled_scheduler: each denoiser's scheduler; None takes the pipeline's own.
        name: for figures and files.
        steps, base_steps: default numbers of steps of the student and of the base.
        timesteps: the student's trained timesteps, used when it runs `steps` steps; None leaves it to its scheduler.
        guidance, base_guidance: default guidance scales; 0 and 1 both mean the conditional model without guidance.
        handover: how a hybrid goes from base to student, see `generate`.
        batch_size: samples generated together.
        size: (height, width) in pixels that base and student are run at; None takes the pipeline's own.
        offload: keep the denoiser whose turn it is not in the host's memory, so that an accelerator holds one of the two; for
            pairs of two networks.
        fingerprint: changes whenever the weights do; "" for a pair made by hand, whose results are not stored.
        base_fingerprint: the same of the base alone, whose samples all its students share; "" where it is not known.
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
    offload: bool = False
    fingerprint: str = ""
    base_fingerprint: str = ""

    def __post_init__(self) -> None:
        from .networks import check_student

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
            if "timesteps" not in inspect.signature(self.distilled_scheduler.set_timesteps).parameters:
                raise ValueError(f"timesteps={self.timesteps}: {type(self.distilled_scheduler).__name__} takes none")
        check_student(self.base, self.distilled, name="distilled")

    @property
    def denoiser_name(self) -> str:
        """The pipeline's attribute that holds the denoiser."""
        return "unet" if getattr(self.pipeline, "unet", None) is not None else "transformer"

    @property
    def base(self) -> torch.nn.Module:
        """The base denoiser."""
        return getattr(self.pipeline, self.denoiser_name)


def load(name: str, *, device: str | None = None, dtype: torch.dtype | None = None, offload: bool = False) -> Pair:
    """The pair of this name, ready for `generate`.

    Args:
        name: one of `dtviz.pairs()`.
        device: torch device; None takes CUDA when there is one.
        dtype: None takes float32 on a CPU and for embedded pairs, float16 for hub pairs on a GPU.
        offload: see `Pair`; the student then waits in the host's memory until its first step.

    Raises:
        ValueError: no pair has this name, or its files are damaged.
        Unavailable: its weights are not on this machine and the hub is out of reach.
    """
    check(name)
    import diffusers
    import torch

    spec = spec_of(name)
    fingerprint, base_fingerprint = (
        _fingerprint(spec),
        _fingerprint(spec, student=False),
    )  # damaged files are refused here
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or (torch.float16 if device.startswith("cuda") and not spec.embedded else torch.float32)
    root = str(models() / spec.base) if spec.embedded else spec.base
    options = {"dtype": dtype, "use_safetensors": True}
    if not spec.embedded and dtype == torch.float16:
        options["variant"] = "fp16"
    with _silent() if spec.embedded else contextlib.nullcontext():
        with reading(f"pair {name!r}, {root}"):
            pipeline = diffusers.DiffusionPipeline.from_pretrained(root, **options)
        pipeline.to(device)
        with reading(f"pair {name!r}, {spec.student}"):
            student = _load_student(spec, pipeline, dtype)
    pipeline.set_progress_bar_config(disable=True)
    scheduler = getattr(diffusers, spec.scheduler).from_config(pipeline.scheduler.config, **spec.scheduler_settings)
    return Pair(
        pipeline,
        student if isinstance(student, str) else student.to("cpu" if offload else device).eval().requires_grad_(False),
        distilled_scheduler=scheduler,
        offload=offload,
        name=name,
        fingerprint=fingerprint,
        base_fingerprint=base_fingerprint,
        **spec.settings,
    )


def table() -> pd.DataFrame:
    """Every pair known by name: student, base, licence, size, and whether this machine has it."""
    import pandas as pd

    rows = [
        {
            "pair": name,
            "base": spec.base,
            "student": spec.student,
            "licence": spec.licence,
            "size": spec.size,
            "available": not missing(name),
        }
        for name, spec in SPECS.items()
    ]
    return pd.DataFrame(rows).set_index("pair")


def _load_student(spec: Spec, pipeline: Any, dtype: torch.dtype) -> torch.nn.Module | str:
    """The student's network, or the name of its adapter, loaded on the base and switched off."""
    base = pipeline.unet
    kind = type(base)
    if spec.embedded and spec.file == "lora":
        folder = models() / spec.student / spec.file
        base.load_lora_adapter(folder, weight_name=LORA, adapter_name=spec.student, prefix="unet")
        base.disable_adapters()
        return spec.student
    if spec.embedded:
        return kind.from_pretrained(models() / spec.student / spec.file, dtype=dtype)
    if not spec.file.endswith(".safetensors"):
        return kind.from_pretrained(spec.student, subfolder=spec.file or None, dtype=dtype, use_safetensors=True)
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    local = Path(spec.student) / spec.file
    path = local if local.is_file() else hf_hub_download(spec.student, spec.file)
    student = kind.from_config(base.config).to(dtype)
    student.load_state_dict(load_file(path))
    return student


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without diffusers' and transformers' progress bars, which a load of a second does not need."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _fingerprint(spec: Spec, *, student: bool = True) -> str:
    """Of the embedded models' files, or of the hub files' names, and of how they are run; of the base alone if asked."""
    parts = [spec.base]
    if student:
        parts.append(json.dumps([spec.student, spec.file, spec.scheduler, spec.scheduler_settings], sort_keys=True))
    if spec.embedded:
        parts += digests(models(), [spec.base, *([f"{spec.student}/{spec.file}"] if student else [])]).values()
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
