"""Names and colours of runs that are drawn over each other."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_heads.errors import ConfigError


def check_looks(labels: Sequence[str] | None, colours: Sequence[str] | None, results: int, lines: int) -> None:
    """See that what was given fits.

    Args:
        labels: A name for each results file or folder.
        colours: A colour for each line.
        results: How many of the former there are.
        lines: How many of the latter are drawn.

    Raises:
        ConfigError: There are more or fewer, a name is given twice, or a colour is none.
    """
    from matplotlib.colors import is_color_like

    if labels is not None and len(labels) != results:
        raise ConfigError(f"--labels: {len(labels)} are given for {results} results")
    if colours is not None and len(colours) != lines:
        told = f"{results} results" if lines == results else f"{lines} lines"
        raise ConfigError(f"--colors: {len(colours)} are given for {told}")
    if labels is not None and len(set(labels)) < len(labels):
        raise ConfigError("--labels: a name is given twice")
    for colour in colours or ():
        if not is_color_like(colour):
            raise ConfigError(f"--colors {colour!r}: a colour is expected, such as red or '#1f77b4'")
