"""The relay that stands in for a pipeline's scheduler, carries out a plan, and hands the sample over.

relay = Relay(plan(pair, method="hybrid", ...), recorder)
pipe.scheduler = relay
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch

from ..adaptive import Parting
from ..recorder import Recorder
from ..rules import exact, space
from ..schedule import coefficients, move, predict_x0
from ..schedule import sigma as sigma_at
from .plan import Call

HANDED = ("x0", "mean", "zero", "own")
Replan = Callable[[torch.Tensor], torch.Tensor]


class Relay:
    """Stands in for the pipeline's scheduler: runs a plan's calls, records them, hands the sample over.

    Args:
        plan: the calls, in order.
        recorder: sees each of them.
        handed: the x̂0 inside the sample that the base hands over, see `generate`.
        scaled: whether the initial noise is scaled for the first step that runs, or for the scheduler's first, as in the
            published code.
        replan: changes the x̂0 (sample, ...) inside the sample that every call but the last leaves; None: nothing does.
        parting: decides after which k to hand over; `plan` is then its longest.
        finish: called when a shorter plan was taken and carried out.
        seen: called after each call with how many are done, how many there are, and the call's x̂0.

    Attributes:
        probed: where the student's output is to be put when there is a `probe`: its plan is handed over, or looked at.
    """

    order = 1

    def __init__(
        self,
        plan: Sequence[Call],
        recorder: Recorder,
        *,
        handed: str = "x0",
        scaled: bool = True,
        replan: Replan | None = None,
        parting: Parting | None = None,
        finish: Callable[[], None] = lambda: None,
        seen: Callable[[int, int, torch.Tensor], None] | None = None,
    ) -> None:
        self.plan, self.recorder, self.index = plan, recorder, 0
        self.handed, self.scaled, self.replan = handed, scaled, replan
        self.parting, self.finish, self.seen = parting, finish, seen
        self.probed: list[torch.Tensor] = []
        self.config = plan[0].scheduler.config
        self.timesteps = torch.stack([call.timestep for call in plan])

    @property
    def now(self) -> Call:
        """The call whose turn it is."""
        return self.plan[self.index]

    @property
    def probe(self) -> Call | None:
        """The student's coming call, if it is to look at this call's sample too."""
        if self.parting is not None:
            return self.parting.probe(self.index)
        return self.plan[self.index + 1] if self.handed == "own" and self._hands_over() else None

    @property
    def init_noise_sigma(self):
        """Noise enters at the first step that really runs, so it is scaled for that one."""
        if self.index:
            return 1.0  # it goes on with a sample that it left
        first = self.plan[0]
        if not self.scaled or space(first.scheduler) != "ve" or first.timestep == first.scheduler.timesteps[0]:
            return first.scheduler.init_noise_sigma
        return (sigma_at(first.scheduler, first.timestep) ** 2 + 1) ** 0.5

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None) -> None:
        """The plan is made already, from what the pipeline asks for, see `sampling.steps`."""
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The plan begins where it begins."""

    def scale_model_input(self, sample: torch.Tensor, timestep) -> torch.Tensor:
        return self.now.scheduler.scale_model_input(sample, self.now.timestep)

    def step(self, model_output, timestep, sample, generator=None, return_dict: bool = True) -> tuple:
        now = self.now
        timestep = now.timestep  # in its own scheduler's type: a plan may mix integers and floats
        x0 = self.recorder.before(now.scheduler, model_output, timestep, sample, expected=len(self.plan))
        theirs = self._theirs(sample) if self.probed else None
        if self.parting is not None:
            self._go_on(self.parting.decide(self.index, x0, theirs))
            now = self.now
        other = self._other(x0, theirs)
        if now.to is None:
            seeded = "generator" in inspect.signature(now.scheduler.step).parameters
            noise = {"generator": generator} if seeded else {}
            output = now.scheduler.step(model_output, timestep, sample, **noise, return_dict=False)
        else:
            level, target = sigma_at(now.scheduler, timestep), sigma_at(now.to, now.to_timestep)
            x = move(sample, x0, scheduler=now.scheduler, sigma=level, to=now.to, to_sigma=target)
            output = (x.to(sample.dtype),)
        if other is not None:
            output = (self._replanned(output[0], other - x0), *output[1:])
        self.recorder.after(output)
        self.index += 1
        if self.index == len(self.plan) < len(self.timesteps):
            self.finish()
        if self.seen is not None:
            self.seen(self.index, len(self.plan), x0)
        return output

    def _go_on(self, plan: Sequence[Call]) -> None:
        """Carry out this plan from here; in place, since the pipeline's loop holds the timesteps already."""
        if plan is not self.plan:
            self.plan = plan
            coming = slice(self.index + 1, len(plan))
            self.timesteps[coming] = torch.stack([call.timestep for call in plan[coming]]).to(self.timesteps)

    def _hands_over(self) -> bool:
        """Whether this is the base's last call."""
        after = self.plan[self.index + 1 : self.index + 2]
        return self.now.role == "base" and bool(after) and after[0].role != "base"

    def _theirs(self, sample: torch.Tensor) -> torch.Tensor:
        """The student's plan of this call's sample, of which it was asked."""
        output = self.probed.pop()[-len(sample) :]  # a doubled batch has the same output in both halves
        return predict_x0(self.now.scheduler, output, self.now.timestep, sample)

    def _other(self, x0: torch.Tensor, theirs: torch.Tensor | None) -> torch.Tensor | None:
        """The x̂0 to be put into the sample that this call leaves in place of its own, if any."""
        if self.index + 1 == len(self.plan):
            return None
        if self.handed != "x0" and self._hands_over():
            return {"mean": x0.mean(dim=0, keepdim=True), "own": theirs, "zero": torch.zeros_like(x0)}[self.handed]
        whole = self.plan[self.index + 1].starts  # not within a second-order step
        return self.replan(x0) if self.replan is not None and whole else None

    def _replanned(self, x: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The sample that a call leaves, its noise kept, with another x̂0 inside."""
        after = self.plan[self.index + 1]
        signal, _ = coefficients(after.scheduler, exact(sigma_at(after.scheduler, after.timestep)))
        return (x + float(signal) * change).to(x.dtype)
