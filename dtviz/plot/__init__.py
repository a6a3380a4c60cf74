"""Figures from tables and arrays: `plot_*(data, *, ax=None) -> Axes`.

    with style():
        ax = plot_similarity_to_final(table, embedder="DreamSim")
        caption(ax.figure, "emoji-dmd, guidance 3, 100 seeds")
        ax.figure.savefig("fig5.pdf")

Without `ax`, a function makes a figure of a suitable size. Nothing here computes a statistic: intervals come in the
table. `limits` are the lowest and highest possible value of a measure, such as (0, inf). Intervals end there.
"""

from .curves import plot_accuracy_by_step as plot_accuracy_by_step
from .curves import plot_effects as plot_effects
from .curves import plot_plane as plot_plane
from .curves import plot_posteriors as plot_posteriors
from .curves import plot_rates as plot_rates
from .curves import plot_similarity_to_final as plot_similarity_to_final
from .curves import plot_sweep as plot_sweep
from .images import plot_case as plot_case
from .images import plot_image_grid as plot_image_grid
from .images import plot_x0 as plot_x0
from .style import COLOURS as COLOURS
from .style import caption as caption
from .style import style as style
from .tables import plot_diversity_dots as plot_diversity_dots
from .tables import plot_diversity_table as plot_diversity_table
from .tables import plot_table as plot_table
