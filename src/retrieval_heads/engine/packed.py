"""Head scores on their way from the engine's thread to whoever asked: as bytes, since writing a number as text takes
the thread that steps the engine longer than computing it took the GPU.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_heads.plain import Plain
from retrieval_heads.runs.record import HeadScores

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PackedHeads(Plain):
    """Head scores as bytes.

    Args:
        packed: By score, the 64 bit floats `[scored layers, most heads]` in base64.
        counts: Heads of each layer, 0 where it cannot be scored.
        most: Heads of the longest layer.
    """

    packed: Mapping[str, str]
    counts: tuple[int, ...]
    most: int

    @classmethod
    def of(cls, scores: Mapping[str, NDArray[float64]], counts: Sequence[int]) -> PackedHeads:
        """Pack scores.

        Args:
            scores: By name, `[scored layers, most heads]`; NaN in all heads of a layer that has no such score.
            counts: Heads of each layer, 0 where it cannot be scored.
        """
        packed = {name: base64.b64encode(values.tobytes()).decode() for name, values in scores.items()}
        return cls(packed, tuple(counts), next(iter(scores.values())).shape[1] if scores else 0)

    def lists(self) -> HeadScores:
        """As records hold them: by score, a row of heads for each layer, empty where a layer has no such score."""
        found = {}
        for name, packed in self.packed.items():
            values, start, rows = array("d", base64.b64decode(packed)), 0, []
            for count in self.counts:
                row = values[start : start + count].tolist()
                rows.append([] if all(map(math.isnan, row)) else row)
                start += self.most if count else 0
            found[name] = rows
        return found
