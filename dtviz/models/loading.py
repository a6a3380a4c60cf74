"""A pair's parts from their repositories or folders: where to, the base's pipeline, the student, and their settings.

spec, where = place("sdxl-dmd", device="cuda")
pipeline = base_pipeline(spec, where)
student = student_of(spec, pipeline, where)
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Unavailable
from ..outside import reading
from ..quiet import silent
from .available import check, models
from .families import FAMILIES
from .spec import Spec
from .specs import repo_of, spec_of

# torch and diffusers are imported where they are used: a wrong name is refused before they are loaded
if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """What is loaded, where to and how.

    Attributes:
        name: of the pair.
        device, dtype: of its networks.
        revisions: commits of the base's and the student's repository; None is whatever "main" is.
        fingerprints: of an embedded pair and of its base, whose files were hashed before anything reads them; None for the hub's.
    """

    name: str
    device: str
    dtype: torch.dtype
    revisions: tuple[str | None, str | None]
    fingerprints: tuple[str, str] | None = None


def place(
    name: str,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    student_revision: str | None = None,
) -> tuple[Spec, Place]:
    """The pair of this name, and what `pairs.load`'s arguments mean for it on this machine.

    Raises:
        ValueError: no pair has this name, or an embedded model's file is damaged.
        Unavailable: its weights are not on this machine and the hub is out of reach.
    """
    check(name, revisions=(revision, student_revision))
    import torch

    from . import weights

    spec = spec_of(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if dtype is None:
        half = device.startswith("cuda") and not spec.embedded
        dtype = getattr(torch, FAMILIES[spec.family].dtype) if half else torch.float32
    known = repo_of(spec.base).revision, repo_of(spec.student).revision
    revisions = revision or known[0], student_revision or known[1]
    prints = weights.fingerprints(spec, revisions=revisions) if spec.embedded else None
    return spec, Place(name, device, dtype, revisions, prints)


def base_pipeline(spec: Spec, where: Place, *, move: bool = True) -> Any:
    """The pipeline that holds the base's denoiser; not to `move` it leaves it in the host's memory."""
    import diffusers
    import torch

    root = str(models() / spec.base) if spec.embedded else spec.base
    options = {"dtype": where.dtype, "use_safetensors": True, "revision": where.revisions[0]}
    if where.dtype == torch.float16:
        options["variant"] = repo_of(spec.base).variant
    if spec.family == "sd15":  # it looks at images, and latents are all that is asked for
        options |= {"safety_checker": None, "requires_safety_checker": False}
    with _quiet(spec), _reading(where.name, spec.base):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(root, **options)
    if move:
        pipeline.to(where.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def student_of(spec: Spec, pipeline: Any, where: Place) -> torch.nn.Module | str:
    """The student's network in the host's memory, or the name of its adapter, loaded on the base and switched off."""
    from . import weights

    with _quiet(spec), _reading(where.name, spec.student):
        return weights.student(spec, pipeline, dtype=where.dtype, revision=where.revisions[1])


def settings_of(spec: Spec, pipeline: Any, where: Place, *, published: bool = False) -> dict[str, Any]:
    """What a `Pair` of this spec is given beside its networks."""
    import diffusers

    from . import weights

    kind = getattr(diffusers, spec.scheduler)  # which would warn about settings of the base's that it has not
    shared = {
        key: value for key, value in pipeline.scheduler.config.items() if key in inspect.signature(kind).parameters
    }
    fingerprint, base_fingerprint = where.fingerprints or weights.fingerprints(spec, revisions=where.revisions)
    return {
        "distilled_scheduler": kind.from_config(shared | spec.scheduler_settings),
        "published": published,
        "fingerprint": fingerprint,
        "base_fingerprint": base_fingerprint,
        **spec.settings,
        **(spec.published if published else {}),
    }


@contextlib.contextmanager
def _reading(name: str, repo: str) -> Iterator[None]:
    """Inside, a file that cannot be read is an error of one line that names pair and repository."""
    if "/" not in repo or Path(repo).is_dir():
        with reading(f"pair {name!r}, {repo}"):
            yield
        return
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"pair {name!r}: the model hub or its cache does not give {repo}: {' '.join(str(error).split())[:300]}. If its "
            "licence has to be accepted, do so on its page and run `hf auth login`"
        ) from error


def _quiet(spec: Spec) -> contextlib.AbstractContextManager:
    return silent() if spec.embedded else contextlib.nullcontext()
