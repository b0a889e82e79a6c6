"""`retrieval-heads heads atlas`: the head scores of a run in a folder to be published, and whether one is whole."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from retrieval_heads.errors import ConfigError, ResultsError, printable
from retrieval_heads.files import write_whole
from retrieval_heads.reading import read_bytes, read_object
from retrieval_heads.report.atlas import CARD, CONTENT, SCHEMA, atlas_of, card


@dataclass(frozen=True)
class Atlas:
    """Write the head scores of a run into a folder that can be published: scores, intervals and samples (parquet), the
    suite that asks again, pictures, and a card. With --check nothing is written: an atlas is compared with a run that
    measured it again, or with its own card; exit status 1 where a file differs.

    Example: retrieval-heads heads atlas reports/latest --output atlas
    """

    run_: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """The run's folder; with --check left out, the atlas is compared with its own card."""
    output: Path = Path("atlas")
    """The folder."""
    suite: str | None = None
    """The detect suite, where the run has several."""
    check: Path | None = None
    """An atlas to compare with, in place of writing one."""
    overwrite: bool = False
    """Replace files that stand there."""

    def run(self) -> None:
        """Write, or compare."""
        if self.check is not None:
            self._check(self.check)
            return
        if self.run_ is None:
            raise ConfigError("the run's folder is expected, such as reports/latest")
        files = atlas_of(self.run_, self.suite)
        there = [self.output / name for name in files if (self.output / name).exists()]
        if there and not self.overwrite:
            names = ", ".join(sorted(map(str, there)))
            raise ConfigError(f"{names}: stands there already; give --output another name, or --overwrite")
        for name, content in files.items():
            write_whole(self.output / name, content)
            print(printable(f"wrote {self.output / name}"))

    def _check(self, folder: Path) -> None:
        content = _content(folder)
        if self.run_ is None:
            odd = list(_own_oddities(folder, content))
        else:
            odd = list(_differences(folder, content, atlas_of(self.run_, self.suite)))
        for sentence in odd:
            print(printable(sentence))
        if odd:
            sys.exit(1)
        against = "its card says" if self.run_ is None else f"{self.run_} gives"
        print(printable(f"{folder}: all {len(content['files']) + 2} files are what {against}"))


def _content(folder: Path) -> dict[str, Any]:
    content = read_object(folder / CONTENT)
    files = content.get("files")
    if content.get("schema") != SCHEMA or not isinstance(files, dict) or not all(map(_is_name, files)):
        raise ResultsError(f"{folder / CONTENT}: is no atlas of schema {SCHEMA}")
    return content


def _is_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _own_oddities(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Files that are not what the card says."""
    for name, digest in content["files"].items():
        if hashlib.sha256(read_bytes(folder / name)).hexdigest() != digest:
            yield f"{folder / name}: is not the file that {CONTENT} has the hash of"
    try:
        is_same = card(content).encode() == read_bytes(folder / CARD)
    except (KeyError, TypeError, ValueError):
        raise ResultsError(f"{folder / CONTENT}: does not say what a card needs") from None
    if not is_same:
        yield f"{folder / CARD}: is not the card of {CONTENT}"


def _differences(folder: Path, content: Mapping[str, Any], again: Mapping[str, bytes]) -> Iterator[str]:
    """Files that a run does not give, and what else is said differently."""
    yield from _own_oddities(folder, content)
    now = json.loads(again[CONTENT])
    for key in sorted({*content, *now} - {"files", "best"}):
        if content.get(key) != now.get(key):
            yield f"{key}: {_shown(content.get(key))} in {folder}, {_shown(now.get(key))} now"
    for name, digest in content["files"].items():
        if name not in again:
            yield f"{name}: the run gives no such file"
        elif hashlib.sha256(again[name]).hexdigest() != digest:
            yield f"{name}: differs"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:100]}…"
