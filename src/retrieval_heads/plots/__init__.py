"""Pictures of a run, each written as PNG and SVG from the numbers that are stored.

The only part of the library that imports matplotlib; it needs no display and leaves pyplot's state alone.
"""

from retrieval_heads.plots.ablation import ablation_curve
from retrieval_heads.plots.compression import compression_curve, kept_heads_map
from retrieval_heads.plots.curves import profiles, score_distribution
from retrieval_heads.plots.difference import difference_map
from retrieval_heads.plots.heads import agreement_heatmap, head_heatmap
from retrieval_heads.plots.niah import niah_heatmap
from retrieval_heads.plots.phonebook import phonebook_heatmap
from retrieval_heads.plots.tasks import program_heatmap, task_lines

__all__ = [
    "ablation_curve",
    "agreement_heatmap",
    "compression_curve",
    "difference_map",
    "head_heatmap",
    "kept_heads_map",
    "niah_heatmap",
    "phonebook_heatmap",
    "profiles",
    "program_heatmap",
    "score_distribution",
    "task_lines",
]
