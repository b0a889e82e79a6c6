"""Gate expressions: `mean(rougeL_recall) >= 0.8`, `min over length(pass_rate) >= 0.6`.

    gate     = measure comparator number
    measure  = aggregate [ "over" group ] "(" number name ")"
             | "effective_length" "(" share [ "," score name ] ")"
             | "head_spearman" "(" [ head score ] ")" | "head_overlap" "(" count [ "," head score ] ")"
    aggregate = mean | min | max | median        group = an axis of the suite's task: length | depth | needle
    comparator = >= | > | <= | <

`min(X)` is the lowest X of all cells. `min over length(X)` takes the mean of X in each length first, and then
the lowest of these means; `max`, `mean` and `median` likewise. `effective_length(0.85)` is the longest length
such that every length up to and including it holds at least 0.85 of the best length's mean: 0 where the
shortest does not, or where the best mean is 0.

`head_spearman(copy)` and `head_overlap(10)` set a detection's mean head scores against the baseline's: their rank
correlation, and the share of the 10 best heads that both name. The head score is `copy` where none is named.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.score import RANKING, SCORES
from retrieval_heads.runs.place import LENGTH

How = Literal["mean", "min", "max", "median"]
Comparator = Literal[">=", ">", "<=", "<"]

OWN_METRIC: Final = ""
"""Stands for the score that decides whether a cell passed, whichever that is in its record."""

SLACK: Final = 1e-9
"""Numbers this close are equal: a mean of 0.8 must not break `>= 0.8` by the last bit of a float."""

_HOWS: Final = get_args(How)
_OWN: Final = ("effective_length", "head_spearman", "head_overlap")
_COMPARATORS: Final = get_args(Comparator)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[^\W\d][\w.-]*)|(?P<sign>[<>]=?|[(),]))"
)


@dataclass(frozen=True)
class Aggregate:
    """A stored number over all cells, or over the means of its groups."""

    how: How
    number: str
    """The name of a score, or of another number that records hold."""
    over: str | None = None

    def __str__(self) -> str:
        return f"{self.how}{f' over {self.over}' if self.over else ''}({self.number})"


@dataclass(frozen=True)
class EffectiveLength:
    """The longest length, in tokens, up to which every length holds its share of the best."""

    share: float
    """Of the best length's mean; above 0, at most 1."""
    number: str = OWN_METRIC

    def __str__(self) -> str:
        return f"effective_length({_plain(self.share)}{f', {self.number}' if self.number else ''})"


@dataclass(frozen=True)
class Agreement:
    """How alike the mean scores of a detection's heads are to the baseline's."""

    top: int | None = None
    """Overlap of so many best heads; `None` for Spearman's rank correlation over all."""
    number: str = RANKING
    """A head score."""

    def __str__(self) -> str:
        if self.top is None:
            return f"head_spearman({self.number})"
        return f"head_overlap({self.top}{f', {self.number}' if self.number != RANKING else ''})"


Measure = Aggregate | EffectiveLength | Agreement


@dataclass(frozen=True)
class Gate:
    """What a run must reach."""

    measure: Measure
    comparator: Comparator
    limit: float

    def __str__(self) -> str:
        return f"{self.measure} {self.requirement}"

    @property
    def requirement(self) -> str:
        """The right side, such as `>= 0.8`."""
        return f"{self.comparator} {_plain(self.limit)}"

    @property
    def wants_high(self) -> bool:
        """Whether low values break the gate."""
        return self.comparator.startswith(">")

    def holds(self, value: float) -> bool:
        """Whether a measured value is within the limit; NaN never is."""
        if abs(value - self.limit) <= SLACK * max(1.0, abs(self.limit)):
            return self.comparator.endswith("=")
        return value > self.limit if self.wants_high else value < self.limit


def parse_gate(text: str, known: Collection[str] | None = None, axes: Sequence[str] | None = None) -> Gate:
    """Read a gate expression.

    Args:
        text: Such as `min over length(pass_rate) >= 0.6`.
        known: The names of numbers that will be measured; without it any name is accepted here, and `check`
            refuses one that no record holds.
        axes: Those of the suite's task; without them any name of one is accepted.

    Raises:
        ConfigError: The expression is malformed or names an unknown number; a caret marks the place.
    """
    parser = _Parser(text, axes)
    measure = parser.measure()
    comparator = cast(Comparator, parser.expect(_COMPARATORS, "a comparator (>=, >, <=, <)"))
    gate = Gate(measure, comparator, parser.number("a number"))
    parser.end()
    names = SCORES.names if isinstance(measure, Agreement) else known
    if names is not None and measure.number and measure.number not in names:
        raise parser.error(f"unknown number {measure.number!r}; {nearest(measure.number, names)}", parser.named_at)
    if known is not None and (idle := idleness(gate)):
        raise ConfigError(f"gate {text.strip()!r}: {idle}")
    return gate


