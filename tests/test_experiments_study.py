"""A study on a tiny random pair and a tiny embedder: results are cached, shared and never computed twice."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

import dtviz
from dtviz.controls import Control
from dtviz.experiments import interventions, study
from dtviz.experiments.cache import Cache
from dtviz.experiments.paper import EMOJI_PROMPTS, PAPER_PROMPTS
from dtviz.experiments.study import Study
from dtviz.plot import style

from .conftest import random_factors


@dataclass
class Pixels:
    """An embedder with a closed form: the normalised pixels."""

    fingerprint: str = "pixels"
    title: str = "pixel"
    calls: int = 0

    def __call__(self, images) -> np.ndarray:
        self.calls += 1
        flat = np.asarray(images, dtype=np.float32).reshape(len(images), -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


@pytest.fixture
def tiny(pair, tmp_path) -> Study:
    named = replace(pair, fingerprint="tiny", base_fingerprint="tiny base")
    return Study(named, Pixels(), (0, 1, 2), Cache(tmp_path / "cache"), out=tmp_path / "figures")


def files(tiny: Study) -> int:
    return len(list(tiny.cache.root.rglob("*.safetensors")))


def test_features_are_of_the_decoded_images(tiny):
    trace = dtviz.generate(tiny.pair, "a dog", method="hybrid", seeds=range(3))
    expected = Pixels()(dtviz.decode(trace, tiny.pair, final=True))
    np.testing.assert_allclose(tiny.features("a dog", "hybrid"), expected, atol=1e-4)
    steps = tiny.features("a dog", "hybrid", steps=True)
    assert steps.shape == (4, 3, expected.shape[1])
    np.testing.assert_allclose(steps[1], Pixels()(dtviz.decode(trace, tiny.pair)[1]), atol=1e-4)


def test_a_grid_holds_each_image_where_its_table_says(tiny):
    methods = {"Distilled": ("distilled", {}), "Two": ("hybrid", {"k": 2}), "One": ("hybrid", {"k": 1})}
    images, cells = tiny.grid(iter(["a dog", "a cat"]), methods)
    assert (images.shape, images.dtype) == ((2, 9, 3, 16, 16), np.float32)
    assert list(cells["seed"][:4]) == [0, 1, 2, 0]
    for image, (prompt, label, seed) in zip(images.reshape(-1, 3, 16, 16), cells.itertuples(index=False), strict=True):
        method, settings = methods[label]
        alone = replace(tiny, seeds=(seed,)).images(prompt, method, **settings)[0]
        np.testing.assert_allclose(image, alone, atol=1e-5)  # float32, decoded in batches of another size
    assert list(tiny.runs) == ["distilled", "hybrid, k=2", "hybrid, k=1"]


def test_nothing_is_computed_twice(tiny, monkeypatch):
    features, images = tiny.features("a dog", "distilled"), tiny.images("a dog", "distilled")
    np.testing.assert_array_equal(images, dtviz.decode(tiny.trace("a dog", "distilled"), tiny.pair, final=True).numpy())
    for name in ("generate", "decode"):
        monkeypatch.setattr(study, name, None)  # another call fails
    calls = tiny.embed.calls
    np.testing.assert_array_equal(tiny.features("a dog", "distilled"), features)
    fewer = replace(tiny, seeds=(2, 0))
    np.testing.assert_array_equal(fewer.images("a dog", "distilled"), images[[2, 0]])
    assert torch.equal(fewer.trace("a dog", "distilled").final, tiny.trace("a dog", "distilled").final[[2, 0]])
    assert tiny.embed.calls == calls


def test_other_images_are_embedded_once(tiny):
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    first, calls = tiny.features_of(images), tiny.embed.calls
    np.testing.assert_array_equal(first, Pixels()(images))
    np.testing.assert_array_equal(tiny.features_of(images.copy()), first)
    assert tiny.embed.calls == calls
    assert tiny.features_of(images.reshape(3, 3, 32, 8)).shape == first.shape  # the same bytes, other images
    assert tiny.embed.calls == calls + 1


def test_other_weights_or_settings_are_another_result_and_blocks_are_aligned(tiny):
    plain = tiny.trace("a dog", "base")
    assert not torch.equal(plain.final, tiny.trace("a dog", "base", base_guidance=5.0).final)
    other, before = replace(tiny, pair=replace(tiny.pair, base_fingerprint="other base")), files(tiny)
    other.trace("a dog", "base")
    assert files(tiny) == before + 2  # seeds 0 to 2 in blocks of two
    assert replace(tiny, seeds=(4, 1))._blocks() == [(0, 1), (4, 5)]
    assert replace(tiny, seeds=(4, 1)).trace("a dog", "distilled").seeds == (4, 1)


def test_a_pair_made_by_hand_is_not_cached(tiny):
    replace(tiny, pair=replace(tiny.pair, fingerprint="")).trace("a dog", "distilled")
    assert files(tiny) == 0


def test_pairs_of_one_base_share_its_samples(tiny, monkeypatch):
    first = tiny.trace("a dog", "base")
    other = replace(tiny, pair=replace(tiny.pair, name="other", fingerprint="other", guidance=1.5))
    assert not torch.equal(other.trace("a dog", "distilled").x0[0], other.trace("a dog", "base").x0[0])
    monkeypatch.setattr(study, "generate", None)
    again = other.trace("a dog", "base")
    assert torch.equal(again.final, first.final)
    assert again.provenance["pair"] == "other"
    with pytest.raises(TypeError):  # of an unknown base nothing is shared
        replace(other, pair=replace(other.pair, base_fingerprint="")).trace("a dog", "base")


# Interventions


@pytest.mark.parametrize("edit", ["zero", "mean", "own", ("repel", 0.5)])
def test_an_edit_by_name_is_that_edit(tiny, edit):
    tiny = replace(tiny, seeds=(0, 1))
    settings = {"handover": "matched-sigma"}
    trace = tiny.trace("a dog", "hybrid", edit=edit, **settings)
    function = interventions.edit_named(edit)
    expected = dtviz.generate(tiny.pair, "a dog", method="hybrid", seeds=(0, 1), edit_x0=function, **settings)
    assert torch.equal(trace.final, expected.final)
    assert not torch.equal(trace.final, tiny.trace("a dog", "hybrid", **settings).final)
    label = "edit=repel 0.5" if edit == ("repel", 0.5) else f"edit={edit}"
    assert list(tiny.runs) == [f"hybrid, {label}, matched-sigma", "hybrid, matched-sigma"]


def test_cads_and_controls_change_the_samples_and_are_part_of_the_name(tiny):
    control, plain = Control("look", "style", random_factors(tiny.pair.base)), tiny.trace("a dog", "hybrid").final
    before = files(tiny)
    assert torch.equal(tiny.trace("a dog", "hybrid", controls=[control.at(0.0)]).final, plain)
    assert files(tiny) == before  # a control at scale 0 is the plain model
    finals = [plain]
    for settings in ({"cads": 0.5}, {"controls": [control.at(1.0)]}, {"cads": 0.5, "controls": [control.at(1.0)]}):
        finals.append(tiny.trace("a dog", "hybrid", **settings).final)
    assert all(not torch.equal(a, b) for i, a in enumerate(finals) for b in finals[:i])
    [facts] = tiny.ran("hybrid", controls=[control.at(1.0)])["controls"]
    assert facts["calls"] == {"base": 1, "distilled": 3}
    [facts] = tiny.trace("a dog", "hybrid", controls=[control.at(1.0, segment="base")]).provenance["controls"]
    assert facts["calls"] == {"base": 1, "distilled": 0}


# Seconds


def test_seconds_are_the_fastest_warm_turn_of_the_whole_call(tiny, monkeypatch):
    """Generation takes 40 s (base) or 4 s, decoding 8 s; the first turn 100 s more and the others a little more."""
    now, calls = [0.0], []

    def generate(self, prompt, method, seeds, **settings):
        calls.append((prompt, method, list(seeds), settings))
        now[0] += {"base": 40, "distilled": 4}[method] + (100, 3, 0, 7)[sum(call[1] == method for call in calls) - 1]

    def decode(trace, pair, *, final):
        assert final
        now[0] += 8

    monkeypatch.setattr(Study, "_generate", generate)
    monkeypatch.setattr(study, "decode", decode)
    monkeypatch.setattr(study.time, "perf_counter", lambda: now[0])
    methods = {"Base": ("base", {"base_guidance": 3.0}), "Distilled": ("distilled", {})}
    assert tiny.seconds(methods, prompt="a dog") == {"Base": (40 + 8) / 2, "Distilled": (4 + 8) / 2}
    assert [call[1] for call in calls] == ["base", "distilled"] * 4  # in turns
    assert calls[0] == ("a dog", "base", [0, 1], {"base_guidance": 3.0})


def test_seconds_are_measured_once_per_machine(tiny, monkeypatch):
    methods = {"distilled": ("distilled", {}), "hybrid": ("hybrid", {"k": 1})}
    first = tiny.seconds(methods, prompt="a dog", turns=1)
    assert list(first) == list(methods) and min(first.values()) > 0
    assert tiny.seconds(methods, prompt="a dog", turns=1) == first
    monkeypatch.setattr(study.platform, "node", lambda: "another")
    assert tiny.seconds(methods, prompt="a dog", turns=1) != first


# Captions and figures


def test_a_caption_lists_up_to_four_runs(tiny):
    assert tiny.describe() == "custom, 3 seeds, quick profile. Distance: pixel."
    for k in (1, 2, 1):
        tiny.features("a dog", "hybrid", k=k)
    run = tiny.provenance()["runs"]["hybrid, k=2"]
    assert run["steps_run"] == {"base": 2, "distilled": 2}
    assert (run["guidance"], run["base_guidance"], run["nfe"]) == (0.0, 0.0, {"base": 2, "distilled": 2})
    assert tiny.ran("hybrid", k=1)["nfe"] == {"base": 1, "distilled": 3}
    assert "hybrid, k=2: 2 base (guidance 0) + 2 distilled (guidance 0)" in tiny.describe()
    tiny.features("a dog", "distilled", guidance=[0.0, 0.0, 3.0, 3.0])
    assert "distilled, guidance=0 x 2, 3 x 2: 4 distilled (guidance 0 x 2, 3 x 2)" in tiny.describe()
    tiny.features("a dog", "skip")
    assert "skip: 3 distilled" in tiny.describe()
    tiny.features("a dog", "base")
    assert tiny.describe(prompts=2) == "custom, 2 prompts x 3 seeds, quick profile. Distance: pixel."


def test_save_writes_the_figure_with_caption_table_and_provenance(tiny, tmp_path):
    tiny.features("a dog", "distilled")
    with style():
        figure, table = Figure(), pd.DataFrame({"v": [1.5]})
    figure.subplots(2, 2)[0, 0].set(xlabel="seconds", ylabel="a label")
    names = tiny.save(figure, "x", table=table, units={"v": "s"}, prompts=["a dog"], note="Bars: 95%.", tests=["p"])
    assert names == ["x.png", "x.pdf", "x.json", "x.csv"]
    assert all((tmp_path / "figures" / name).stat().st_size for name in names)
    text = " ".join(figure.get_supxlabel().split())
    start = "custom, 1 prompt x 3 seeds, quick profile. Distance: pixel. Steps run: distilled: 4"
    assert text.startswith(start) and text.endswith("Bars: 95%.")
    facts = json.loads((tmp_path / "figures" / "x.json").read_text())
    assert (facts["figure"], facts["prompts"], facts["tests"], facts["profile"]) == ("x", ["a dog"], ["p"], "quick")
    assert tiny.save(Figure(), "y", text="Seed 0.") == ["y.png", "y.pdf", "y.json"]
    first, tiny = (tmp_path / "figures" / "y.pdf").read_bytes(), replace(tiny, out="")
    study.save_figure(Figure(), tmp_path, "y", text="Seed 0.", provenance={})
    assert (tmp_path / "y.pdf").read_bytes() == first  # no date in it
    assert tiny.folder == dtviz.files.ROOT / "figures" / "custom" / "quick"
    assert facts["caption"] == text
    before, tiny = (tmp_path / "figures" / "x.png").read_bytes(), replace(tiny, out=tmp_path / "figures")
    tiny.save(figure, "x", table=table, units={"v": "s"}, prompts=["a dog"], note="Bars: 95%.")
    assert (tmp_path / "figures" / "x.png").read_bytes() == before  # the same figure again


def test_bad_input_is_refused(tiny):
    for call, words in (
        (lambda: tiny.choose(99), "n_prompts=99 must be from 1 to 5"),
        (lambda: Study.open("emoji-dmd", seeds=[]), "at least one seed"),
        (lambda: Study.open("emoji-dmd", seeds=[0], profile="ful"), "profile='ful' is not one of"),
        (lambda: tiny.trace("a dog", "hybrid", edit="none"), "edit='none' is not one of"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_prompts_follow_the_kind_of_pair(tiny):
    assert tiny.prompts == PAPER_PROMPTS
    assert replace(tiny, pair=replace(tiny.pair, name="emoji-dmd")).prompts == EMOJI_PROMPTS
    assert tiny.choose(2) == PAPER_PROMPTS[:2] and tiny.choose(0) == PAPER_PROMPTS
    emoji = replace(tiny, pair=replace(tiny.pair, name="emoji-dmd"))
    assert emoji.choose(0) == EMOJI_PROMPTS[:5] and replace(emoji, profile="full").choose(0) == EMOJI_PROMPTS
