"""Were the cells of a baseline asked what this run asked? What a cell is named for is not all that was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from retrieval_heads.gates.pairing import Pair
from retrieval_heads.gates.verdict import Outcome
from retrieval_heads.runs.identity import UNKNOWN, Difference, Identity, differences, question_identity
from retrieval_heads.runs.record import Recipe, Record

GATE: Final = "the questions of the baseline"
_SHOWN: Final = 3
_LONGEST: Final = 80
"""Characters of a text that are shown."""
_OF_A_MODEL: Final = ("model", "model_revision", "tokenizer_hash")


@dataclass(frozen=True)
class Questions:
    """How the questions of a run's cells compare with the baseline's."""

    changes: tuple[tuple[str, int], ...]
    """What differs, and in how many cells."""
    changed: int
    """Cells of which something differs."""
    total: int
    unknown: tuple[str, ...]
    """What the baseline does not say of its questions and the run does."""

    @property
    def sentence(self) -> str:
        """What changed, in one line."""
        shares = ((what, f" ({count})" if count < self.changed else "") for what, count in self.changes[:_SHOWN])
        named = "; ".join(f"{what}{share}" for what, share in shares)
        more = f"; and {len(self.changes) - _SHOWN} more" if len(self.changes) > _SHOWN else ""
        return f"{self.changed} of {self.total} cells are not asked what the baseline was asked: {named}{more}"

    def outcome(self, suite: str) -> Outcome:
        """The gate that a changed question breaks."""
        sentence = f"{self.sentence}; save the baseline anew, or compare all the same with --rh-allow-changed"
        return Outcome(GATE, False, self.changed, 0, sentence, suite=suite)


def compare_questions(pairs: Sequence[Pair], before: Mapping[str, str], now: Mapping[str, str] | None) -> Questions:
    """Compare what the cells of both sides were asked.

    A model's own chat template and the tokens that its tokenizer makes are the model's: between two models they
    differ without a word. Between runs of one model they must not.

    Args:
        pairs: The cells that both sides measured.
        before: The baseline's model, by the keys of a header.
        now: The run's.
    """
    changes: Counter[str] = Counter()
    unknown: dict[str, None] = {}
    changed = 0
    of_one_model = now is not None and all(before.get(key) == now.get(key) for key in _OF_A_MODEL)
    is_named_alike = now is not None and "model" in before and before["model"] == now.get("model")
    for pair in pairs:
        if pair.current.recipe is None:
            continue
        if pair.baseline.recipe is None:
            unknown |= dict.fromkeys(("haystack", "wording", "chat template", "boundary", "sampling"))
            continue
        then, asked = (_asked(one, is_named_alike, pair) for one in (pair.baseline, pair.current))
        found = list(_worded_otherwise(pair))
        for one in differences("question", Identity(then), Identity(asked)):
            key = one.field.removeprefix("question.")
            part = key.partition(".")[0]
            is_known_then, is_known_now = (fields.get(part, "") is not UNKNOWN for fields in (then, asked))
            if is_known_then and is_known_now:
                found.append(one)
            elif is_known_now:
                unknown[part] = None
        others = [one for one in found if one.field != "question.prompt"]
        if not others and not of_one_model:
            found = []
        if found:
            changed += 1
        changes.update(_told(one, pair.current.recipe) for one in others or found)
    return Questions(tuple(changes.most_common()), changed, len(pairs), tuple(unknown))


def _asked(record: Record, is_named_alike: bool, pair: Pair) -> dict[str, object]:
    """The fields of a record's question that another model's run must share."""
    fields = {key: value for key, value in question_identity(record).fields.items() if key != "mask"}
    recipes = pair.baseline.recipe, pair.current.recipe
    templates = [recipe.template for recipe in recipes if recipe and recipe.template]
    if len(templates) == 2:
        if not is_named_alike and not any(template.is_given for template in templates):
            fields = {key: value for key, value in fields.items() if key not in ("template", "chat_template_kwargs")}
    else:
        # A record of before says one hash of wording and template together.
        fields.pop("chat_template_kwargs", None)
        fields["template"] = record.recipe.template_hash if record.recipe and is_named_alike else ""
        wordings = [recipe.wording for recipe in recipes if recipe]
        if wordings[0] != wordings[1]:
            fields["template"] = ""
    return fields


def _worded_otherwise(pair: Pair) -> Iterator[Difference]:
    """Needle, question and accepted answers, as far as the baseline says them."""
    before, now = pair.baseline, pair.current
    texts = {
        "needle": (before.needle.strip(), now.needle.strip()),
        "question": (before.question, now.question),
        "expected answer": (" or ".join(before.sayings), " or ".join(now.sayings)),
    }
    if before.sayings == (texts["needle"][0],) and now.sayings == (texts["needle"][1],):
        del texts["expected answer"]  # it is the needle, which is compared
    for what, (then, said) in texts.items():
        if then and then != said:
            name = f" of {now.needle_name}" if now.needle_name else ""
            yield Difference(f"the {what}{name}", *_quoted(then, said))


def _quoted(then: str, now: str) -> Iterator[str]:
    """Both texts in quotes; of long ones the part where they begin to differ."""
    lines = [" ".join(text.split()) for text in (then, now)]
    start = 0
    if max(map(len, lines)) > _LONGEST:
        alike = next((at for at, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), _LONGEST)
        start = max(0, alike - _LONGEST // 4)
    for line in lines:
        end = start + _LONGEST
        yield f"'{'…' if start else ''}{line[start:end]}{'…' if line[end:] else ''}'"


def _told(one: Difference, recipe: Recipe) -> str:
    if one.field == "question.haystack" and recipe.haystack == "pydoc":
        return f"{one.sentence('in the baseline')} (pydoc is Python's own help, which changes with its version)"
    return one.sentence("in the baseline")
