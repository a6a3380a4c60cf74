"""Figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`. Without `ax` a figure of suitable size is made.

with style():
    ax = plot_similarity_to_final(table)

Nothing here computes a statistic. Intervals come in the table and end at `limits`, the lowest and highest possible value.
"""

from .curves import plot_effects as plot_effects
from .curves import plot_plane as plot_plane
from .curves import plot_similarity_to_final as plot_similarity_to_final
from .curves import plot_sweep as plot_sweep
from .images import plot_case as plot_case
from .images import plot_image_grid as plot_image_grid
from .style import COLOURS as COLOURS
from .style import WIDTH as WIDTH
from .style import caption as caption
from .style import style as style
from .tables import plot_diversity_dots as plot_diversity_dots
from .tables import plot_diversity_table as plot_diversity_table
from .tables import plot_table as plot_table
