"""QRHead's files (arXiv 2506.09944): `[["layer-head", score], ...]`, best first, and the YAML that names the best.

Its detection writes the first (princeton-pli/QRHead, `exp_scripts/detection`); its retriever reads the heads' names
from the second (`attn_head_set: "layer-head,layer-head"`), beside the model's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import yaml

from retrieval_heads.heads.formats.figures import named_heads, scored_heads, table_of
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Source, Wanted
from retrieval_heads.heads.order import Order, order_of
from retrieval_heads.heads.table import Head, HeadTable


class QrHead(HeadFormat):
    """The list of heads, and the retriever's config beside it."""

    name = "qrhead"
    file = "qrhead.json"
    score: str | None = "qr"

    def recognises(self, source: Source) -> bool:
        """A list of pairs."""
        return isinstance(source.json, list) and bool(source.json) and all(map(_is_pair, source.json))

    def table(self, source: Source) -> HeadTable:
        """Every head's score."""
        return table_of(_heads_in(source.json), str(self.score))

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The list of all heads with a score, and a config with the best."""
        order, means = order_of(heads.table, wanted.score), dict(scored_heads(heads.table, wanted.score))
        pairs = [[f"{layer}-{head}", means[layer, head]] for layer, head in order.heads]
        best = order.heads[: wanted.top]
        config = PurePath(wanted.name or self.file).with_suffix(".yaml").name
        idle = sum(means[head] <= 0 for head in best)
        notes = [order.note, *([f"{idle} of the {len(best)} heads in {config} have no score above 0"] if idle else [])]
        files = {
            self.file: (json.dumps(pairs, indent=4) + "\n").encode(),
            config: _config(best, order, heads.table, wanted).encode(),
        }
        return Output(files, tuple(notes))


FORMAT = QrHead()


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _heads_in(data: list[Any]) -> Iterator[tuple[Head, Any]]:
    for head, score in named_heads(data):
        if isinstance(score, list):
            raise ValueError(score)
        yield head, score


def _config(best: tuple[Head, ...], order: Order, table: HeadTable, wanted: Wanted) -> str:
    model = str(table.facts.get("model") or "")
    content = {
        "attn_head_set": ",".join(f"{layer}-{head}" for layer, head in best),
        "model_base_class": PurePath(model).name,
        "model_name_or_path": model,
    }
    told = f"# The {len(best)} best heads by {wanted.score}; {order.note}.\n"
    return told + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1 << 20)
