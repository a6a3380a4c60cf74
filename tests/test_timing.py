"""dtviz.timing with a clock that only the work moves."""

from dataclasses import replace

import pytest

from dtviz import timing


@pytest.fixture
def clocked(monkeypatch):
    """Work of known length: base 40 s, student 4 s, decoding 8 s; the first turn 100 s more, later ones a little more."""
    now, calls = [0.0], []

    def generate(pair, prompt, *, method, seeds, **settings):
        calls.append((prompt, method, list(seeds), settings))
        turn = sum(call[1] == method for call in calls)
        now[0] += {"base": 40, "distilled": 4}[method] + {1: 100, 2: 3, 3: 0, 4: 7}[turn]

    def decode(trace, pair, *, final):
        assert final
        now[0] += 8

    monkeypatch.setattr(timing, "generate", generate)
    monkeypatch.setattr(timing, "decode", decode)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return calls


def test_the_fastest_warm_turn_of_the_whole_call_counts(pair, clocked):
    methods = {"Base": ("base", {"base_guidance": 3.0}), "Student": ("distilled", {})}
    found = timing.seconds_an_image(replace(pair, batch_size=4), methods, prompt="a dog")
    assert found == {"Base": (40 + 8) / 4, "Student": (4 + 8) / 4}
    assert [call[1] for call in clocked] == ["base", "distilled"] * 4  # in turns
    assert clocked[0] == ("a dog", "base", [0, 1, 2, 3], {"base_guidance": 3.0})


def test_a_real_call(pair):
    found = timing.seconds_an_image(pair, {"Student": ("distilled", {})}, prompt="a dog", turns=1)
    assert 0 < found["Student"] < 60


def test_no_turns_are_refused(pair):
    with pytest.raises(ValueError, match="turns=0 must be at least 1"):
        timing.seconds_an_image(pair, {}, prompt="a dog", turns=0)
