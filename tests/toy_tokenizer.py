"""Tokenizers small enough to reason about, with what a Hugging Face fast tokenizer gives: ids and character offsets.

`WordTokenizer` takes a word with the space before it as one token, as byte-pair vocabularies do, and punctuation with
the line end behind it (".\\n"), so that a sentence can end inside a token. `ByteTokenizer` has one token per UTF-8
byte: a character outside ASCII spans several tokens of the same offsets. Both are reversible. Chat templates are
Python functions by name, among them bad ones.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

Messages = list[dict[str, str]]

SPECIAL = {"<s>": 1, "<|user|>": 2, "<|assistant|>": 3, "<|end|>": 4}
BOS = SPECIAL["<s>"]
_FIRST_ID = 1000


def chat(messages: Messages) -> str:
    """Each message between two special tokens."""
    return "".join(f"<|user|>{message['content']}<|end|>\n" for message in messages) + "<|assistant|>"


def chat_with_bos(messages: Messages) -> str:
    """A template that writes the first token itself, as Llama's does."""
    return "<s>" + chat(messages)


def trims(messages: Messages) -> str:
    """A template that strips white space around each message, as Llama 3's does."""
    return chat([{**message, "content": message["content"].strip()} for message in messages])


def refuses_two(messages: Messages) -> str:
    """A template that wants roles to alternate, as Mistral's does."""
    roles = [message["role"] for message in messages]
    if any(before == after for before, after in itertools.pairwise(roles)):
        raise ValueError("roles must alternate user/assistant/user/assistant/...")
    return chat(messages)


def loses_first(messages: Messages) -> str:
    """A template that keeps the last message only."""
    return chat(messages[-1:])


def says_twice(messages: Messages) -> str:
    """A template that writes every message two times."""
    return chat([*messages, *messages])


TEMPLATES: dict[str, Callable[[Messages], str]] = {
    f"{{{template.__name__}}}": template
    for template in (chat, chat_with_bos, trims, refuses_two, loses_first, says_twice)
}
"""Templates by name in braces, which tells a template's text from a file's path."""


class ToyTokenizer:
    """What both tokenizers share.

    Args:
        chat_template: A name in `TEMPLATES`; `None` as for a base model.
        adds_bos: Put `<s>` before every text where special tokens are asked for.
        is_fast: A slow tokenizer knows no offsets.
    """

    def __init__(self, chat_template: str | None = "{chat}", *, adds_bos: bool = False, is_fast: bool = True) -> None:
        self.chat_template: Any = chat_template
        self.is_fast = is_fast
        self._adds_bos = adds_bos
        self.bos_token_id = BOS
        self.eos_token_id = SPECIAL["<|end|>"]

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        return_offsets_mapping: bool = False,
    ) -> Any:
        """Text to ids, and to offsets where asked."""
        if return_offsets_mapping and not self.is_fast:
            raise NotImplementedError("return_offset_mapping is not available with a slow tokenizer")
        tokens = [(BOS, 0, 0)] if add_special_tokens and self._adds_bos else []
        tokens += self._plain(text, 0) if split_special_tokens else self._with_special(text)
        return SimpleNamespace(
            input_ids=[token for token, _, _ in tokens], offset_mapping=[(start, end) for _, start, end in tokens]
        )

    def apply_chat_template(
        self,
        conversation: Messages,
        *,
        chat_template: str | None = None,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> str:
        """Messages to text; options of the template are written in front, so that tests can see them."""
        assert not tokenize
        assert add_generation_prompt
        said = "".join(f"[{key}={value}]" for key, value in options.items())
        return said + TEMPLATES[str(chat_template or self.chat_template)](conversation)

    def decode(self, token_ids: Sequence[int], **_: Any) -> str:
        """Ids to text; bytes that are no character become U+FFFD."""
        return b"".join(self._bytes_of(token) for token in token_ids).decode(errors="replace")

    def get_vocab(self) -> dict[str, int]:
        """A thousand words that no text holds, beside the special tokens."""
        return SPECIAL | {f"word {number}": -number for number in range(1, 1001)}

    @property
    def all_special_ids(self) -> list[int]:
        """Those of the special tokens."""
        return list(SPECIAL.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a text that holds no special token."""
        return [token for token, _, _ in self._plain(text, 0)]

    def _with_special(self, text: str) -> Iterator[tuple[int, int, int]]:
        at = 0
        for piece in re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text):
            if piece in SPECIAL:
                yield SPECIAL[piece], at, at + len(piece)
            else:
                yield from self._plain(piece, at)
            at += len(piece)

    def _plain(self, text: str, at: int) -> Iterator[tuple[int, int, int]]:
        raise NotImplementedError

    def _bytes_of(self, token: int) -> bytes:
        if token < 0:  # of the vocabulary's other words
            return b" word"
        return next((name.encode() for name, special in SPECIAL.items() if special == token), b"")


class WordTokenizer(ToyTokenizer):
    """One token for a word with the space before it, a run of punctuation with the line end behind it, or a space."""

    _piece = re.compile(r" ?\w+|[^\w\s]+\n?|\s")

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pieces: dict[int, str] = {}

    def _plain(self, text: str, at: int) -> Iterator[tuple[int, int, int]]:
        for found in self._piece.finditer(text):
            # The same in every process, whatever was read before: ids of two runs can be compared.
            token = _FIRST_ID + zlib.crc32(found[0].encode()) % (1 << 30)
            assert self._pieces.setdefault(token, found[0]) == found[0], "two words of one id: take another word"
            yield token, at + found.start(), at + found.end()

    def _bytes_of(self, token: int) -> bytes:
        return super()._bytes_of(token) or self._pieces[token].encode()


class ByteTokenizer(ToyTokenizer):
    """One token for each byte of UTF-8."""

    def _plain(self, text: str, at: int) -> Iterator[tuple[int, int, int]]:
        for index, character in enumerate(text):
            for byte in character.encode():
                yield _FIRST_ID + byte, at + index, at + index + 1

    def _bytes_of(self, token: int) -> bytes:
        return super()._bytes_of(token) or bytes([token - _FIRST_ID])
