"""Tables with units: what is written is read back to the last digit, and Table 3 has the paper's layout."""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtviz.experiments import tables
from dtviz.experiments.paper import printed
from dtviz.metrics.concepts import ConceptPair
from dtviz.metrics.diversity import mean_pairwise
from dtviz.metrics.factors import FACTORS, SHARES, FactorReader, read_factors
from dtviz.metrics.statistics import mean_interval
from dtviz.models import drawings
from dtviz.models.classifiers import Classifier

UNIT = "1 - cosine"


def paper():
    """The paper's Table 3 as a long table, without its average."""
    rows = printed("table3").query("prompt != 'Average'")
    return rows.melt("prompt", var_name="method", value_name="value")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), min_size=1, max_size=4),
)
def test_save_and_load_keep_every_digit_and_word(tmp_path_factory, values, prompts):
    n = min(len(values), len(prompts))
    prompts = [f"a {prompt}" for prompt in prompts]  # a prompt "12" is a number to any CSV reader
    written = pd.DataFrame({"prompt": prompts[:n], "value": values[:n], "n": range(n)})
    path = tables.save(written, tmp_path_factory.mktemp("t") / "t.csv", units={"value": "s"})
    read = tables.load(path)
    assert read["prompt"].tolist() == prompts[:n]
    assert read["value"].tolist() == values[:n]


def test_save_marks_units_keeps_gaps_and_refuses(tmp_path):
    written = pd.DataFrame({"prompt": ["NA", "null"], "value": [0.1, np.nan]})
    path = tables.save(written, tmp_path / "deep" / "t.csv", units={"value": UNIT})
    assert path.read_text().splitlines()[0] == "prompt,value [1 - cosine]"
    pd.testing.assert_frame_equal(tables.load(path), written, check_dtype=False)
    for units, message in (
        ({}, r"\['value'\] hold floats and have no unit"),
        ({"value": "s", "low": "s"}, r"units name \['low'\]"),
        ({"value": "s]"}, "bracket"),
    ):
        with pytest.raises(ValueError, match=message):
            tables.save(written, tmp_path / "t.csv", units=units)
    assert not (tmp_path / "t.csv").exists()


def test_wide_undoes_the_long_form_and_refuses_what_is_twice_or_missing():
    expected = printed("table3").set_index("prompt").drop("Average")
    pd.testing.assert_frame_equal(tables.wide(paper()), expected, check_names=False, check_column_type=False)
    with pytest.raises(ValueError, match="duplicate entries"):
        tables.wide(pd.concat([paper(), paper().head(1)]))
    with pytest.raises(ValueError, match=r"lacks the values of \[\('Sunset beach', 'base'\)\]"):
        tables.wide(paper().drop(index=0))


def test_average_is_the_papers_and_comes_with_students_interval():
    averaged = tables.add_average(paper().assign(n=100))
    rows = averaged[averaged["prompt"] == "Average"].set_index("method")
    assert rows["value"].round(3).to_dict() == {"base": 0.337, "distilled": 0.264, "hybrid": 0.350}
    expected = mean_interval(paper().query("method == 'hybrid'")["value"])
    assert (rows.loc["hybrid", "low"], rows.loc["hybrid", "high"]) == pytest.approx((expected.low, expected.high))
    assert rows["n"].tolist() == [5, 5, 5]
    assert averaged["n"].dtype == int
    with pytest.raises(ValueError, match="already has"):
        tables.add_average(averaged)


# Tables that several notebooks make.


class FakeStudy:
    """A study whose features are known: base samples differ, the others are alike."""

    seeds = (0, 1, 2)

    def features(self, prompt, method, **settings):
        return np.eye(3) if method == "base" else np.ones((3, 3)) + 0.1 * np.eye(3)

    def ran(self, method, **settings):
        return {"nfe": {"base": 2, "distilled": 3}}