def idleness(gate: Gate, longest: int | None = None) -> str:
    """Why a gate decides nothing: no value that it could measure breaks it, or none holds it. Empty where it decides.

    Args:
        gate: Whose comparators are monotone, so that the ends of what can be measured tell.
        longest: The longest length that is asked, in tokens; what an effective length can reach.
    """
    low, high = _range(gate.measure, longest)
    holds = {gate.holds(low), gate.holds(high)}
    if len(holds) > 1:
        return ""
    verdict = "cannot fail" if True in holds else "cannot hold"
    ends = f"from {_plain(low)}" if math.isinf(high) else f"between {_plain(low)} and {_plain(high)}"
    return f"it {verdict}: {gate.measure} lies {ends}"


def _range(measure: Measure, longest: int | None) -> tuple[float, float]:
    if isinstance(measure, EffectiveLength):
        return 0.0, math.inf if longest is None else float(longest)
    if isinstance(measure, Agreement):
        return (-1.0 if measure.top is None else 0.0), 1.0
    if measure.number in ("seconds", "cached_tokens", "prompt_tokens"):
        return 0.0, math.inf
    return 0.0, 100.0 if measure.number == "achieved_depth" else 1.0


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a misspelt name: the valid one nearest to it, and all of them."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    choices = f"known: {', '.join(sorted(known))}"
    return f"did you mean {close[0]!r}? ({choices})" if close else choices


class _Parser:
    """Walks an expression from left to right and remembers where it stands."""

    def __init__(self, text: str, axes: Sequence[str] | None) -> None:
        # YAML's folded lines become one, so that the caret stands under its place.
        self.text = re.sub(r"\s", " ", text)
        self.position = 0
        self.named_at = 0
        self._axes = axes

    def measure(self) -> Measure:
        word = self.expect((*_HOWS, *_OWN), f"{', '.join((*_HOWS, *_OWN[:-1]))} or {_OWN[-1]}")
        if word == "effective_length":
            return self._effective_length()
        if word in _OWN:
            return self._agreement(word)
        over = None
        if self._peek() == "over":
            self.expect(("over",), "over")
            over = self._axis()
        self.expect(("(",), "'('" if over else "'(' or 'over'")
        number = self._name()
        self.expect((")",), "')'")
        return Aggregate(cast(How, word), number, over)

    def _axis(self) -> str:
        if self._axes is None:
            return self._name()
        *others, last = self._axes
        return self.expect(self._axes, f"{', '.join(others)} or {last}" if others else last)

    def _effective_length(self) -> EffectiveLength:
        if self._axes is not None and LENGTH not in self._axes:
            raise self.error(f"there is no axis {LENGTH}; those of the task are {', '.join(self._axes)}", 0)
        self.expect(("(",), "'('")
        start = self.position
        share = self.number("a share of the best length, such as 0.85")
        if not 0 < share <= 1:
            raise self.error("the share of the best length is above 0 and at most 1", self._skip_space(start))
        if self.expect((",", ")"), "',' or ')'") == ")":
            return EffectiveLength(share)
        name = self._name()
        self.expect((")",), "')'")
        return EffectiveLength(share, name)

    def _agreement(self, word: str) -> Agreement:
        self.expect(("(",), "'('")
        if word == "head_spearman":
            name = RANKING if self._peek() == ")" else self._name()
            self.expect((")",), "')'")
            return Agreement(None, name)
        start = self.position
        top = self.number("a number of best heads, such as 10")
        if top < 1 or not top.is_integer():
            raise self.error("the number of best heads is a whole number of at least 1", self._skip_space(start))
        name = self._name() if self.expect((",", ")"), "',' or ')'") == "," else ""
        if name:
            self.expect((")",), "')'")
        return Agreement(int(top), name or RANKING)

    def _name(self) -> str:
        token = _TOKEN.match(self.text, self.position)
        if not token or not token["word"]:
            raise self.error("expected the name of a score or of another stored number")
        self.named_at, self.position = token.start("word"), token.end()
        return token["word"]

    def number(self, wanted: str) -> float:
        token = _TOKEN.match(self.text, self.position)
        if not token or not token["number"]:
            raise self.error(f"expected {wanted}")
        value = float(token["number"])
        if abs(value) == float("inf"):
            raise self.error("the number is too large")
        self.position = token.end()
        return value

    def expect(self, accepted: Collection[str], wanted: str) -> str:
        found = self._peek()
        if found not in accepted:
            raise self.error(f"expected {wanted}")
        self.position = self._skip_space(self.position) + len(found)
        return found

    def end(self) -> None:
        if self.text[self.position :].strip():
            raise self.error("expected nothing more")

    def error(self, message: str, at: int | None = None) -> ConfigError:
        column = self._skip_space(self.position) if at is None else at
        return ConfigError(f"gate {self.text.strip()!r}: {message}\n  {self.text}\n  {' ' * column}^")

    def _peek(self) -> str:
        token = _TOKEN.match(self.text, self.position)
        return token.group().strip() if token else ""

    def _skip_space(self, position: int) -> int:
        while position < len(self.text) and self.text[position] == " ":
            position += 1
        return position


def _plain(value: float) -> str:
    """As short as possible, and read back as the same number."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
