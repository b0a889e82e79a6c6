"""Which heads each arm of an ablation masks: none, the best k of a ranking, or k others like them.

A control draw holds as many heads of each layer as the best k do, so that what it breaks tells of the heads and not
of the depth. Several rankings share their controls, whose draws take the layers of one after the other, and no head
that is among the best k of any. Pure: no torch, no engine. What masking did is `retrieval_heads.ablation.effect`.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.heads.formats import read_ranked, read_table
from retrieval_heads.heads.score import RANKING
from retrieval_heads.heads.table import Head

MODES = {
    "zero": "the head's output is zero at the output projection, on prompt and answer",
    "mean": "the head's output is its mean over 4,096 tokens of the haystack, on prompt and answer",
    "uniform": "the head attends to all tokens alike, from the prompt's last token on (the paper's code)",
}
"""How a head is masked."""

NONE = "none"
"""The arm that masks nothing."""

_ARM = re.compile(r"(?:top_(?P<top>\d+)(?:_by_(?P<by>.+))?|random_(?P<random>\d+)_draw_(?P<draw>\d+))$")

Heads = tuple[Head, ...]
Shape = Mapping[int, int]
"""Heads by layer number."""
Rankings = Mapping[str, Sequence[Head]]
"""By the score that ranks them, heads with the best first; of one ranking alone the name is of no account."""


class NoSuchDraw(Exception):
    """A control draw beyond the last distinct one, which is no mistake of anybody's."""


@dataclass(frozen=True)
class Arm:
    """What is masked on every cell alike.

    Args:
        name: `none`, `top_10` (of several rankings `top_10_by_mass`) or `random_10_draw_2`.
        count: How many heads it masks.
        draw: Of a control arm, which draw, from 1; else 0.
        by: Of several rankings, whose best heads it masks; else empty.
    """

    name: str
    count: int = 0
    draw: int = 0
    by: str = ""

    @classmethod
    def of(cls, name: str) -> Arm:
        """The arm of a name.

        Raises:
            ValueError: There is no such arm.
        """
        if name == NONE:
            return cls(NONE)
        found = _ARM.match(name)
        if found is None:
            raise ValueError(f"no arm is named {name!r}")
        return cls(name, int(found["top"] or found["random"]), int(found["draw"] or 0), found["by"] or "")

    @property
    def group(self) -> str:
        """What its figures stand under: `random_10` for every draw of it, else its name."""
        return f"random_{self.count}" if self.draw else self.name


def arms(top: Sequence[int], draws: int, by: Sequence[str] = ()) -> list[Arm]:
    """Every arm, the unmasked one first; for each count the best heads by each ranking, then the control draws."""
    found = [Arm(NONE)]
    for count in top:
        names = [f"top_{count}_by_{each}" for each in by] if len(by) > 1 else [f"top_{count}"]
        found += map(Arm.of, names)
        found += [Arm(f"random_{count}_draw_{draw}", count, draw) for draw in range(1, draws + 1)]
    return found


def heads_of(arm: Arm, rankings: Rankings, shape: Shape, seed: int) -> Heads:
    """The heads that an arm masks, in the order of layer and head.

    Args:
        arm: One of `arms`.
        rankings: All that the ablation compares.
        shape: Heads of each layer of the model.
        seed: Chooses the control draws.

    Raises:
        ConfigError: A head that is masked is not of this model, there are fewer ranked heads than asked for, or too
            few others are left for a control.
        NoSuchDraw: There are fewer distinct draws.
    """
    if not arm.count:
        return ()
    if not arm.draw:
        ranked = rankings[arm.by] if arm.by else next(iter(rankings.values()))
        return tuple(sorted(_best(ranked, arm.count, shape)))
    tops = [_best(ranked, arm.count, shape) for ranked in rankings.values()]
    drawn = draws_of(tops, shape, arm.draw, seed)
    if len(drawn) < arm.draw:
        raise NoSuchDraw(f"no draw {arm.draw}: the distinct draws of {arm.count} other heads number {len(drawn)}")
    return drawn[arm.draw - 1]


def _best(ranked: Sequence[Head], count: int, shape: Shape) -> Heads:
    """The best heads of a ranking, all of which the model has."""
    if len(ranked) < count:
        raise ConfigError(f"top: {count} heads are to be masked, and only {len(ranked)} are given")
    best = tuple(ranked[:count])
    for layer, head in best:
        if layer not in shape:
            raise ConfigError(
                f"head {layer}-{head}: the model has no layer {layer} whose heads can be masked; {_described(shape)}"
            )
        if head >= shape[layer]:
            raise ConfigError(f"head {layer}-{head}: layer {layer} of the model has heads 0 to {shape[layer] - 1}")
    return best


def check(rankings: Sequence[Sequence[Head]], top: Sequence[int], shape: Shape) -> None:
    """See that every arm can be made of these heads of this model.

    Raises:
        ConfigError: One cannot.
    """
    for count in top:
        tops = [_best(ranked, count, shape) for ranked in rankings]
        quotas(tops, 0, shape)