def test_measure_has_a_row_for_each_prompt_and_method():
    methods = {"base": ("base", {}), "distilled": ("distilled", {"k": 1})}
    table = tables.measure(FakeStudy(), ["dog", "cat"], methods)
    assert table[["prompt", "method"]].values.tolist() == [[p, m] for p in ("dog", "cat") for m in methods]
    assert table["value"].tolist() == [mean_pairwise(FakeStudy().features("", m)).value for m in methods] * 2
    assert table["nfe"].tolist() == [5] * 4
    assert table["accuracy"].isna().all()


class Names:
    """A classifier whose features are the classes' numbers."""

    def posterior(self, features, *, among):
        return np.eye(len(dict.fromkeys(among)))[features[:, 0].astype(int)]

    def __call__(self, features, *, among):
        return [[*dict.fromkeys(among)][int(row[0])] for row in features]

    def accuracy(self, features, truth):
        return 0.5


def test_semantics_of_embedded_pairs_are_the_known_factors():
    """Twelve samples: four colours, one size, three places, two artists, all equally often."""
    read = np.array([[i % 4, 0, i % 3, i % 2] for i in range(12)], dtype=np.float32)
    samples = {"dog face": {"base": (np.eye(12), read)}}
    table, attributes = tables.measure_semantics(None, samples, artist=Names(), concept=Names())
    [row] = table.to_dict("records")
    told = attributes.set_index("attribute")["told"]
    # exp of the entropy with its correction, (values - 1) / (2 n)
    expected = {"colour": 4 * np.exp(3 / 24), "size": 1, "place": 3 * np.exp(2 / 24), "artist": 2 * np.exp(1 / 24)}
    assert told.to_dict() == pytest.approx(expected)
    for name, shares in SHARES.items():
        assert row[name] == pytest.approx(told[name] / np.exp(-(shares * np.log(shares)).sum()))
    assert row["artists"] == pytest.approx(told["artist"]) and row["told"] == pytest.approx(told.mean())
    assert row["coverage"] > 1 and row["accuracy"] == 0.5  # twelve combinations, as few as any twelve pictures have


def test_means_are_students_by_group_in_order_of_appearance():
    means = tables.means(paper(), ["method"])
    assert means["method"].tolist() == ["base", "distilled", "hybrid"]
    expected = [vars(mean_interval(values)) for _, values in tables.wide(paper()).items()]
    assert means.drop(columns="method").to_dict("records") == expected
    assert tables.plus_minus(pd.DataFrame({"value": [0.25], "low": [0.2], "high": [0.3]})) == ["0.250 ±0.050"]


def test_differences_leave_the_average_out():
    averaged = tables.add_average(paper()).assign(twice=lambda t: 2 * t["value"])
    [(name, (a, b))] = tables.differences(averaged, [("hybrid", "base")], column="twice", label="x: ").items()
    assert name == "x: hybrid - base"
    assert (a / 2).tolist() == tables.wide(paper())["hybrid"].tolist()
    assert len(b) == 5


def test_missing_concepts_finds_the_change_of_mind():
    classes, asked, alone = ("a", "b", "c", "d"), {"a and b": ConceptPair("a", "b", ("d", "c"))}, {"a": "a", "b": "b"}
    final = np.array([[0.97, 0.01, 0.01, 0.01]])
    changed = np.stack([[[0.02, 0.96, 0.01, 0.01]], [[0.03, 0.95, 0.01, 0.01]], final])  # shows b, ends as a
    posteriors = {("base", "a and b"): changed, ("base", "a"): np.stack([final] * 3)}
    posteriors["base", "b"] = posteriors["base", "a"][..., [1, 0, 2, 3]]
    table = tables.missing_concepts(posteriors, asked, alone, classes=classes, seeds=[10], absent=0.1)
    [row] = table[table["level"] >= 0.9].to_dict("records")
    assert (row["condition"], row["concept"], row["seed"], row["step"], row["final"]) == ("asked for", "b", 10, 1, "a")
    assert table["condition"].value_counts().to_dict() == {
        "asked for": 1, "not asked for, same images": 2, "not asked for, own prompt": 2,
    }  # fmt: skip


