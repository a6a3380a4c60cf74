"""dtviz.plot.control: what is drawn is what the table holds."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dtviz.plot.control import plot_effects
from dtviz.plot.look import style


def test_effects_are_drawn_where_they_are():
    rows = [("both", "smile", 2.0, 1.0, 3.0), ("both", "age", -1.0, -np.inf, 0.5), ("base", "smile", 0.5, 0.0, np.inf)]
    with style():
        ax = plot_effects(pd.DataFrame(rows, columns=["row", "series", "value", "low", "high"]), x_label="score")
    smile, age = (line for line in ax.lines if line.get_label() in ("smile", "age"))
    assert smile.get_xdata().tolist() == [2.0, 0.5]
    np.testing.assert_allclose(smile.get_ydata(), [-0.28, 0.72])
    np.testing.assert_allclose(age.get_ydata(), [0.28])
    bars = [path.vertices[:, 0].tolist() for collection in ax.collections for path in collection.get_paths()]
    assert bars == [[1.0, 3.0], [0.0, 3.0], [0.0, 0.5]]  # what is infinite goes to the edge of what is not
    assert [label.get_text() for label in ax.get_yticklabels()] == ["both", "base"]
    assert ax.get_ylim() == (1.5, -0.5)
    plt.close(ax.figure)
