"""Writing a figure as PNG and SVG, whole files or none."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.plots.style import styled
from retrieval_heads.runs.signature import NAME

FORMATS = ("png", "svg")


@styled()
def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as `path` with the endings `.png` and `.svg`.

    Args:
        figure: What a `*_figure` function built.
        path: With or without one of the two endings; missing folders are made.

    Returns:
        The two paths written.

    Raises:
        ResultsError: The folder cannot be written.
    """
    # Both are rendered before either is written, so that a failure leaves no lone file.
    pictures = {target: _render(figure, form) for target, form in zip(picture_files(path), FORMATS, strict=True)}
    for target, content in pictures.items():
        try:
            write_whole(target, content)
        except OSError as error:
            raise ResultsError(
                f"{target}: the picture cannot be written ({error.strerror or error}); choose another folder"
            ) from None
    return list(pictures)


def picture_files(path: Path) -> list[Path]:
    """The files that `save` writes, one of each of `FORMATS`."""
    # Only our own endings are cut: `heatmap-qwen2.5` has no suffix `.5`.
    stem = path.name[:-4] if path.suffix.lower() in {".png", ".svg"} else path.name
    return [path.with_name(f"{stem}.{form}") for form in FORMATS]


def _render(figure: Figure, form: str) -> bytes:
    buffer = BytesIO()
    # No date: the same numbers give the same bytes.
    metadata = {"Date": None, "Creator": NAME} if form == "svg" else {"Software": NAME}
    figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()
