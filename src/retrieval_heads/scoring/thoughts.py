"""What a reasoning model says before its answer: it stands up to a closing tag, is kept, and counts in no score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrieval_heads.scoring.settings import Tags


@dataclass(frozen=True)
class Thoughts:
    """Where thoughts end in what a model said, in characters.

    Args:
        end: Behind the last closing tag; 0 where there is none.
        answer: Where the answer begins, behind the white space that follows the tag.
        is_open: It ends within thoughts, so that there is no answer.
    """

    end: int
    answer: int
    is_open: bool

    @property
    def are_none(self) -> bool:
        """Whether all of it is the answer."""
        return not self.is_open and self.answer == 0


def thoughts_in(said: str, tags: Sequence[Tags], *, inside: bool = False) -> Thoughts:
    """Find a model's thoughts.

    All that stands before the last closing tag is thoughts, whether or not a tag opens them: a template may have done
    so. Where no tag closes them, an answer that begins with an opening tag is nothing but thoughts, and so is what
    follows a closing tag and begins with an opening one.

    Args:
        said: What the model said, its tags in it.
        tags: Those that count.
        inside: The prompt ends within thoughts: the model went on with them.
    """
    ends = [at + len(each.end) for each in tags if (at := said.rfind(each.end)) >= 0]
    end = max(ends, default=0)
    rest = said[end:].lstrip()
    begins = any(rest.startswith(each.start) for each in tags)
    if begins or (inside and not ends):
        return Thoughts(end, len(said), True)
    return Thoughts(end, len(said) - len(rest) if ends else 0, False)


def told_apart(thoughts: str | None, answer: str, tags: Sequence[Tags]) -> tuple[str | None, str]:
    """Thoughts and answer of a stored answer, which may have been told apart by other tags, or not at all.

    Args:
        thoughts: As they are stored; `None` for none.
        answer: What is stored as the answer.
        tags: Those that count now.
    """
    said = (thoughts or "") + answer
    found = thoughts_in(said, tags, inside=bool(tags) and thoughts is not None)
    return (None, said) if found.are_none else (said[: found.answer], said[found.answer :])


def opens_thoughts(prompt: str, prefill: str, tags: Sequence[Tags]) -> bool:
    """Whether a prompt ends within thoughts: its template writes the opening tag, or its prefill does.

    Args:
        prompt: Its end, special tokens in it: the assistant's turn as far as the prompt writes it.
        prefill: The first words of the answer, with which it ends.
        tags: Those that count.
    """
    start, length = max(((prompt.rfind(each.start), len(each.start)) for each in tags), default=(-1, 0))
    if start < 0 or max(prompt.rfind(each.end) for each in tags) > start:
        return False
    behind = prompt[start + length :]
    # A question may speak of such a tag too: nothing but a prefill stands between it and the answer.
    return not behind.strip() or behind.strip() == prefill.strip() or prefill.endswith(behind)
