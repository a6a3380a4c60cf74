"""slider_cases: controls of a CSV and those that are shipped, with their prompts and scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dtviz
from dtviz import controls
from dtviz.experiments import slider_cases as cases
from dtviz.experiments.study import Study
from dtviz.metrics.factors import COLOURS
from dtviz.models.classifiers import Classifier

PROMPTS = Path(__file__).parents[1] / "data" / "prompts"
MODULE = "mid_block.attentions.0.proj_in"
TENSORS = {f"{MODULE}.lora_A.weight": torch.ones(1, 3), f"{MODULE}.lora_B.weight": torch.ones(2, 1)}


@pytest.fixture
def listed(tmp_path) -> Path:
    """A CSV of two controls, files beside it."""
    for name in ("a", "b"):
        controls.Control(name, "slider", TENSORS).save(tmp_path / "files" / f"{name}.safetensors")
    rows = [
        ("smile", "files/a.safetensors", "man", "grinning face", 1.5),
        ("smile", "files/a.safetensors", "baby", "grinning face", 1.5),
        ("age", "files/b.safetensors", "girl", "woman", 1.0),
    ]
    pd.DataFrame(rows, columns=list(cases.COLUMNS)).to_csv(tmp_path / "mine.csv", index=False)
    return tmp_path / "mine.csv"


def edit(path: Path, **columns) -> None:
    pd.read_csv(path).assign(**columns).to_csv(path, index=False)


def test_a_csv_of_ones_own(listed):
    smile, age = cases.load("emoji-dmd", file=listed)
    assert (smile.control.name, smile.prompts, smile.scale) == ("smile", ("man", "baby"), 1.5)
    [one] = smile.measures
    assert (one.name, one.embedder) == ("emoji-clip score", "emoji-clip")
    clip = dtviz.embedder("emoji-clip")
    np.testing.assert_allclose(age.measures[0].score("girl", clip.text(["woman"])), 100, atol=1e-3)
    images = clip(torch.rand(3, 3, 64, 64))
    np.testing.assert_allclose(one.score("baby", images), 100 * images @ clip.text(["grinning face"])[0], atol=1e-4)
    assert smile.facts()["fingerprint"] == smile.control.fingerprint
    edit(listed, away=["angry face", "loudly crying face", "man"])
    one, contrast = cases.load("emoji-dmd", file=listed)[0].measures
    away = 100 * images @ clip.text(["loudly crying face"])[0]
    assert contrast.name == "emoji-clip contrast"
    np.testing.assert_allclose(contrast.score("baby", images), one.score("baby", images) - away, atol=1e-4)
    edit(listed, away="")
    assert len(cases.load("emoji-dmd", file=listed)[0].measures) == 1
    assert cases.load("emoji-dmd", file=listed, trained_on="emoji-lcm") == []
    edit(listed, trained_on=["base", "base", "emoji-lcm"])
    assert [case.control.name for case in cases.load("emoji-dmd", file=listed, trained_on="emoji-lcm")] == ["age"]


def test_what_a_csv_lacks_is_named(listed, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    edit(listed, file="someone/sliders/age.safetensors")
    words = "age.safetensors of control 'someone/sliders' is neither a file here nor in the hub's cache"
    with pytest.raises(dtviz.Unavailable, match=words):
        cases.load("emoji-dmd", file=listed)
    pd.read_csv(listed).drop(columns=["towards", "scale"]).to_csv(listed, index=False)
    with pytest.raises(ValueError, match="lacks the columns towards, scale; it has control, file, prompt"):
        cases.load("emoji-dmd", file=listed)
    with pytest.raises(ValueError, match="for 'sdxl-dmd': give file=, a CSV with the columns control, file, prompt"):
        cases.load("sdxl-dmd")


def test_the_list_for_sdxl_is_complete():
    table = pd.read_csv(PROMPTS / "sdxl_controls.csv", keep_default_na=False)
    assert set(cases.COLUMNS) <= set(table.columns)
    assert (table.groupby("control")["prompt"].nunique() == 8).all()
    assert not table.duplicated(["control", "prompt"]).any()
    assert (table[["file", "prompt", "towards"]] != "").all(axis=None)
    assert cases.distilled_pairs("sdxl-lcm")["Turbo"] == "sdxl-turbo"


def test_shipped_controls_by_what_they_were_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DTVIZ_CONTROLS", str(tmp_path))
    facts = {"prompts": ["man", "girl"], "positive": ["man", "woman"], "negative": ["baby", "baby"], "scale": 2.0}
    size = {"prompts": ["owl"], "positive": ["big owl on blue"], "negative": ["small owl"]}
    for file, own in {"age": facts, "size": size, "emoji-lcm/age": facts}.items():
        origin = {"role": "distilled", "pair": "emoji-lcm"} if "/" in file else {"role": "base", "pair": "emoji-dmd"}
        control = controls.Control(Path(file).name, "slider", TENSORS, own | {"trained_on": origin})
        control.save(tmp_path / f"{file}.safetensors")
    own, size = cases.load("emoji-dmd")
    assert (own.control.name, own.prompts, own.scale) == ("age", ("girl", "man"), 2.0)
    names = [measure.name for measure in (*own.measures, *size.measures[2:])]
    assert names == ["emoji-clip score", "emoji-clip contrast", "concept classifier", "read as big", "read as blue"]
    assert [case.control.facts["trained_on"] for case in cases.load("emoji-dmd", trained_on="emoji-lcm")] == [origin]
    assert cases.load("emoji-dmd", trained_on="emoji-turbo") == []
    assert controls.load("age").fingerprint == controls.load("emoji-lcm/age").fingerprint == own.control.fingerprint


def test_a_classifier_score_compares_the_two_ends():
    """Three classes along three axes. The posterior of one of two is a logistic function of their difference."""
    classifier = Classifier("concept", "pixels", ("man", "baby", "woman"), np.eye(3), np.zeros(3))
    measure = cases.posterior(classifier, {"girl": "woman"}, {"girl": ("woman", "baby")})
    features = np.array([[9.0, 1.0, 2.0], [0.0, 3.0, 0.5]])
    np.testing.assert_allclose(measure.score("girl", features), 100 / (1 + np.exp(-np.array([1.0, -2.5]))))
    assert measure.embedder == "pixels"


def test_a_known_factor_is_read_from_the_images(monkeypatch):
    images = np.array([*COLOURS.values()])[[5, 5, 2], :, None, None] * np.ones((64, 64))  # on blue, blue and orange
    images[[0, 2], :, 8:56, 20:44] = images[1, :, 20:40, 20:44] = 0.1
    monkeypatch.setattr(Study, "images", lambda study, prompt, method, *, k: images)
    study, measures = Study(None, None, (0, 1, 2), None), cases.readings("big owl on blue")
    values = [cases.scores(study, measure, ["owl"], "base", k=1).tolist() for measure in measures]
    assert values == [[[100, 0, 100]], [[100, 100, 0]]]
    assert cases.readings("green apple") == []


def test_effects_are_those_of_the_arrays():
    rng = np.random.default_rng(0)
    arrays = {model: (rng.normal(size=(8, 3)), rng.normal(size=(8, 3))) for model in ("base", "LCM")}
    parts = []
    for model, (original, controlled) in arrays.items():
        index = pd.MultiIndex.from_product([[f"p{9 - i}" for i in range(8)], range(3)], names=["prompt", "seed"])
        part = index.to_frame(index=False).assign(control="age", measure="score", model=model)
        parts.append(part.assign(original=original.ravel(), controlled=controlled.ravel()))
    table = cases.effects(pd.concat(parts))
    assert table.columns[:3].tolist() == ["control", "measure", "model"]
    pd.testing.assert_frame_equal(table.drop(columns=["control", "measure"]), controls.effect(arrays, over="prompts"))
    assert cases.effects(pd.concat(parts).query("prompt != 'p2'"))["over"].tolist() == ["seeds", "seeds"]
    assert [line.split(":")[0] for line in cases.conclude_effects(table)] == ["age, score, base", "age, score, LCM"]
