"""What is known of a pair before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Repo:
    """A repository of weights on the model hub.

    Attributes:
        licence: of the weights.
        revision: the commit that is loaded; None: whatever its branch "main" is.
        variant: the name of its files in half precision, "fp16"; None: it has no others.
    """

    licence: str = ""
    revision: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Spec:
    """A pair known by name: where it comes from and the settings it was trained for.

    Attributes:
        base, student: repositories, or folders; of an embedded pair, names in `data/models`.
        family: the architecture, a name in `families.FAMILIES`.
        scheduler: the student's diffusers class, made of the base's settings and `scheduler_settings`.
        file: the student's weights: a file or a diffusers folder in `student`; of an embedded pair "unet" or "lora".
        adapter: whether they are a LoRA on the base, so that one network in memory plays both parts.
        parameters: of a LoRA, and `item`, bytes a number in its file; a whole network has its family's, at two.
        settings: of `Pair`, as the student was trained.
        published: of them, those that the paper's code has otherwise.
        time: what the base's timestep is multiplied by to be the student's.
    """

    base: str
    student: str
    family: str
    scheduler: str
    file: str = ""
    adapter: bool = False
    parameters: int = 0
    item: int = 2
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    time: float = 1.0

    @property
    def embedded(self) -> bool:
        """Whether dtviz ships it."""
        return "/" not in self.base
