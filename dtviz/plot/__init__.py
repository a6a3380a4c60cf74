"""Figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`. Without `ax` a figure of suitable size is made.

with style():
    ax = plot_similarity_to_final(table)

Nothing here computes a statistic. Intervals come in the table and end at `limits`, the lowest and highest possible value.
"""

from .curves import plot_effects, plot_plane, plot_similarity_to_final, plot_sweep
from .images import plot_case, plot_image_grid
from .style import COLOURS, WIDTH, caption, style
from .tables import plot_diversity_dots, plot_diversity_table, plot_table
