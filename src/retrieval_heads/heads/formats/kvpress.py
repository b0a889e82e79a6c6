"""A press for NVIDIA's kvpress (0.5.5), as a Python file to import: its own presses read published patterns alone.

`DuoAttentionPress` asks for a pattern by the model's name from a list of six; the class that is written derives from it
and sets what that would: `streaming_mask`, `sink_size` and `recent_size`, from an order of KV heads without ties.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from retrieval_heads.heads.formats.duo import gate_table
from retrieval_heads.heads.formats.figures import Nonsense
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Source, Wanted
from retrieval_heads.heads.formats.rectangle import nested, rows_of
from retrieval_heads.heads.groups import by_kv_head
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import HeadTable

_MARK = "# Written by retrieval-heads for kvpress."

_TEMPLATE = '''{mark}
"""KV heads of {model} by {score}, the greatest of the query heads that share one.

Usage: press = RetrievalHeadsPress(head_compression_ratio=0.5), then as any press of kvpress.
{note}.
Heads without a score are never streaming. kvpress fills the whole cache first; streaming heads then see the first
{sink} tokens of the context and its last {recent}.
"""

import torch
from kvpress import DuoAttentionPress

SCORE = {score!r}
SCORES = {scores}  # [layer][KV head]
WORST_FIRST = {order}  # (layer, KV head): the first are streaming first


class RetrievalHeadsPress(DuoAttentionPress):
    def post_init_from_model(self, model):
        shape = (model.config.num_hidden_layers, model.config.num_key_value_heads)
        if shape != (len(SCORES), len(SCORES[0])):
            raise ValueError(f"scores of {{len(SCORES)}} layers × {{len(SCORES[0])}} KV heads; the model has {{shape}}")
        self.sink_size, self.recent_size = {sink}, {recent}
        self.streaming_mask = torch.zeros(shape, dtype=torch.bool, device=model.device)
        for layer, head in WORST_FIRST[: round(shape[0] * shape[1] * self.head_compression_ratio)]:
            self.streaming_mask[layer, head] = True
'''


class KvPress(HeadFormat):
    """A module with a press in it."""

    name = "kvpress"
    file = "retrieval_heads_press.py"
    score: str | None = "duo"
    kv_heads = True
    binary = True

    def recognises(self, source: Source) -> bool:
        """By its ending and its first line."""
        return source.path.suffix == ".py" and source.text.startswith(_MARK)

    def table(self, source: Source) -> HeadTable:
        """The scores in it; nothing of the file is run."""
        found = _assigned(source.text)
        if "SCORES" not in found or not isinstance(found.get("SCORE"), str):
            raise Nonsense("SCORE and SCORES are expected")
        return gate_table(found["SCORES"], found["SCORE"])

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The greatest score of each KV head's query heads."""
        table = heads.table if heads.kv_heads else by_kv_head(heads.table, wanted.known_kv_heads)
        order = order_of(table, wanted.score)
        scores, missing = rows_of(table, wanted.score)
        rows = json.dumps(nested(scores)).replace("null", "None").replace("], [", "],\n    [")
        text = _TEMPLATE.format(
            mark=_MARK,
            model=json.dumps(str(table.facts.get("model") or "a model"))[1:-1],
            score=wanted.score,
            note=order.note[:1].upper() + order.note[1:],
            scores=rows,
            order=list(reversed(order.heads)),
            sink=wanted.sink,
            recent=wanted.recent,
        )
        return Output({self.file: text.encode()}, (order.note, *missing))


FORMAT = KvPress()


def _assigned(text: str) -> dict[str, Any]:
    """What a module assigns at its top, as far as it is a literal."""
    try:
        body = ast.parse(text).body
        return {
            target.id: ast.literal_eval(statement.value)
            for statement in body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Nonsense(f"is no Python file as it was written ({error})") from None
