"""The training loop against torch's own, and against being killed."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors import safe_open

from dtviz.control.optimise import check_numbers, generator, optimise


def line(wait: float = 0.0):
    """A line to fit to noisy points, and its loss; `wait` seconds an iteration."""
    torch.manual_seed(3)
    parameters = {"slope": torch.nn.Parameter(torch.randn(3)), "offset": torch.nn.Parameter(torch.randn(()))}

    def loss(iteration: int, draws: torch.Generator) -> torch.Tensor:
        time.sleep(wait)
        x = torch.randn(8, 3, generator=draws)
        return (x @ parameters["slope"] + parameters["offset"] - x.sum(dim=1) - iteration % 2).square().mean()

    return parameters, loss


def run(path=None, *, iterations=12, wait=0.0, **changed):
    parameters, loss = line(wait)
    options = {"lr": 0.1, "seed": 5, "settings": {"rank": 4}, "every": 4, "progress": False} | changed
    return optimise(parameters, loss, iterations=iterations, state=path, **options), parameters


def test_it_is_adamw():
    losses, parameters = run()
    by_hand, loss = line()
    optimiser = torch.optim.AdamW(by_hand.values(), lr=0.1, weight_decay=0.01)
    for iteration in range(12):
        optimiser.zero_grad()
        value = loss(iteration, generator(5, iteration))
        value.backward()
        optimiser.step()
        assert value.item() == losses[iteration]
    for name, parameter in parameters.items():
        assert torch.equal(parameter, by_hand[name])


def test_every_iteration_has_random_numbers_of_its_own():
    draws = {tuple(torch.rand(3, generator=generator(seed, i)).tolist()) for seed in range(4) for i in range(50)}
    assert len(draws) == 200
    assert torch.equal(torch.rand(3, generator=generator(1, 7)), torch.rand(3, generator=generator(1, 7)))


def test_interrupted_anywhere_it_ends_in_the_same_bits(tmp_path):
    expected, parameters = run()
    for stop in (4, 7, 12):  # on a saving, between two, at the end
        path = tmp_path / f"{stop}.state"
        seen = 0

        def stopping(iteration, draws, loss, stop=stop):
            if iteration == stop:
                raise KeyboardInterrupt
            return loss(iteration, draws)

        ours, loss = line()
        options = {"lr": 0.1, "seed": 5, "settings": {"rank": 4}, "every": 4, "progress": False}
        try:
            optimise(ours, lambda i, draws, loss=loss: stopping(i, draws, loss), iterations=12, state=path, **options)
        except KeyboardInterrupt:
            seen += 1
        losses, again = run(path)
        assert losses == expected
        assert all(torch.equal(again[name], parameters[name]) for name in parameters)
        assert seen == (stop < 12)


def test_really_killed_it_goes_on_to_the_same_bits(tmp_path):
    path = tmp_path / "killed.state"
    child = os.fork()  # with what this process has loaded, so that a kill costs no seconds
    if not child:
        try:
            run(path, iterations=60, wait=0.05, every=2)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with safe_open(path, framework="pt") as file:
        done = len(file.get_tensor("losses"))
    assert 2 <= done < 60  # it was really at work
    expected, parameters = run(iterations=60)
    losses, again = run(path, iterations=60)
    assert losses == expected
    assert all(torch.equal(again[name], parameters[name]) for name in parameters)
    assert {file.suffix for file in tmp_path.iterdir()} <= {".state", ".partial"}


def test_a_state_of_another_training_is_refused(tmp_path):
    path = tmp_path / "state"
    run(path)
    for changed, named in (
        ({"settings": {"rank": 8}}, "rank"),
        ({"seed": 6}, "seed"),
        ({"lr": 0.2}, "lr"),
    ):
        with pytest.raises(ValueError, match=rf"other settings \({named}\)"):
            run(path, **changed)
    with pytest.raises(ValueError, match="12 iterations already, more than iterations=6"):
        run(path, iterations=6)
    assert len(run(path, iterations=20)[0]) == 20  # longer is another matter: it goes on
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match="state=.*cannot be read, is it damaged"):
        run(path)


def test_the_state_says_what_it_is(tmp_path):
    run(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        told = json.loads(file.metadata()["dtviz"])
    assert told == {"settings": {"rank": 4}, "seed": 5, "lr": 0.1, "weight_decay": 0.01}


def test_a_loss_that_is_no_number_stops_at_once():
    parameters, _ = line()
    with pytest.raises(FloatingPointError, match="iteration 0.*smaller lr than 0.1"):
        optimise(
            parameters,
            lambda *_: parameters["offset"] * torch.inf,
            iterations=3,
            lr=0.1,
            seed=0,
            settings={},
            progress=False,
        )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"iterations": 2.5}, "iterations=2.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"lr": 0}, "lr=0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"eta": -1.0}, "eta=-1.0"),
        ({"rank": "4"}, "rank='4'"),
    ],
)
def test_numbers_out_of_range_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        check_numbers(**values)
