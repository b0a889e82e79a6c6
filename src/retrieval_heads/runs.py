"""A run's folder: who writes what into it, and that only one run writes at a time."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from retrieval_heads.errors import ConfigError, ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.results import SCHEMA, Record, dump_record, parse_record, read_records

_MARK = f"{SCHEMA} run\n"
"""What a run's `.lock` says; those of 0.1.0 are empty."""
_OF_PREDECESSOR = re.compile(r"(results.*\.jsonl|detected.*\.json|(detect_)?heatmap.*\.(png|svg)|report\.(txt|html))$")
"""What PyPI's `retrieval-heads` leaves in its `output_dir`."""
_KEEPERS = frozenset({".gitignore", ".gitkeep", ".lock"})
"""Files that keep an empty folder in a repository, and the lock of a run that is just starting."""


class RunFolder:
    """The files of one run: `config.yaml`, `run.json`, `results.jsonl`, `engine.log`, and its pictures.

    Args:
        path: The folder; made if it is missing. Results of an earlier run in it are kept under another name.
        resumed: Go on with the earlier run in it: its results stay, a cell's new record takes the place of its old.

    Raises:
        ConfigError: The folder cannot be written, holds files that no run wrote, another run is writing to it, or its
            results cannot be read.
    """

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        self.path = path
        self.results = path / "results.jsonl"
        self.log = path / "engine.log"
        self.earlier: dict[tuple[str, str], Record] = {}
        """The records that a resumed run found, by suite and cell."""
        self.is_torn = False
        """Whether the last of them was incomplete, and dropped."""
        self._written: dict[tuple[str, str], Record] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if foreign := _foreign(path):
                names = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
                raise ConfigError(
                    f"{path}: holds files that no run wrote ({names}); give output_dir a folder of its own"
                )
            self._lock = (path / ".lock").open("a")
        except OSError as error:
            raise ConfigError(f"{path}: the run's folder cannot be written ({error.strerror})") from None
        try:
            # Held until this process ends, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"{path}: another run is writing to this folder; give output_dir another") from None
        self._lock.truncate(0)
        self._lock.write(_MARK)
        self._lock.flush()
        if resumed:
            self._take_up()
        elif self.results.exists():
            written = time.strftime("%Y%m%d-%H%M%S", time.localtime(self.results.stat().st_mtime))
            self.results.rename(_unused(path / f"results-{written}.jsonl"))
        if not resumed:
            self.log.write_bytes(b"")
        self._stream = self.results.open("a" if resumed else "w", encoding="utf-8")

    def _take_up(self) -> None:
        """Read the earlier run's records, and leave them in the file as one whole line each."""
        content = self.results.read_bytes() if self.results.exists() else b""
        whole, _, torn = content.rpartition(b"\n")  # the last line may end in the middle of a character
        self.is_torn = bool(torn.strip())
        if self.is_torn:
            write_whole(self.results, whole + b"\n" if whole else b"")
        if not whole.strip():
            return
        try:
            records = read_records(self.results)
        except ResultsError as error:
            self._lock.close()
            raise ConfigError(f"{error}; this run cannot be resumed") from None
        self.earlier = {(record.suite_id, record.cell): record for record in records}
        if len(self.earlier) < len(records):
            self._rewrite(self.earlier.values())

    def _rewrite(self, records: Iterable[Record]) -> None:
        write_whole(self.results, "".join(f"{dump_record(record)}\n" for record in records).encode())

    @classmethod
    def create(cls, output_dir: str | None, base: Path, suites: Sequence[str]) -> RunFolder:
        """The folder that the settings name, or `reports/<time>-<suite>` with `reports/latest` pointing to it.

        Args:
            output_dir: The settings' own; relative to `base`.
            base: Where pytest was called.
            suites: Names of the suites that run.
        """
        if output_dir is not None:
            return cls(base / Path(output_dir).expanduser())
        reports = base / "reports"
        name = "+".join(suites[:3]) + ("+…" if len(suites) > 3 else "") or "run"
        folder = cls(_unused(reports / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"))
        link = reports / f".latest-{os.getpid()}"
        link.symlink_to(folder.path.name)
        link.replace(reports / "latest")
        return folder

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write `config.yaml`: what the files and options came to."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_whole(self.path / "config.yaml", text.encode())

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Write `run.json`, whole or not at all."""
        self.write_json("run.json", facts)

    def write_json(self, name: str, content: Mapping[str, Any]) -> Path:
        """Write a file of JSON, whole or not at all."""
        path = self.path / name
        write_whole(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        return path

    def write_record(self, record: Record) -> bool:
        """Append a record and flush it; a cell's second record is dropped, and one that stands there already.

        Returns:
            Whether it is the cell's first of this session.
        """
        key = (record.suite_id, record.cell)
        if key in self._written:
            return False
        self._written[key] = record
        if record != self.earlier.get(key):
            self._stream.write(dump_record(record) + "\n")
            self._stream.flush()
        return True

    @property
    def reused(self) -> int:
        """How many of this session's cells have the answer that the earlier run gave them."""
        earlier = ((record, self.earlier.get(key)) for key, record in self._written.items())
        return sum(old is not None and (old.request, old.text) == (new.request, new.text) for new, old in earlier)

    def close(self) -> None:
        """Let another run write to the folder; of an earlier run's records the outdated ones go."""
        self._stream.close()
        if any(self.earlier.get(key, record) != record for key, record in self._written.items()):
            self._rewrite((self.earlier | self._written).values())
        self._lock.close()


def is_run_folder(path: Path) -> bool:
    """Whether a run of ours wrote a folder, as its `.lock` or its `run.json` says.

    Of a run of 0.1.0 that was killed before `run.json` was written, an empty `.lock` beside results and log tells it.
    """
    lock = _start_of(path / ".lock")
    if lock == _MARK:
        return True
    if lock == "" and (path / "results.jsonl").is_file() and (path / "engine.log").is_file():
        return True
    try:
        facts = json.loads(_start_of(path / "run.json") or "")
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and isinstance(facts.get("retrieval_heads"), str)


def _foreign(path: Path) -> list[str]:
    """Names in a folder that no run wrote, ours or the predecessor's; none where a run of ours wrote there before."""
    if is_run_folder(path):
        return []
    entries = sorted(path.iterdir())
    is_old = any(_OF_PREDECESSOR.match(entry.name) and _is_measured(entry) for entry in entries)
    return [
        entry.name
        for entry in entries
        if entry.name not in _KEEPERS
        and not (is_old and _OF_PREDECESSOR.match(entry.name))
        and not (entry.is_dir() and not _foreign(entry))
    ]


def _is_measured(file: Path) -> bool:
    """Whether a file is one of results, or of heads, in the predecessor's form."""
    start = _start_of(file) or ""
    if file.suffix == ".jsonl":
        try:
            parse_record(start.partition("\n")[0], file.name)
        except ResultsError:
            return False
        return True
    return file.suffix == ".json" and start.lstrip().startswith("{")


def _start_of(file: Path) -> str | None:
    """A file's first 16 MiB; `None` where there is no plain file that can be read."""
    if not file.is_file():
        return None
    try:
        with file.open("rb") as stream:
            return stream.read(1 << 24).decode("utf-8", "replace")
    except OSError:
        return None


def read_facts(run: Path) -> Mapping[str, Any]:
    """What a run folder's `run.json` says; nothing where the run was killed before it was written.

    Raises:
        ResultsError: It is no JSON object.
    """
    try:
        facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultsError(f"{run / 'run.json'}: cannot be read ({error})") from None
    if not isinstance(facts, dict):
        raise ResultsError(f"{run / 'run.json'}: a JSON object is expected")
    return facts


def _unused(path: Path) -> Path:
    """The path itself, or with the first number behind it that no file has."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found
