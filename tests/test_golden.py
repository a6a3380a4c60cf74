"""Ours beside the paper's printed numbers, and the printed numbers themselves."""

import numpy as np
import pandas as pd
import pytest

from dtviz import golden
from dtviz import table as tables


def test_the_paper_beside_itself():
    printed = golden.long(tables.golden("table3"), rows="prompt")
    assert len(printed) == 6 * 3
    ours = printed.assign(low=printed["value"] - 0.01, high=printed["value"] + 0.01)
    ours["prompt"] = ours["prompt"].str.upper()  # matched whatever the case, told as the paper has it
    found = golden.beside(ours.sample(frac=1, random_state=0), printed)
    assert found["prompt"].tolist() == printed["prompt"].tolist()
    assert (found["difference"] == 0).all()
    assert (found["ratio"] == 1).all()
    assert found["within"].all()
    far = golden.beside(ours.assign(value=ours["value"] + 1, low=ours["low"] + 1, high=ours["high"] + 1), printed)
    np.testing.assert_allclose(far["difference"], 1)
    assert not far["within"].any()


def test_only_what_both_have_is_compared():
    printed = golden.long(tables.golden("table3"), rows="prompt")
    ours = pd.DataFrame(
        {"prompt": ["dog face", "Average", "Average"], "method": ["base", "base", "hybrid σ"], "value": 0.5}
    )
    found = golden.beside(ours, printed)
    assert found[["prompt", "method"]].values.tolist() == [["Average", "base"]]
    assert found["difference"].item() == pytest.approx(0.5 - 0.337)
    assert "within" not in found
    assert golden.beside(ours.iloc[:1], printed).empty
    with pytest.raises(ValueError, match=r"ours has \[\['dog face', 'base'\], \['dog face', 'base'\]\] twice|twice"):
        golden.beside(pd.concat([ours, ours]), printed)


def test_table_1_is_the_papers():
    printed = tables.golden("table1").set_index(["method", "concept"])
    assert printed.loc[("Concept Sliders", "muscular")].tolist() == [34.6, 26.7, 33.8, 39.0, 33.2]
    assert printed.loc[("Customization", "crayon")].tolist() == [32.7, 27.8, 24.7, 29.5, 32.5]


def test_of_table_2_only_two_times_are_known():
    printed = golden.long(tables.golden("table2"), rows="method", name="quantity")
    assert printed.values.tolist() == [["base", "seconds", 9.22], ["hybrid", "seconds", 0.64]]
