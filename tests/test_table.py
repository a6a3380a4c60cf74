"""dtviz.table: what is written is read back to the last digit, and Table 3's layout is the paper's."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtviz import table
from dtviz.diversity import mean_interval

UNIT = "1 - cosine"


def paper():
    """The paper's Table 3 as a long table, without its average."""
    rows = table.golden("table3").query("prompt != 'Average'")
    return rows.melt("prompt", var_name="method", value_name="value")


def with_intervals():
    return paper().assign(low=lambda t: t["value"] - 0.02, high=lambda t: t["value"] + 0.02, n=100)


def test_golden_table_3_is_the_papers_and_its_average_is_the_mean():
    golden = table.golden("table3").set_index("prompt")
    assert golden.loc["Sunset beach"].tolist() == [0.396, 0.271, 0.373]
    # half a unit of the third decimal, for the printed average is rounded
    np.testing.assert_allclose(golden.drop("Average").mean(), golden.loc["Average"], atol=5.0001e-4)
    with pytest.raises(ValueError, match=r"'table9' is not a golden table; there are .*'table3'"):
        table.golden("table9")


def test_golden_table_4_is_the_papers():
    golden = table.golden("table4").set_index("method")
    assert golden.loc["hybrid"].tolist() == [4, 10.79, 26.13, 32.12, 0.64]
    assert golden.loc["skip"].tolist() == [3, 10.12, 24.69, 31.71, 0.53]
    assert golden.attrs["units"] == {"seconds": "s"}


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4),
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), min_size=1, max_size=4),
)
def test_save_and_load_keep_every_digit_and_word(tmp_path_factory, values, prompts):
    n = min(len(values), len(prompts))
    prompts = [f"a {prompt}" for prompt in prompts]  # a prompt "12" is a number to any CSV reader
    written = pd.DataFrame({"prompt": prompts[:n], "value": values[:n], "n": range(n)})
    path = table.save(written, tmp_path_factory.mktemp("t") / "t.csv", units={"value": "s"})
    found = table.load(path)
    assert found["prompt"].tolist() == prompts[:n]
    assert found["value"].tolist() == values[:n]
    assert found.attrs["units"] == {"value": "s"}


def test_save_marks_units_and_keeps_gaps(tmp_path):
    written = pd.DataFrame({"prompt": ["NA", "null"], "value": [0.1, np.nan]})
    path = table.save(written, tmp_path / "deep" / "t.csv", units={"value": UNIT})
    assert path.read_text().splitlines()[0] == "prompt,value [1 - cosine]"
    pd.testing.assert_frame_equal(table.load(path), written, check_dtype=False)


@pytest.mark.parametrize(
    ("frame", "units", "message"),
    [
        ({"value": [0.1]}, {}, r"\['value'\] hold floats and have no unit"),
        ({"value": [0.1]}, {"value": "s", "low": "s"}, r"units name \['low'\]"),
        ({"value": [0.1]}, {"value": "s]"}, "bracket"),
        ({"x [m]": [1]}, {}, "bracket"),
    ],
)
def test_save_refuses(tmp_path, frame, units, message):
    with pytest.raises(ValueError, match=message):
        table.save(pd.DataFrame(frame), tmp_path / "t.csv", units=units)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = table.save(paper(), tmp_path / "t.csv", units={"value": UNIT})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*t\.csv'"):
        table.save(paper().head(1), path, units={"value": UNIT})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_wide_keeps_the_order_and_undoes_the_long_form():
    shuffled = paper().iloc[::-1]
    assert table.wide(shuffled).index[0] == "Van Gogh art"
    golden = table.golden("table3").set_index("prompt").drop("Average")
    pd.testing.assert_frame_equal(table.wide(paper()), golden, check_names=False, check_column_type=False)


def test_wide_refuses_what_is_twice_or_missing():
    with pytest.raises(ValueError, match=r"twice: \[\['Sunset beach', 'base'\]\]"):
        table.wide(pd.concat([paper(), paper().head(1)]))
    with pytest.raises(ValueError, match=r"missing: \[\('Sunset beach', 'base'\)\]"):
        table.wide(paper().drop(index=0))


def test_average_is_the_papers_and_comes_with_students_interval():
    averaged = table.add_average(with_intervals(), interval=mean_interval)
    rows = averaged[averaged["prompt"] == "Average"].set_index("method")
    assert rows["value"].round(3).to_dict() == {"base": 0.337, "distilled": 0.264, "hybrid": 0.350}
    expected = mean_interval(paper().query("method == 'hybrid'")["value"])
    assert (rows.loc["hybrid", "low"], rows.loc["hybrid", "high"]) == pytest.approx((expected.low, expected.high))
    assert rows["n"].tolist() == [5, 5, 5]
    assert averaged["n"].dtype == int
    with pytest.raises(ValueError, match="already has"):
        table.add_average(averaged, interval=mean_interval)


def test_best_is_what_the_paper_printed_bold_and_ties_share_it():
    averaged = table.wide(table.add_average(paper(), interval=mean_interval))
    bold = table.best(averaged)
    assert bold.idxmax(axis=1).tolist() == ["base", "hybrid", "hybrid", "base", "hybrid", "hybrid"]
    assert bold.to_numpy().sum() == 6
    tie = table.best(pd.DataFrame({"base": [0.3001], "hybrid": [0.3002]}))
    assert tie.loc[0].tolist() == [True, True]
    assert table.best(pd.DataFrame({"base": [0.3001], "hybrid": [0.3002]}), digits=4).loc[0].tolist() == [False, True]


def test_latex_of_the_papers_table():
    lines = table.latex(table.add_average(paper(), interval=mean_interval)).splitlines()
    lines_without = table.latex(paper()).splitlines()
    assert "Cute puppy & 0.233 & 0.199 & \\textbf{0.265} \\\\" in lines_without
    assert lines_without.count("\\midrule") == 1
    assert lines[-4] == "\\midrule"
    assert (
        lines[-3].startswith("Average & 0.337 {\\scriptsize$\\pm$0.13") and "\\textbf{0.350} {\\scriptsize" in lines[-3]
    )


def test_latex_escapes_what_a_prompt_may_hold():
    row = pd.DataFrame({"prompt": [r"50% & #1_{a}\~^"], "method": ["base"], "value": [1.0]})
    escaped = r"50\% \& \#1\_\{a\}\textbackslash{}\textasciitilde{}\textasciicircum{} & \textbf{1.000} \\"
    assert escaped in table.latex(row)


def test_show_bolds_the_best_and_prints_half_intervals():
    html = table.show(with_intervals().query("prompt == 'Person'")).to_html()
    assert html.count("font-weight: bold") == 1
    for text in ("0.484 ± 0.020", "0.347 ± 0.020", "0.461 ± 0.020"):
        assert text in html