def draws_of(tops: Sequence[Sequence[Head]], shape: Shape, count: int, seed: int) -> list[Heads]:
    """Up to `count` distinct draws of other heads, as many of each layer as `quotas` says of one ranking after the
    other; seeded, and a longer list of draws begins with the shorter one.

    Args:
        tops: The best heads of each ranking, as many of each.
        shape: Heads of each layer of the model.
        count: How many draws.
        seed: Chooses them.
    """
    left = _left(tops, shape)
    # Every number of heads has draws of its own, and the same on every machine.
    chooser = random.Random(f"{seed}/{len(tops[0])}")
    found: dict[Heads, None] = {}
    drawn: Counter[tuple[tuple[int, int], ...]] = Counter()
    while len(found) < count:
        wanted = quotas(tops, len(found) % len(tops), shape)
        alike = tuple(wanted.items())  # draws of other layers differ anyway
        if drawn[alike] == math.prod(math.comb(len(left[layer]), quota) for layer, quota in alike):
            break
        picked = [(layer, head) for layer, quota in alike for head in chooser.sample(left[layer], quota)]
        heads = tuple(sorted(picked))
        drawn[alike] += heads not in found
        found.setdefault(heads)
    return list(found)


def quotas(tops: Sequence[Sequence[Head]], turn: int, shape: Shape) -> dict[int, int]:
    """How many other heads a control takes from each layer: as many as the best ones of one ranking there, and where
    fewer are left, the rest from the nearest layers that have some, the lower of two first.

    Args:
        tops: The best heads of each ranking; none of them is among the others.
        turn: Whose layers are taken.
        shape: Heads of each layer of the model.

    Raises:
        ConfigError: The whole model has too few others.
    """
    best, left = tops[turn], {layer: len(heads) for layer, heads in _left(tops, shape).items()}
    if sum(left.values()) < len(best):
        raise ConfigError(
            f"top: masking {sum(shape.values()) - sum(left.values())} of the model's {sum(shape.values())} heads "
            f"leaves {sum(left.values())} others, too few for a control of {len(best)}"
        )
    wanted = Counter(layer for layer, _ in best)
    taken = {layer: min(wanted[layer], left[layer]) for layer in sorted(shape)}
    for layer in sorted(wanted):
        short = wanted[layer] - left[layer]
        for other in sorted(shape, key=lambda other, layer=layer: (abs(other - layer), other)):  # type: ignore[misc]
            if short <= 0:
                break
            more = min(short, left[other] - taken[other])
            taken[other] += more
            short -= more
    return {layer: quota for layer, quota in taken.items() if quota}


def borrowed(best: Sequence[Head], control: Sequence[Head]) -> str:
    """What a control took from other layers than the best heads', in one sentence; empty where it took nothing."""
    there, here = Counter(layer for layer, _ in best), Counter(layer for layer, _ in control)
    if there == here:
        return ""
    short = ", ".join(f"layer {layer} has {here[layer]} of {there[layer]}" for layer in sorted(there - here))
    return f"{short} left; the rest is of layer {', '.join(str(layer) for layer in sorted(here - there))}"


def read_heads(path: Path, model: str | None, by: str | None = None) -> tuple[Heads, str]:
    """The heads of a head file, best first, and what is odd about it in one sentence, or nothing.

    Args:
        path: Any file that `retrieval_heads.heads.formats.read_ranked` reads.
        model: The model that is to be ablated.
        by: The score that ranks them; `None` for the file's own.

    Raises:
        ResultsError: The file cannot be read, holds a head twice, or has no such score.
    """
    ranked = tuple(head for head, _ in read_ranked(path, by))
    if twice := repeated(ranked):
        raise ResultsError(f"{path}: head {named(twice)} is given twice")
    measured = read_table(path).facts.get("model")
    if isinstance(measured, str) and model is not None and Path(measured).name != Path(model).name:
        return ranked, f"{path} holds the heads of {measured}, and {model} is ablated"
    return ranked, ""


def idle_heads(masked: Sequence[Head], scores: Mapping[Head, float], by: str | None = None) -> str:
    """What a reader must know of masked heads with a score of 0; empty where there are none.

    Args:
        masked: The best heads of a detection.
        scores: Its heads' means.
        by: Of which score; `None` for `copy` or what stands in its place.
    """
    idle = [named(head) for head in masked if scores.get(head, 1.0) <= 0]
    said = "never copied" if by in (None, RANKING) else f"have no {by} above 0"
    return f"{len(idle)} of the top {len(masked)} heads {said}: {', '.join(idle)}" if idle else ""


def repeated(heads: Sequence[Head]) -> Head | None:
    """The first head that is given twice."""
    return next((head for head, count in Counter(heads).items() if count > 1), None)


def named(head: Head) -> str:
    """A head as everything prints it: `18-7`."""
    return "-".join(map(str, head))


def _left(tops: Sequence[Sequence[Head]], shape: Shape) -> dict[int, list[int]]:
    """The other heads of each layer."""
    taken = set(itertools.chain.from_iterable(tops))
    return {layer: [head for head in range(heads) if (layer, head) not in taken] for layer, heads in shape.items()}


def _described(shape: Shape) -> str:
    """The layers of a model, runs of them shortened."""
    runs = []
    for _, run in itertools.groupby(enumerate(sorted(shape)), key=lambda at: at[1] - at[0]):
        numbers = [layer for _, layer in run]
        runs.append(f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}")
    return f"it has layers {', '.join(runs)}"
