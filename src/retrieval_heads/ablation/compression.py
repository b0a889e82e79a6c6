"""Which heads each arm of a compression has stream: all KV heads but the best ones of a ranking.

A KV head is kept where it keeps all of a context; the others keep sinks and a recent window. A ranking of query heads
ranks KV heads by the best query head of each (`heads.groups`); of equal ones the ranking's own order decides. Pure: no
torch, no engine. What it did to the answers is `retrieval_heads.ablation.sparsity`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_heads.ablation.arms import NONE
from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.table import Head

RANDOM = "random"
"""The ranking that is drawn, several times."""

_ARM = re.compile(r"(?P<ranking>[A-Za-z][\w.]*?)_keep_(?P<keep>\d+(?:\.\d+)?)(?:_draw_(?P<draw>\d+))?$")

Groups = Mapping[int, tuple[int, int]]
"""By number of a layer that keeps keys of tokens, its KV heads and the query heads of each."""


@dataclass(frozen=True)
class Kept:
    """What streams on every cell alike.

    Args:
        ranking: What ranks the KV heads; empty where none streams.
        keep: The share of KV heads that keep everything.
        draw: Of the ranking `random`, which draw, from 1; else 0.
    """

    ranking: str = ""
    keep: float = 1.0
    draw: int = 0

    @property
    def name(self) -> str:
        """As cells name it."""
        if not self.ranking:
            return NONE
        return f"{self.ranking}_keep_{self.keep:g}" + (f"_draw_{self.draw}" if self.draw else "")

    @classmethod
    def of(cls, name: str) -> Kept:
        """The arm of a name.

        Raises:
            ValueError: There is no such arm.
        """
        if name == NONE:
            return cls()
        found = _ARM.match(name)
        if found is None:
            raise ValueError(f"no arm is named {name!r}")
        return cls(found["ranking"], float(found["keep"]), int(found["draw"] or 0))


def arms(rankings: Sequence[str], keep: Sequence[float], draws: int) -> list[Kept]:
    """Every arm, the one that keeps everything first, which all rankings share."""
    found = [Kept()]
    for ranking in rankings:
        for share in sorted(keep, reverse=True):
            if share < 1:
                numbers = range(1, draws + 1) if ranking == RANDOM else [0]
                found += [Kept(ranking, share, draw) for draw in numbers]
    return found


def ranked_kv_heads(ranked: Sequence[Head], groups: Groups) -> list[Head]:
    """Every KV head (layer, KV head), best first.

    Args:
        ranked: Query heads, best first. KV heads of which none is ranked come last, in their order.
        groups: The model's.

    Raises:
        ConfigError: A head is not of this model.
    """
    found: dict[Head, None] = {}
    for layer, head in ranked:
        if layer in groups:  # a recurrence has scores, and keeps no keys
            kv_heads, group = groups[layer]
            if head >= kv_heads * group:
                raise ConfigError(
                    f"head {layer}-{head}: layer {layer} of the model has heads 0 to {kv_heads * group - 1}"
                )
            found.setdefault((layer, head // group))
    return list(found | dict.fromkeys(every_kv_head(groups)))


def every_kv_head(groups: Groups) -> list[Head]:
    """All KV heads of a model, in order."""
    return [(layer, head) for layer in sorted(groups) for head in range(groups[layer][0])]


def kept_kv_heads(arm: Kept, ranked: Sequence[Head], groups: Groups, seed: int) -> list[Head]:
    """The KV heads that keep everything, in order of layer and head: of a smaller share some of those of a larger one.

    Args:
        arm: Which.
        ranked: Query heads, best first; of no use to the ranking `random`.
        groups: The model's.
        seed: Chooses the draws.
    """
    every = every_kv_head(groups)
    if arm.ranking == RANDOM:
        order = random.Random(f"{seed}/{arm.draw}").sample(every, len(every))
    else:
        order = ranked_kv_heads(ranked, groups)
    return sorted(order[: round(arm.keep * len(every))])


def streaming_heads(kept: Sequence[Head], groups: Groups) -> tuple[Head, ...]:
    """The query heads of all other KV heads."""
    return tuple(
        (layer, head)
        for layer in sorted(groups)
        for head in range(groups[layer][0] * groups[layer][1])
        if (layer, head // groups[layer][1]) not in set(kept)
    )


def kept_of(streaming: Sequence[Head], groups: Groups) -> list[Head]:
    """The KV heads that keep everything where these query heads stream."""
    gone = {(layer, head // groups[layer][1]) for layer, head in streaming}
    return [one for one in every_kv_head(groups) if one not in gone]


def kept_share_of_bytes(kept: int, kv_heads: int, tokens: int, window: int) -> float:
    """The share of a context's KV cache that would be kept, where every layer's heads are of one size.

    Args:
        kept: KV heads that keep everything.
        kv_heads: Of the model.
        tokens: Of the context.
        window: Sinks and recent tokens together.
    """
    return (kept + (kv_heads - kept) * min(1.0, window / tokens)) / kv_heads
