"""Head scores on their way from the engine's thread to whoever asked: as bytes, since writing a number as text takes
the thread that steps the engine longer than computing it took the GPU.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

Heads = dict[str, list[list[float]]]
"""By score, a row of heads for each layer; empty where a layer cannot be scored."""


def pack(scores: Mapping[str, NDArray[float64]], counts: Sequence[int]) -> dict[str, Any]:
    """What `unpack` makes `Heads` of.

    Args:
        scores: By name, `[scored layers, most heads]`.
        counts: Heads of each layer, 0 where it cannot be scored.
    """
    packed = {name: base64.b64encode(values.tobytes()).decode() for name, values in scores.items()}
    most = next(iter(scores.values())).shape[1] if scores else 0
    return {"packed": packed, "counts": list(counts), "most": most}


def unpack(heads: Mapping[str, Any]) -> Heads:
    """Head scores as lists; those of a stored record are lists already."""
    if "packed" not in heads:
        return dict(heads)
    found = {}
    for name, packed in heads["packed"].items():
        values, start, rows = array("d", base64.b64decode(packed)), 0, []
        for count in heads["counts"]:
            rows.append(values[start : start + count].tolist())
            start += heads["most"] if count else 0
        found[name] = rows
    return found
