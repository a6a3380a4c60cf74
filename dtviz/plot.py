"""The paper's figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`.

    with style():
        ax = plot_similarity_to_final(table, embedder="DreamSim")
        footer(ax.figure, "emoji-dmd, guidance 3, 100 seeds")
        ax.figure.savefig("fig5.pdf")

Without `ax` a figure of a fitting size is made. Nothing here computes a statistic: they come in the table.
The functions live in `plot_curves`, `plot_grid` and `plot_tables`; this is the name to reach them by.
"""

from .plot_curves import plot_plane as plot_plane
from .plot_curves import plot_similarity_to_final as plot_similarity_to_final
from .plot_curves import plot_sweep as plot_sweep
from .plot_grid import plot_image_grid as plot_image_grid
from .plot_style import COLOURS as COLOURS
from .plot_style import footer as footer
from .plot_style import style as style
from .plot_tables import plot_diversity_dots as plot_diversity_dots
from .plot_tables import plot_diversity_table as plot_diversity_table
from .plot_tables import plot_table as plot_table
