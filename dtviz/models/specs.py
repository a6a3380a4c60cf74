"""The pairs known by name, shipped ones and those on the model hub; a name of one of them, or a hint."""

from __future__ import annotations

import difflib
from typing import Any

from .hub import HUB, REPOS, TRAINED
from .spec import Repo, Spec

# As the students were trained, see data/models
_EMOJI = {"base_steps": 20, "base_guidance": 5.0, "batch_size": 10}
_DRAWN = "MIT (weights); drawings Apache-2.0, MIT, CC-BY-4.0"
_TRAILING = {"timestep_spacing": "trailing"}
_STUDENTS: dict[str, dict[str, Any]] = {
    "emoji-dmd": {"scheduler": "LCMScheduler", "settings": {"timesteps": TRAINED} | _EMOJI},
    "emoji-lcm": {"scheduler": "LCMScheduler", "settings": _EMOJI},
    "emoji-turbo": {
        "scheduler": "EulerAncestralDiscreteScheduler", "scheduler_settings": _TRAILING, "settings": _EMOJI,
    },
    "emoji-lightning": {"scheduler": "EulerDiscreteScheduler", "scheduler_settings": _TRAILING, "settings": _EMOJI},
}  # fmt: skip

SPECS: dict[str, Spec] = {
    **{n: Spec("emoji-base", n, "emoji", file="unet", **how) for n, how in _STUDENTS.items()},
    **{
        f"{n}-lora": Spec("emoji-base", n, "emoji", file="lora", adapter=True, parameters=2_167_040, **how)
        for n, how in _STUDENTS.items()
    },
    **HUB,
}


def spec_of(name: str) -> Spec:
    """The pair of this name.

    Raises:
        ValueError: there is none; the message suggests the nearest.

    >>> spec_of("sdxl-dmd").student
    'tianweiy/DMD2'
    """
    if name not in SPECS:
        near = difflib.get_close_matches(str(name), SPECS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"pair {name!r} is not known, there are {', '.join(SPECS)}{hint}")
    return SPECS[name]


def repo_of(name: str) -> Repo:
    """What is known of a repository; nothing of a folder."""
    return REPOS.get(name, Repo(_DRAWN if "/" not in name else ""))


def licence(spec: Spec) -> str:
    """Of the base, and of the student where it is another.

    >>> licence(spec_of("flux-schnell"))
    'FLUX.1-dev Non-Commercial (base), Apache-2.0 (student)'
    """
    base, student = repo_of(spec.base).licence, repo_of(spec.student).licence
    return base if base == student else f"{base} (base), {student} (student)"


def markdown() -> str:
    """The hub's pairs for the documentation: a row a pair, what it is made of and how its student is run."""
    lines = ["| pair | base | student | scheduler | settings | weights |", "|---|---|---|---|---|---|"]
    for name, spec in HUB.items():
        student = f"{spec.student}, {'LoRA ' if spec.adapter else ''}`{spec.file}`" if spec.file else spec.student
        lines.append(
            f"| `{name}` | {spec.base} | {student} | {spec.scheduler.removesuffix('Scheduler')} | {_settings(spec)} | "
            f"{licence(spec)} |"
        )
    return "\n".join(lines)


def _settings(spec: Spec) -> str:
    """How base and student are run, in words."""
    told, how = spec.settings, []
    if "timesteps" in told:
        how.append("at " + ", ".join(f"{t:g}" for t in (round(t, 1) for t in told["timesteps"])))
    how += [f"{key} {value}" for key, value in spec.scheduler_settings.items() if key in ("timestep_spacing", "shift")]
    student = " ".join([f"{told.get('steps', 4)} steps", *how]) + f", guidance {told.get('guidance', 0):g}"
    if "size" in told:
        student += f", {told['size'][0]} px"
    text = f"{student}; base {told['base_steps']} steps, guidance {told['base_guidance']:g}"
    if spec.published:
        text += "; published: " + ", ".join(
            f"{key} {'LCM’s own' if value is None else format(value, 'g')}" for key, value in spec.published.items()
        )
    return text