def test_errors_are_every_fourth_sample_of_another_prompt():
    mixed = tables.with_errors([np.full((7, 1), float(i)) for i in range(3)])
    for i, rows in enumerate(mixed):
        assert np.flatnonzero(rows[:, 0] != i).tolist() == [2, 6]
    with pytest.raises(ValueError, match="at least 2"):
        tables.with_errors([np.zeros((3, 1))])


def test_agreement_is_one_for_a_monotone_measure():
    table = paper().rename(columns={"value": "distance"}).assign(square=lambda t: t["distance"] ** 2, flat=1.0)
    rows = tables.agreement(table, ["distance", "square", "flat"], other="distance")
    assert rows.index.tolist() == ["distance", "square"]
    assert rows[["value", "over prompts"]].to_numpy() == pytest.approx(np.ones((2, 2)))


def test_steps_are_read_and_the_last_is_the_final_image():
    """The columns after the factors are an embedder's features, and here the scores of the artists."""
    names = tuple(dict.fromkeys(drawings.load().of("sunset").artists))
    artist = Classifier("artist", "scores", names, np.eye(len(names)), np.zeros(len(names)))
    scores = np.eye(len(names), dtype=np.float32)
    x0 = np.stack([np.column_stack([np.full((2, 3), step), scores[[step, 0]]]) for step in range(3)])

    class Steps:
        def features(self, prompt, method, *, steps):
            return x0 if steps else x0[0]

    labels = tables.read_steps(Steps(), "sunset", "base", artist=artist)
    expected = {name: [[0, 0], [1, 1], [0, 0]] for name in FACTORS} | {"artist": [[0, 0], [1, 0], [0, 0]]}
    assert {name: label.tolist() for name, label in labels.items()} == expected
    reader = FactorReader(Mock(side_effect=lambda images: images[:, 0, 0, :2], fingerprint="pixels"))
    images = np.random.default_rng(0).random((5, 3, 64, 64), dtype=np.float32)
    expected = np.column_stack([*read_factors(images).values(), images[:, 0, 0, :2]])
    np.testing.assert_array_equal(reader(images), expected)
    assert "pixels" in reader.fingerprint


def test_decisions_count_samples_and_steps_one_by_one():
    rng, n = np.random.default_rng(0), 20
    models = {"base": rng.integers(0, 3, (8, n)), "DMD": rng.integers(0, 2, (4, n))}
    table = tables.decisions({("p", model, "size"): read for model, read in models.items()})
    decided = {}
    for model, read in models.items():
        rows = table[table["model"] == model].reset_index(drop=True)
        at = [min(s for s in range(len(read)) if set(read[s:, i]) == {read[-1, i]}) + 1 for i in range(n)]
        decided[model] = [np.mean([step <= s + 1 for step in at]) for s in range(len(read))]
        for s, row in rows.iterrows():
            assert (row["step"], row["fraction"]) == (s + 1, (s + 1) / len(read))
            assert row["agreement"] == np.mean([read[s, i] == read[-1, i] for i in range(n)])
            pairs = [read[s, i] == read[-1, j] for i in range(n) for j in range(n) if i != j]
            assert row["chance"] == pytest.approx(np.mean(pairs))
            assert row["decided"] == decided[model][s]
        models[model] = np.mean(at) / len(read)
    steps = tables.decision_steps(table).set_index("model")
    assert steps["mean"].to_dict() == pytest.approx(models)
    assert steps["first"].to_list() == [1 / 8, 1 / 4]
    as_much = [s for s in range(8) if decided["base"][s] >= decided["DMD"][0]]
    assert steps["base"].to_list() == [1 / 8, (as_much[0] + 1) / 8]
