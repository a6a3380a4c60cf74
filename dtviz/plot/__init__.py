"""The paper's figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`.

    with style():
        ax = plot_similarity_to_final(table, embedder="DreamSim")
        footer(ax.figure, "emoji-dmd, guidance 3, 100 seeds")
        ax.figure.savefig("fig5.pdf")

Without `ax` a figure of a fitting size is made. Nothing here computes a statistic: they come in the table.
The functions live in `curves`, `grid` and `tables`; `plot.mind` and `plot.control` have those of single figures.
"""

from .curves import plot_plane as plot_plane
from .curves import plot_similarity_to_final as plot_similarity_to_final
from .curves import plot_sweep as plot_sweep
from .grid import plot_image_grid as plot_image_grid
from .look import COLOURS as COLOURS
from .look import footer as footer
from .look import style as style
from .tables import plot_diversity_dots as plot_diversity_dots
from .tables import plot_diversity_table as plot_diversity_table
from .tables import plot_table as plot_table
