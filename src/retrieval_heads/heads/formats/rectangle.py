"""The rectangle that some formats are: a row for every layer of the model, as many heads in each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.table import HeadTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


def full_rows(table: HeadTable) -> tuple[range, int, list[str]]:
    """The numbers of all layers from 0 on, the heads of each, and what is said of layers that have no scores.

    Raises:
        ConfigError: Layers have different numbers of heads.
    """
    widths = {layer.heads for layer in table.layers if layer.heads}
    if len(widths) != 1:
        listed = ", ".join(map(str, sorted(widths)))
        raise ConfigError(f"the format has as many heads in every layer, and these layers have {listed or 'none'}")
    numbers = range(1 + max(layer.number for layer in table.layers))
    scored = {layer.number for layer in table.layers if layer.heads}
    missing = [str(number) for number in numbers if number not in scored]
    return numbers, widths.pop(), [f"layers without scores: {', '.join(missing)}"] if missing else []


def rows_of(table: HeadTable, score: str) -> tuple[NDArray[Any], list[str]]:
    """The means `[layers, heads]` by the layers' numbers, NaN where there is none; and what `full_rows` says.

    Raises:
        ConfigError: See `full_rows`.
    """
    import numpy as np

    numbers, width, missing = full_rows(table)
    rows = np.full((len(numbers), width), np.nan)
    for row, layer in enumerate(table.layers):
        if layer.heads:
            rows[layer.number] = table.estimates[score].mean[row, :width]
    return rows, missing


def nested(rows: NDArray[Any]) -> list[list[float | None]]:
    """Rows as JSON holds them, null for NaN."""
    return [[None if value != value else value for value in row] for row in rows.tolist()]
