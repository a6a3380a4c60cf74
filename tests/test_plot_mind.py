"""dtviz.plot.mind by what the axes hold: images, boxes, captions, lines and their values."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dtviz.plot import mind as plot_mind

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_box_stands_where_it_was_found():
    image = np.zeros((3, 8, 16))
    ax = plot_mind.plot_plan(image, box=(1, 2, 5, 14), caption="step 3")
    [patch] = ax.patches
    assert (patch.get_y(), patch.get_x(), patch.get_height(), patch.get_width()) == (1, 2, 4, 12)
    assert ax.get_xlabel() == "step 3"
    assert list(ax.images[0].get_extent()) == [0, 16, 8, 0]  # in pixels, the first row on top, as the box is
    assert not plot_mind.plot_plan(image).patches
    with pytest.raises(ValueError, match="must be \\(3, height, width\\)"):
        plot_mind.plot_plan(image[0])


def test_a_case_shows_the_lost_concepts_posterior_under_every_plan():
    curves = {"cat": [0.1, 0.5, 0.97, 1.0, 0.02], "pig": [0.9, 0.5, 0.03, 0.0, 0.98]}
    axes = plt.subplots(1, 6)[1]
    found = plot_mind.plot_case(
        np.zeros((3, 3, 8, 8)), np.ones((3, 8, 8)), steps=[0, 2, 3], at=2, box=(0, 0, 4, 4), curves=curves, shown=0.9,
        label="cat and pig", axes=axes,
    )  # fmt: skip
    assert [ax.get_xlabel() for ax in found[:5]] == [
        "step 1\n.10",
        "step 3\n.97",
        "step 4\n1.00",
        "",
        "final image\n.02",
    ]
    assert [len(ax.patches) for ax in found[:5]] == [0, 1, 0, 0, 0]
    assert [len(ax.images) for ax in found[:5]] == [1, 1, 1, 0, 1]  # one place to spare
    assert found[0].get_ylabel() == "cat and pig"
    names = found[5].get_legend_handles_labels()[1]
    assert names == ["cat", "pig"]
    first, end = found[5].lines[:2]
    np.testing.assert_array_equal(first.get_xydata(), [[1, 0.1], [2, 0.5], [3, 0.97], [4, 1.0]])
    np.testing.assert_array_equal(end.get_xydata(), [[5, 0.02]])
    assert found[5].lines[-1].get_xdata()[0] == 3  # step index 2 is the third


def test_rates_are_percentages_with_their_intervals():
    rows = [
        ["base", "asked for", 0.1, -0.05, 0.25],
        ["student", "asked for", 0.0, 0.0, 0.0],
        ["base", "other", 0.02, 0.01, 0.03],
    ]
    ax = plot_mind.plot_rates(pd.DataFrame(rows, columns=["model", "condition", "value", "low", "high"]))
    [asked, other] = ax.containers
    np.testing.assert_allclose(asked.lines[0].get_xdata(orig=False), [10, 0])
    [bars] = asked.lines[2]
    np.testing.assert_allclose([path.vertices[:, 0] for path in bars.get_paths()], [[-5, 25], [0, 0]])
    np.testing.assert_allclose(other.lines[0].get_xdata(orig=False), [2])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "student"]


def test_the_judges_curves():
    table = pd.DataFrame(
        {"judge": ["plans"] * 2 + ["clean"] * 2, "step": [1, 2, 1, 2], "accuracy": [0.5, 0.9, 0.0, 0.2]}
    )
    lines = plot_mind.plot_judge(table).lines
    assert [line.get_label() for line in lines] == ["plans", "clean"]
    np.testing.assert_array_equal(lines[1].get_ydata(), [0.0, 0.2])
