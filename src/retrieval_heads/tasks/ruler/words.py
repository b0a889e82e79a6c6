"""The words that keys and lists are drawn from: those of the PyPI package wonderwords, as RULER's are."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from retrieval_heads.errors import ConfigError
from retrieval_heads.reading import read_text

PACKAGE = "wonderwords"


@dataclass(frozen=True)
class Words:
    """Lists of words.

    Args:
        nouns: In order, each once.
        adjectives: The same.
        all: Nouns, adjectives and verbs in order, each once.
        hash: SHA-256 of the three lists.
    """

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    all: tuple[str, ...]
    hash: str

    def key(self, draw: random.Random) -> str:
        """An adjective and a noun, `brisk-anchor`."""
        return f"{draw.choice(self.adjectives)}-{draw.choice(self.nouns)}"


@cache
def load_words() -> Words:
    """The lists of the installed package, whose code is not run.

    Raises:
        ConfigError: It is not installed, or a list is missing or empty.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {PACKAGE} is not installed; try: pip install --no-deps {PACKAGE}")
    folder = Path(spec.submodule_search_locations[0]) / "assets"
    lists = [_read(folder / f"{kind}list.txt") for kind in ("noun", "adjective", "verb")]
    said = "\n\n".join("\n".join(words) for words in lists)
    return Words(
        nouns=lists[0],
        adjectives=lists[1],
        all=tuple(sorted({word for words in lists for word in words})),
        hash=hashlib.sha256(said.encode()).hexdigest(),
    )


def _read(file: Path) -> tuple[str, ...]:
    words = {line.strip() for line in read_text(file).splitlines()} - {""}
    if not words:
        raise ConfigError(f"{file} holds no words")
    return tuple(sorted(words))


def number(draw: random.Random) -> str:
    """Seven digits."""
    return str(draw.randrange(1_000_000, 10_000_000))


def identifier(draw: random.Random) -> str:
    """A random UUID."""
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))
