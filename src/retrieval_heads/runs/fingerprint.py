"""What the files of a model hold: a hash of each, so that weights edited in place are seen.

The whole of every file is hashed. The header of a safetensors file is the same whatever its tensors are, and blocks
taken as samples miss the rows between them. Reading is what costs, and the engine reads the same files: about a
second a gigabyte on one core, several cores beside each other. What was hashed is remembered by path, size, inode
and both times; the time of a change (`ctime`) cannot be set back as that of a modification can.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from retrieval_heads.files import write_whole
from retrieval_heads.models import cache_folder

_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".tensors")
_OTHERS: Final = (".json", ".jinja", ".py", ".model", ".txt", ".tiktoken")
_TOKENIZER: Final = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "tekken")
_OF_TRAINING: Final = ("optimizer", "scheduler", "rng_state", "training_args", "trainer_state")
_OF_PEOPLE: Final = ("readme", "license", "notice", "use_policy")

_PIECE: Final = 1 << 28
"""Bytes that one thread hashes at a time; a file is known by the hash of its pieces' hashes."""
_BLOCK: Final = 1 << 22
_WORTH_REMEMBERING: Final = 1 << 20
_SETTLED_SECONDS: Final = 2.0
"""A file that changed this lately may change again within the same tick of the clock, and is not remembered."""


def fingerprints(path: Path) -> dict[str, str]:
    """The start of the SHA-256 of every file that can change what a model says.

    Args:
        path: A model's folder (files in folders below it are not read by vLLM), or one file.

    Returns:
        By kind and name: `weights/model.safetensors`, `tokenizer/tokenizer.json`, `config/config.json`.
    """
    files = model_files(path)
    remembered = _remembered()
    hashes: dict[str, str] = {}
    learnt: dict[str, list[object]] = {}
    with ThreadPoolExecutor(max(1, min(8, len(os.sched_getaffinity(0))))) as pool:
        for name, file in files.items():
            stamped, began = list(stamp(file)), time.time()
            known = remembered.get(str(file.resolve()))
            if known and known[:-1] == stamped:
                hashes[name] = str(known[-1])
                continue
            hashes[name] = _hash(file, pool)
            size, changed = file.stat().st_size, max(file.stat().st_mtime, file.stat().st_ctime)
            if size >= _WORTH_REMEMBERING and began - changed > _SETTLED_SECONDS and list(stamp(file)) == stamped:
                learnt[str(file.resolve())] = [*stamped, hashes[name]]
    if learnt:
        _remember(remembered | learnt)
    return hashes


def model_files(path: Path) -> dict[str, Path]:
    """The files of a model that can change what it says, by kind and name; see `fingerprints`."""
    if path.is_file():
        return {f"{'weights' if path.suffix in _WEIGHTS else 'config'}/{path.name}": path}
    return {f"{kind}/{file.name}": file for file in sorted(path.iterdir()) if (kind := _kind(file))}


def stamp(file: Path) -> tuple[int, ...]:
    """What differs once a file was written again, or is another of its name."""
    told = file.stat()
    return told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino, told.st_dev


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    if name.startswith((".", *_OF_TRAINING, *_OF_PEOPLE)) or not file.is_file():
        return None
    if file.suffix in _WEIGHTS or name.endswith(".index.json"):
        return "weights"
    if file.suffix not in _OTHERS:
        return None
    return "tokenizer" if name.startswith(_TOKENIZER) or file.suffix in (".model", ".tiktoken") else "config"


def _hash(file: Path, pool: ThreadPoolExecutor) -> str:
    starts = range(0, max(1, file.stat().st_size), _PIECE)
    whole = hashlib.sha256()
    for digest in pool.map(lambda start: _piece(file, start), starts):
        whole.update(digest)
    return whole.hexdigest()[:32]


def _piece(file: Path, start: int) -> bytes:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(start)
        left = _PIECE
        while left and (block := stream.read(min(left, _BLOCK))):
            found.update(block)
            left -= len(block)
    return found.digest()


def _memory() -> Path:
    return cache_folder() / "fingerprints.json"


def _remembered() -> dict[str, list[object]]:
    """What was hashed before; nothing where that cannot be read, which costs time and no truth."""
    try:
        told = json.loads(_memory().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {path: known for path, known in _pairs(told) if isinstance(known, list) and len(known) == 6}


def _pairs(told: object) -> Iterator[tuple[str, object]]:
    if isinstance(told, dict):
        yield from told.items()


def _remember(known: dict[str, list[object]]) -> None:
    there = {path: value for path, value in known.items() if Path(path).exists()}
    with contextlib.suppress(OSError):  # a cache that cannot be written is hashed again
        write_whole(_memory(), json.dumps(there).encode())
