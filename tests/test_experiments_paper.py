"""The paper's profiles, prompts and printed numbers, and ours beside them."""

import numpy as np
import pandas as pd
import pytest

from dtviz.core.generate import METHODS as GENERATE_METHODS
from dtviz.experiments import paper
from dtviz.experiments.paper import beside_paper, printed, seeds_of
from dtviz.models import drawings


def test_the_printed_tables_are_the_papers():
    table3 = printed("table3").set_index("prompt")
    assert table3.loc["Sunset beach"].tolist() == [0.396, 0.271, 0.373]
    # half a unit of the third decimal, for the printed average is rounded
    np.testing.assert_allclose(table3.drop("Average").mean(), table3.loc["Average"], atol=5.0001e-4)
    table1 = printed("table1").set_index(["method", "concept"])
    assert table1.loc[("Concept Sliders", "muscular")].tolist() == [34.6, 26.7, 33.8, 39.0, 33.2]
    table2 = printed("table2").melt("method", var_name="quantity").dropna()  # only two times are known
    assert table2.values.tolist() == [["base", "seconds", 9.22], ["hybrid", "seconds", 0.64]]
    table4 = printed("table4").set_index("method")
    assert table4.loc["hybrid"].tolist() == [4, 10.79, 26.13, 32.12, 0.64]
    with pytest.raises(FileNotFoundError, match="table9"):
        printed("table9")


def test_the_paper_beside_itself():
    table = printed("table3").melt("prompt", var_name="method")
    assert len(table) == 6 * 3
    ours = table.assign(low=table["value"] - 0.01, high=table["value"] + 0.01)
    ours["prompt"] = ours["prompt"].str.upper()  # matched in any case, and returned as the paper has it
    both = beside_paper(ours.sample(frac=1, random_state=0), table)
    assert both["prompt"].tolist() == table["prompt"].tolist()
    assert (both["difference"] == 0).all() and (both["ratio"] == 1).all() and both["within"].all()
    assert not beside_paper(ours.assign(low=ours["value"] + 0.1), table)["within"].any()


def test_only_what_both_have_is_compared():
    table = printed("table3").melt("prompt", var_name="method")
    prompts, methods = ["dog face", "Average", "Average"], ["base", "base", "hybrid σ"]
    ours = pd.DataFrame({"prompt": prompts, "method": methods, "value": 0.5})
    both = beside_paper(ours, table)
    assert both[["prompt", "method"]].values.tolist() == [["Average", "base"]]
    assert both["difference"].item() == pytest.approx(0.5 - 0.337)
    assert "within" not in both
    assert beside_paper(ours.iloc[:1], table).empty
    with pytest.raises(ValueError, match="not unique in right dataset"):
        beside_paper(pd.concat([ours, ours]), table)


def test_seeds_of_a_profile():
    assert seeds_of("quick", 0, quick=3, full=5) == range(3)
    assert seeds_of("paper", 0, quick=3, full=5) == range(100)
    assert seeds_of("full", 4, quick=3, full=5) == range(4)
    with pytest.raises(ValueError, match="profile='ful' is not one of quick, full, paper"):
        seeds_of("ful", 0, quick=1, full=2)
    with pytest.raises(ValueError, match="n_seeds=1 must be at least 2"):
        seeds_of("full", 1, quick=3, full=5, least=2)


def test_methods_and_prompts_are_known():
    assert {method for method, _ in paper.METHODS.values()} == set(GENERATE_METHODS)
    real = drawings.load()
    assert len(paper.EMOJI_PROMPTS) == len(set(paper.EMOJI_PROMPTS)) >= 30
    for prompt in paper.EMOJI_PROMPTS:
        assert len(set(real.of(prompt).artists)) >= 5, prompt
