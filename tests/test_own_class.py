"""dtviz.own_class: one instance changes, its copies with it, and nothing stays."""

import copy

from diffusers import DDIMScheduler, EulerDiscreteScheduler

from dtviz.own_class import give_own_class, take_own_class


def counting(kind: type, counts: list) -> dict:
    """Members that note which instance set its timesteps."""

    def set_timesteps(self, *args, **kwargs):
        counts.append(self)
        return kind.set_timesteps(self, *args, **kwargs)

    return {"set_timesteps": set_timesteps}


def test_one_instance_is_hooked_and_looks_as_before():
    hooked, other, counts = DDIMScheduler(), DDIMScheduler(), []
    give_own_class(hooked, counting(DDIMScheduler, counts))
    for scheduler in (hooked, other):
        scheduler.set_timesteps(4)
    assert counts == [hooked]
    assert hooked.timesteps.tolist() == other.timesteps.tolist()
    assert isinstance(hooked, DDIMScheduler)
    for part in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(type(hooked), part) == getattr(DDIMScheduler, part)
    assert vars(hooked).keys() == vars(other).keys()


def test_a_copy_is_hooked_as_itself():
    """An attribute on the instance would be copied bound to the original."""
    hooked, counts = EulerDiscreteScheduler(), []
    give_own_class(hooked, counting(EulerDiscreteScheduler, counts))
    twin = copy.deepcopy(hooked)
    twin.set_timesteps(7)
    assert len(counts) == 1
    assert counts[0] is twin
    assert hooked.num_inference_steps is None


def test_hooks_on_hooks_are_taken_off_in_turn():
    scheduler, first, second = DDIMScheduler(), [], []
    give_own_class(scheduler, counting(DDIMScheduler, first))
    give_own_class(scheduler, counting(type(scheduler), second))
    scheduler.set_timesteps(2)
    take_own_class(scheduler)
    scheduler.set_timesteps(2)
    take_own_class(scheduler)
    scheduler.set_timesteps(2)
    assert (len(first), len(second)) == (2, 1)
    assert type(scheduler) is DDIMScheduler
