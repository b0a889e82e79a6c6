"""Tables for pandas, which need not be installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retrieval_heads.errors import RetrievalHeadsError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame(rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> DataFrame:
    """Rows as a DataFrame.

    Args:
        rows: Each by column.
        columns: In that order; those of the rows where it is left out.

    Raises:
        RetrievalHeadsError: There is no pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise RetrievalHeadsError(
            f"to_pandas needs pandas ({error}): pip install pandas; without it, `rows` has the same as mappings"
        ) from None
    return pandas.DataFrame(list(rows), columns=None if columns is None else list(columns))
