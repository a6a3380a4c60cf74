"""dtviz.control.cases: controls of a CSV and those that are shipped, what they are tried on and judged by."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dtviz
from dtviz import control, judges
from dtviz.control import cases

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
TENSORS = {"mid_block.attentions.0.proj_in.lora_A.weight": torch.ones(1, 3), "mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(2, 1)}  # fmt: skip


@pytest.fixture
def listed(tmp_path):
    """A CSV of two controls, files beside it."""
    for name in ("a", "b"):
        control.Control(name, "slider", TENSORS).save(tmp_path / "files" / f"{name}.safetensors")
    rows = [
        ("smile", "files/a.safetensors", "man", "grinning face", 1.5),
        ("smile", "files/a.safetensors", "baby", "grinning face", 1.5),
        ("age", "files/b.safetensors", "girl", "woman", 1.0),
    ]
    pd.DataFrame(rows, columns=list(cases.COLUMNS)).to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def test_a_csv_of_ones_own(listed):
    smile, age = cases.load("emoji-dmd", file=listed)
    assert (smile.control.name, smile.prompts, smile.scale) == ("smile", ("man", "baby"), 1.5)
    [score] = smile.measures
    assert (score.name, score.embedder) == ("emoji-clip score", "emoji-clip")
    clip = dtviz.embedder("emoji-clip")
    np.testing.assert_array_equal(age.measures[0].targets["girl"], clip.text(["woman"])[0])
    images = clip(torch.rand(3, 3, 64, 64))
    np.testing.assert_allclose(score("baby", images), 100 * images @ clip.text(["grinning face"])[0], atol=1e-4)
    assert smile.facts()["fingerprint"] == smile.control.fingerprint
    with pytest.raises(KeyError, match="girl"):
        score("girl", images)


def test_a_csv_with_the_other_end_has_a_contrast_too(listed):
    table = pd.read_csv(listed)
    table["away"] = ["angry face", "loudly crying face", "man"]
    table.to_csv(listed, index=False)
    score, contrast = cases.load("emoji-dmd", file=listed)[0].measures
    clip = dtviz.embedder("emoji-clip")
    images = clip(torch.rand(3, 3, 64, 64))
    away = 100 * images @ clip.text(["loudly crying face"])[0]
    assert contrast.name == "emoji-clip contrast"
    table.assign(away="").to_csv(listed, index=False)
    assert len(cases.load("emoji-dmd", file=listed)[0].measures) == 1
    np.testing.assert_allclose(contrast("baby", images), score("baby", images) - away, atol=1e-4)


def test_a_csv_says_what_each_was_trained_on(listed):
    assert cases.load("emoji-dmd", file=listed, trained_on="emoji-lcm") == []
    table = pd.read_csv(listed)
    table["trained_on"] = ["base", "base", "emoji-lcm"]
    table.to_csv(listed, index=False)
    for where, name in (("base", "smile"), ("emoji-lcm", "age")):
        [case] = cases.load("emoji-dmd", file=listed, trained_on=where)
        assert case.control.name == name


def test_the_list_for_sdxl_is_whole():
    """Published sliders and styles; what they need is not on this machine, so only the list is looked at."""
    table = pd.read_csv(PROMPTS / "sdxl_controls.csv", keep_default_na=False)
    assert set(cases.COLUMNS) <= set(table.columns)
    assert (table.groupby("control")["prompt"].nunique() == 8).all()
    assert not table.duplicated(["control", "prompt"]).any()
    assert (table[["file", "prompt", "towards"]] != "").all(axis=None)


def test_what_a_csv_lacks_is_named(listed):
    pd.read_csv(listed).drop(columns=["towards", "scale"]).to_csv(listed, index=False)
    with pytest.raises(ValueError, match="lacks the columns towards, scale; it has control, file, prompt"):
        cases.load("emoji-dmd", file=listed)


def test_a_file_that_is_not_beside_the_csv_is_sought_on_the_hub(listed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    table = pd.read_csv(listed)
    table["file"] = "someone/sliders/age.safetensors"
    table.to_csv(listed, index=False)
    with pytest.raises(dtviz.Unavailable, match="control 'someone/sliders' is not in this machine's hub cache"):
        cases.load("emoji-dmd", file=listed)


def test_shipped_controls_by_what_they_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DTVIZ_CONTROLS", str(tmp_path))
    facts = {"prompts": ["man", "girl"], "positive": ["man", "woman"], "negative": ["baby", "baby"], "scale": 2.0}
    for where, role, pair in (("", "base", "emoji-dmd"), ("emoji-lcm", "distilled", "emoji-lcm")):
        one = control.Control("age", "slider", TENSORS, facts | {"trained_on": {"pair": pair, "role": role}})
        one.save(tmp_path / where / "age.safetensors")
    [own] = cases.load("emoji-dmd")
    assert (own.control.name, own.prompts, own.scale) == ("age", ("girl", "man"), 2.0)
    assert [measure.name for measure in own.measures] == ["emoji-clip score", "emoji-clip contrast", "concept judge"]
    [reverse] = cases.load("emoji-dmd", trained_on="emoji-lcm")
    assert reverse.control.facts["trained_on"]["role"] == "distilled"
    assert cases.load("emoji-dmd", trained_on="emoji-turbo") == []
    assert control.load("age").fingerprint == control.load("emoji-lcm/age").fingerprint == own.control.fingerprint


def test_a_verdict_is_of_the_ends_in_question():
    """Three classes along three axes; the posterior of one among two is a logistic function of their difference."""
    judge = judges.Judge("concept", "pixels", ("man", "baby", "woman"), np.eye(3), np.zeros(3))
    verdict = cases.Verdict("concept judge", judge, {"girl": "woman"}, {"girl": ("woman", "baby")})
    features = np.array([[9.0, 1.0, 2.0], [0.0, 3.0, 0.5]])
    np.testing.assert_allclose(verdict("girl", features), 100 / (1 + np.exp(-np.array([1.0, -2.5]))))
    assert verdict.embedder == "pixels"


def test_hub_pairs_take_a_csv():
    with pytest.raises(
        ValueError, match="dtviz ships no controls for 'sdxl-dmd'; give a CSV with the columns control, file, prompt"
    ):
        cases.load("sdxl-dmd")
    assert cases.students("sdxl-lcm") == {
        "DMD": "sdxl-dmd",
        "LCM": "sdxl-lcm",
        "Turbo": "sdxl-turbo",
        "Lightning": "sdxl-lightning",
    }
