"""DuoAttention's pattern (arXiv 2410.10819): a folder with `full_attention_heads.tsv` and `config.json`.

A row a layer and a column a KV head, 1 for a head that keeps the whole cache. Its loader (mit-han-lab/duo-attention,
`duo_attn/utils.py`) clips to [0, 1], adds noise of up to 1e-6 and cuts at a quantile, so that what ties is cut by
chance: tied heads are written apart here, in a stated order. Of `config.json` it reads `sink_size` and `recent_size`.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from retrieval_heads.errors import UnreadableFile
from retrieval_heads.heads.formats.figures import Nonsense, named_score
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Source, Wanted
from retrieval_heads.heads.formats.rectangle import nested, rows_of
from retrieval_heads.heads.groups import by_kv_head
from retrieval_heads.heads.order import Order, order_of
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.reading import read_object
from retrieval_heads.runs.layers import MOST, Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_APART: Final = 2e-6
"""Between heads that tie: twice the loader's noise."""
_CONFIG: Final = "config.json"
_OURS: Final = "retrieval_heads"
"""What is ours in `config.json`, which the loader passes over."""
_HASH: Final = "gates_sha256"
"""Of the text of the gates: scores beside changed gates, or another file's, are not theirs."""


class Duo(HeadFormat):
    """The folder that DuoAttention's loader and kvpress' `DuoAttentionPress` read."""

    name = "duo"
    file = "full_attention_heads.tsv"
    score: str | None = "duo"
    is_folder = True
    kv_heads = True
    binary = True

    def table(self, source: Source) -> HeadTable:
        """Every KV head's gate; of a folder of ours the scores that it was made of."""
        ours = _config_of(source.path).get(_OURS)
        if isinstance(ours, dict):
            if ours.get(_HASH) != _hash(source.text):
                raise Nonsense(
                    f"its gates are not those that the scores in its {_CONFIG} were written with; to read the gates, "
                    f"take {_OURS!r} out of it"
                )
            return gate_table(ours["scores"], str(ours["score"]))
        lines = [line for line in source.text.split("\n") if line.strip() and not line.startswith("#")]
        return gate_table([[float(value) for value in line.split("\t")] for line in lines], str(self.score))

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The greatest score of each KV head's query heads; 1 for one that was not scored, which keeps its cache."""
        import numpy as np

        table = heads.table if heads.kv_heads else by_kv_head(heads.table, wanted.known_kv_heads)
        order = order_of(table, wanted.score)
        scores, missing = rows_of(table, wanted.score)
        gates, notes = _gates(scores, order)
        text = io.StringIO()
        np.savetxt(text, gates, delimiter="\t")
        config = {
            "sink_size": wanted.sink,
            "recent_size": wanted.recent,
            _OURS: {
                "score": wanted.score,
                "model": table.facts.get("model"),
                **order.to_json(),
                _HASH: _hash(text.getvalue()),
                "scores": nested(scores),
            },
        }
        files = {self.file: text.getvalue().encode(), _CONFIG: (json.dumps(config, indent=2) + "\n").encode()}
        unscored = int(np.isnan(scores).sum())
        kept = [f"{unscored} KV heads without a score are written as 1: they keep their cache"] if unscored else []
        return Output(files, (order.note, *notes, *missing, *kept))


FORMAT = Duo()


def _gates(scores: NDArray[Any], order: Order) -> tuple[NDArray[Any], list[str]]:
    """Scores as gates in [0, 1], those that tie apart, in the order given."""
    import numpy as np

    notes = []
    if below := int((scores < 0).sum()):
        notes.append(f"{below} scores below 0 are written as 0")
    gates, last = np.ones_like(scores), -_APART
    for head in reversed(order.heads):
        last = max(float(scores[head]), 0.0, last + _APART)
        gates[head] = last
    if last > 1:
        notes.append(f"gates are the scores divided by {last:.7g}, since the loader clips at 1")
        gates = np.where(np.isnan(scores), 1.0, gates / last)
    if order.ties_from is not None:
        notes.append(f"tied KV heads are written {_APART:g} apart, since the loader would cut them by chance")
    return gates, notes


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def gate_table(rows: Any, score: str) -> HeadTable:
    """A table of rows of KV heads, one for each layer from 0 on; null is a KV head without a score.

    Raises:
        ValueError: They are no rectangle of scores.
    """
    import numpy as np

    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise Nonsense("a row of gates for each layer is expected")
    width = len(rows[0])
    if any(len(row) != width for row in rows) or width > MOST or len(rows) > MOST:
        raise Nonsense(f"as many gates in every row are expected, the first has {width}")
    mean = np.array(
        [
            [
                np.nan if value is None else named_score(value, f"{score} of KV head {layer}-{head}", score)
                for head, value in enumerate(row)
            ]
            for layer, row in enumerate(rows)
        ]
    )
    unknown = np.full(mean.shape, np.nan)
    layers = tuple(Layer("", number, 0 if np.isnan(row).all() else width) for number, row in enumerate(mean))
    return HeadTable("", layers, {score: Estimate(mean, unknown, unknown)})


def _config_of(path: Path) -> dict[str, Any]:
    config = path.with_name(_CONFIG)
    try:
        return read_object(config) if config.is_file() else {}
    except UnreadableFile as error:
        raise Nonsense(f"its {_CONFIG} cannot be read ({error})") from None
