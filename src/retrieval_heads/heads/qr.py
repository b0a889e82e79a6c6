"""`qr`: query-focused retrieval heads (QRHead, arXiv 2506.09944; code in princeton-pli/QRHead, commit 7a668e7).

That code scores each document of a context by one head: the mean attention of the query's rows on each token, less the
same of the query "N/A"; tokens that are at most the document's mean less two standard deviations are left out; the rest
is added up. Here the needle is the one document that answers; of several that are asked for, each is one. (It goes
on to rank documents by each head, by nDCG@10; a haystack has no other documents to be ranked against.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from retrieval_heads.heads.looks import Rows, Seen, Weigh
from retrieval_heads.heads.replays import ANSWERED, OtherQuery
from retrieval_heads.heads.score import HeadScore

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray
    from torch import Tensor

BLANK: Final = OtherQuery("N/A")
"""The query that the calibration asks."""

DEVIATIONS: Final = 2.0
"""So many standard deviations below the mean a token is left out."""


class QR(HeadScore):
    """Calibrated attention weight from the query's tokens to the needle, without abnormally low tokens."""

    name = "qr"
    definition = (
        "attention weight from the rows behind the context (instruction, question, template) to each needle token, "
        "mean over these rows, less the same with the question N/A; sum over those above the mean less 2 standard "
        "deviations (QRHead, arXiv 2506.09944, the needle as the one document)"
    )
    label = "qr (calibrated query to needle)"
    is_default = False
    is_signed = True
    replays = (ANSWERED, BLANK)

    def weighings(self, rows: Rows) -> Sequence[Weigh]:
        """The rows behind the context, at each token of the needles that are asked for.

        Nothing else of the context is needed: the calibration takes token from token, mean and deviation are those of a
        document's own tokens, and the sum is over these. No other document's tokens enter the needle's figure.
        """
        start, end = rows.query_span
        return [Weigh(rows.query_span, span) for span in rows.spans] if start < end else []

    def parts(self, rows: Rows) -> int:
        """One for each needle token."""
        return len(rows.needle)

    def figure(self, seen: Seen) -> Tensor:
        """The mean weight on each token, `[needle tokens, layers, requests, heads]`."""
        spans = [rows.query_span for rows in seen.requests]
        rows = seen.ints([[max(1, end - start)] for start, end in spans])
        return (seen.sums / rows[:, :, None]).movedim(2, 0)

    def combined(self, handed: Sequence[NDArray[float64]], rows: Rows) -> NDArray[float64]:
        """The rule for low tokens in each needle, and the sum."""
        import numpy as np

        asked, blank = handed
        ends = np.cumsum([end - start for start, end in rows.spans])
        documents = np.split(asked - blank, ends[:-1])
        total: NDArray[float64] = np.sum([kept(tokens).sum(0) for tokens in documents], axis=0)
        return total


def kept(calibrated: NDArray[float64]) -> NDArray[float64]:
    """A document's calibrated weights `[tokens, ...]`, 0 at those that its code leaves out.

    The deviation divides by one less than there are tokens, as `torch.std` does. Of a single token, whose deviation is
    not defined, nothing is left out, where the released code leaves it out for being no more than NaN.
    """
    if len(calibrated) < 2:
        return calibrated
    least = calibrated.mean(0) - DEVIATIONS * calibrated.std(0, ddof=1)
    kept: NDArray[float64] = calibrated * (calibrated > least)
    return kept


SCORE = QR()
