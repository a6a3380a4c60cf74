"""Hooks on one scheduler instance: it gets a class of its own for a while, so that no class and no other instance changes.

An attribute set on the instance would be copied with it and go on stepping the original; a class is what a deep copy keeps
and steps itself.
"""

from __future__ import annotations

from typing import Any


def give_own_class(instance: Any, members: dict[str, Any]) -> None:
    """Put a subclass of the instance's class, with these members, in that class's place.

    It is named like the class it stands for, since pipelines and rules ask for the name.

    >>> from diffusers import DDIMScheduler
    >>> scheduler = DDIMScheduler()
    >>> give_own_class(scheduler, {"scale_model_input": lambda self, sample, timestep=None: 2 * sample})
    >>> scheduler.scale_model_input(1.5), type(scheduler).__name__, DDIMScheduler().scale_model_input(1.5)
    (3.0, 'DDIMScheduler', 1.5)
    >>> take_own_class(scheduler)
    >>> scheduler.scale_model_input(1.5)
    1.5
    """
    kind = type(instance)
    same = {part: getattr(kind, part) for part in ("__module__", "__qualname__", "__doc__")}
    instance.__class__ = type(kind.__name__, (kind,), members | same)


def take_own_class(instance: Any) -> None:
    """Undo the last `give_own_class`: the instance, or a copy of it, is of the class before."""
    instance.__class__ = type(instance).__mro__[1]
