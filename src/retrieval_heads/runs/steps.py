"""What every head did at each step of an answer, on its way from the engine and in a record: as bytes.

Imports no numpy until arrays are wanted.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_heads.errors import ResultsError
from retrieval_heads.plain import Plain

if TYPE_CHECKING:
    from numpy import float32, int16
    from numpy.typing import NDArray

_LEVEL = 1
"""Of compression: the thread that steps the engine does it."""


@dataclass(frozen=True, slots=True)
class Steps(Plain):
    """Two arrays `[steps, scored layers, most heads]` of an answer, each zlib in base64.

    Args:
        shape: Theirs; a step for each token of the answer, its end among them.
        copied: Little-endian int16: which of the needle's tokens, counted from 1, a head's argmax lay on while the
            model emitted that very token; 0 where it lay on none. Of several needles, their tokens one after the other.
        mass: Little-endian float32: its attention weight on the needle; NaN beyond a layer's heads.
        answer: The text of each of the answer's tokens; empty in records of before.
        needle: That of the needle's.
    """

    shape: tuple[int, int, int]
    copied: str
    mass: str
    answer: tuple[str, ...] = ()
    needle: tuple[str, ...] = ()

    @classmethod
    def of(cls, copied: NDArray[int16], mass: NDArray[float32]) -> Steps:
        """Pack the arrays."""
        steps, layers, heads = copied.shape
        return cls((steps, layers, heads), _packed(copied.astype("<i2")), _packed(mass.astype("<f4")))

    def arrays(self) -> tuple[NDArray[int16], NDArray[float32]]:
        """`copied` and `mass`.

        Raises:
            ResultsError: A file holds something else in their place.
        """
        import numpy as np

        try:
            copied, mass = (
                np.frombuffer(_unpacked(packed, size * math.prod(self.shape)), kind).reshape(self.shape)
                for packed, kind, size in ((self.copied, "<i2", 2), (self.mass, "<f4", 4))
            )
        except (ValueError, zlib.error):
            raise ResultsError(f"steps: two arrays of {list(self.shape)} figures are expected, packed") from None
        return copied, mass


def _packed(array: NDArray[int16] | NDArray[float32]) -> str:
    return base64.b64encode(zlib.compress(array.tobytes(), _LEVEL)).decode()


def _unpacked(packed: str, size: int) -> bytes:
    """So many bytes, and one more where there are more: a file may hold anything."""
    return zlib.decompressobj().decompress(base64.b64decode(packed, validate=True), size + 1)
