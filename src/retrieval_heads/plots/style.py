"""Colours and type of the pictures: a style file and colour maps of our own (`retrieval_heads.colours`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib import style as mpl_style
from matplotlib.colors import LinearSegmentedColormap

from retrieval_heads import colours
from retrieval_heads.runs.place import axis_label

STYLE_FILE = Path(__file__).with_name("retrieval_heads.mplstyle")

SCORES = LinearSegmentedColormap.from_list("rh_scores", colours.SCORES)
HEADS = LinearSegmentedColormap.from_list("rh_heads", colours.HEADS)
DIFFERENCES = LinearSegmentedColormap.from_list("rh_differences", colours.DIFFERENCES)

INK = "#1f2430"
FAINT = "#6b7280"
PAPER = "#ffffff"
# Lines of several runs differ in hue and luminance, in marker and in dash. The three counts have no common
# divisor, so 210 runs pass before two look alike.
_COLOURS = ("#1e4b8d", "#d9631e", "#2a9d8f", "#9b2844", "#7a8794", "#c9971c")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 2)))

MIN_TEXT = 7.0
"""Points: the smallest text in any picture."""

# Tried in this order where the machine has them, for titles and needles in scripts that DejaVu Sans lacks.
_FALLBACK_FONTS = [
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Devanagari",
    "Noto Sans Bengali",
    "Noto Sans Tamil",
    "Noto Sans Thai",
    "Noto Sans Ethiopic",
]


@contextmanager
def styled() -> Iterator[None]:
    """Our style, whatever matplotlibrc or style the process had; also a decorator, as `@styled()`."""
    with mpl_style.context(STYLE_FILE, after_reset=True), warnings.catch_warnings():
        # A missing glyph is a box in the PNG and drawn by the reader's font in the SVG: nothing to do.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font")
        installed = {entry.name for entry in font_manager.fontManager.ttflist}
        mpl.rcParams["font.family"] = [
            "sans-serif",
            *(name for name in _FALLBACK_FONTS if name in installed),
        ]
        yield


def printable(text: str) -> str:
    """The text on one line without control, direction and surrogate characters, which break SVG files."""
    return " ".join("".join(ch if ch.isprintable() else " " for ch in text).split())


def shorten(text: str, characters: int) -> str:
    """At most that many characters, the cut marked with an ellipsis."""
    text = printable(text)
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def counted(count: int, noun: str) -> str:
    """A count with its noun, which takes an s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def line_look(index: int, colours: Sequence[str] = ()) -> dict[str, Any]:
    """Colour, marker and dash of the run of that index; the colour is one of `colours` where there are any."""
    return {
        "color": colours[index] if colours else _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def axis_title(axis: str) -> str:
    """An axis of a task as a picture names it: `Context length (tokens)`."""
    text = axis_label(axis)
    return text[:1].upper() + text[1:]
