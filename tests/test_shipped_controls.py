"""The controls in data/controls: small, safe, licensed, told where they are from, and at work on every network of their base."""

from pathlib import Path

import pytest
import torch

import dtviz
from dtviz import control, judges
from dtviz.control import cases
from dtviz.control.conditions import conditions, predict

FOLDER = Path(__file__).parents[1] / "data" / "controls"
SHARE_ALIKE = ("openmoji", "emojione-v1")


@pytest.fixture(scope="module")
def shipped() -> list[control.Control]:
    return control.shipped()


@pytest.fixture(scope="module")
def pair() -> dtviz.Pair:
    return dtviz.load("emoji-dmd", device="cpu")


def test_they_are_small_safe_and_have_a_card(shipped):
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".md", ".csv"}
    card = (FOLDER / "README.md").read_text()
    for one in shipped:
        assert f"| {one.name} |" in card


def test_there_are_three_sliders_and_three_styles_of_the_base(shipped):
    on_base = [one for one in shipped if one.facts["trained_on"]["role"] == "base"]
    for kind in ("slider", "style"):
        assert len({one.name for one in on_base if one.kind == kind}) >= 3


def test_licences_follow_the_drawings(shipped):
    for one in shipped:
        assert one.facts["licence"] == ("CC-BY-SA-4.0" if one.name in SHARE_ALIKE else "MIT")


def test_they_tell_what_they_were_trained_on(shipped, pair):
    for one in shipped:
        told = one.facts["trained_on"]
        origin = dtviz.load(told["pair"], device="cpu") if told["pair"] != pair.name else pair
        expected = origin.base_fingerprint if told["role"] == "base" else origin.fingerprint
        assert told["fingerprint"] == expected  # a base or student trained anew needs new controls
        if one.kind == "slider":
            assert len(one.facts["positive"]) == len(one.facts["negative"]) == len(one.facts["prompts"])
        else:
            assert one.facts["towards"] in judges.load("style").classes


def test_they_take_hold_of_base_and_student(shipped, pair):
    for one in shipped:
        with control.attach(pair, one) as proof:
            assert proof.networks == ("base", "distilled")
            assert min(proof.change) > 1e-3


def test_no_style_was_trained_on_what_the_pairs_are_studied_on(shipped):
    styles = [one for one in shipped if one.kind == "style"]
    assert not {prompt for one in styles for prompt in one.facts["prompts"]} & set(dtviz.study.EMOJI_PROMPTS)


@pytest.mark.parametrize("name", ["age", "smile", "green"])
def test_a_slider_moves_the_noise_from_its_one_end_to_the_other(name, pair):
    """What it was trained for, on noise it has not seen: both directions, along e(positive) - e(negative) of the base."""
    [one] = [case.control for case in cases.load("emoji-dmd") if case.control.name == name]
    facts = one.facts
    ends = facts["positive"][0], facts["negative"][0]
    known = conditions(pair, sorted({*facts["prompts"], *ends}))
    draws = torch.Generator().manual_seed(5)
    x_t = torch.randn(len(facts["prompts"]), *known.shape, generator=draws)

    def noise(prompts, scale=0.0) -> torch.Tensor:
        with control.attach(pair.base, one, scale), torch.no_grad():
            return predict(pair.base, x_t, torch.tensor(900), known.rows(prompts))

    plain, n = noise(facts["prompts"]), len(x_t)
    along = (noise([ends[0]] * n) - noise([ends[1]] * n)).flatten()
    for scale in (1.0, -1.0):
        moved = (noise(facts["prompts"], scale) - plain).flatten()
        assert torch.nn.functional.cosine_similarity(scale * along, moved, dim=0) > 0.4
