"""A run's folder: who writes what into it, and that only one run writes at a time."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from retrieval_heads.errors import ConfigError, FileError, ResultsError, UnreadableFile
from retrieval_heads.files import sweep_parts, write_whole
from retrieval_heads.reading import read_bytes, read_object
from retrieval_heads.redaction import without_values
from retrieval_heads.runs.journal import Cell, Journal, aside
from retrieval_heads.runs.layers import read_layer
from retrieval_heads.runs.record import SCHEMA, Record, dump_record, parse_record, read_records
from retrieval_heads.settings.yaml_reading import decode, parse

_MARK = f"{SCHEMA} run\n"
"""What a run's `.lock` says; those of 0.1.0 are empty."""
_OF_PREDECESSOR = re.compile(r"(results.*\.jsonl|detected.*\.json|(detect_)?heatmap.*\.(png|svg)|report\.(txt|html))$")
"""What PyPI's `retrieval-heads` leaves in its `output_dir`."""
Facts = Mapping[str, Any]
"""What `run.json` holds; `read_facts` checks what is read of it."""
_FACTS: Mapping[str, type] = {"model": str, "engine_args": dict, "layers": list, "suites": dict}
_KINDS: Mapping[type, str] = {str: "a text", dict: "an object", list: "a list"}
"""What `run.json` must hold where it holds these."""
_KEEPERS = frozenset({".gitignore", ".gitkeep", ".lock"})
"""Files that keep an empty folder in a repository, and the lock of a run that is just starting."""
_ENDINGS = frozenset({".html", ".json", ".jsonl", ".lock", ".log", ".npz", ".png", ".svg", ".yaml"})
"""Of the files of a run."""


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
        self.earlier: dict[Cell, Record] = {}
        """The records that a resumed run found, by suite and cell."""
        self.is_torn = False
        """Whether the last of them was incomplete, and dropped."""
        self._contents: dict[str, bytes] = {}
        """What was written, by the file's name."""
        self.complaints: list[str] = []
        """What could not be done beside writing the files, a sentence each."""
        self._latest: Path | None = None
        self._is_latest = False
        try:
            self._occupy(path)
            if resumed:
                self._take_up()
            else:
                if self.results.exists():
                    self.results.rename(aside(self.results))
                self.log.write_bytes(b"")
            self.journal = Journal(self.results, self.earlier)
        except FileError as error:
            raise ConfigError(f"{error}; the run's folder must be writable") from None
        except OSError as error:
            raise ConfigError(f"{path}: the run's folder cannot be written ({error.strerror})") from None

    @property
    def results(self) -> Path:
        """Where the records are."""
        return self.path / "results.jsonl"

    @property
    def log(self) -> Path:
        """Where everything goes that the engine prints."""
        return self.path / "engine.log"

    def _occupy(self, path: Path, *, is_known: bool = False) -> None:
        """Make the folder this run's own, until this process ends, however it ends.

        Args:
            path: The folder.
            is_known: It was this run's before, whatever lies in it.

        Raises:
            ConfigError: It is somebody else's.
            OSError: It cannot be written.
        """
        path.mkdir(parents=True, exist_ok=True)
        if foreign := [] if is_known else _foreign(path):
            names = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
            raise ConfigError(f"{path}: holds files that no run wrote ({names}); give output_dir a folder of its own")
        for entry in path.iterdir():
            if entry.suffix in _ENDINGS and entry.is_dir() and not entry.is_symlink() and not is_run_folder(entry):
                raise ConfigError(f"{entry}: is a folder, and a file of the run may go there; move it away")
        lock = (path / ".lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise ConfigError(f"{path}: another run is writing to this folder; give output_dir another") from None
        lock.truncate(0)
        lock.write(_MARK)
        lock.flush()
        self.path, self._lock = path, lock
        sweep_parts(path)

    def _take_up(self) -> None:
        """Read the earlier run's records, and leave them in the file as one whole line each."""
        try:
            content = read_bytes(self.results) if os.path.lexists(self.results) else b""
        except UnreadableFile:
            self._lock.close()
            raise
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
            lines = "".join(f"{dump_record(record)}\n" for record in self.earlier.values())
            write_whole(self.results, lines.encode())

    @classmethod
    def create(cls, output_dir: str | None, base: Path, suites: Sequence[str]) -> RunFolder:
        """The folder that the settings name, or `reports/<time>-<suite>`.

        `reports/latest` points to it from its first record on.

        Args:
            output_dir: The settings' own; relative to `base`.
            base: Where pytest was called.
            suites: Names of the suites that run.
        """
        if output_dir is not None:
            return cls(base / Path(output_dir).expanduser())
        reports = base / "reports"
        name = "+".join(suites[:3]) + ("+…" if len(suites) > 3 else "") or "run"
        latest = reports / "latest"
        if latest.exists() and not latest.is_symlink():
            raise ConfigError(f"{latest}: is a file or folder, where a link to the newest run is to be; move it away")
        folder = cls(_made(reports / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"))
        folder._latest = latest
        return folder

    def _point(self) -> None:
        """Have `reports/latest` point here."""
        assert self._latest is not None
        self._is_latest = True
        link = self._latest.with_name(f".latest-{os.getpid()}")
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(self.path.name)
            link.replace(self._latest)
        except OSError as error:
            self.complaints.append(f"{self._latest}: the link to this run cannot be made ({error.strerror})")

    def write_config(self, settings: Mapping[str, object]) -> None:
        """Write `config.yaml`: what the files and options came to, without secrets."""
        text = yaml.safe_dump(without_values(dict(settings)), sort_keys=False, allow_unicode=True)
        self._write("config.yaml", text)

    def write_matrix(self, path: Path) -> None:
        """Write `matrix.yaml`: what the file of a matrix says, without secrets."""
        said = parse(decode(read_bytes(path), str(path)), str(path))
        self._write("matrix.yaml", yaml.safe_dump(without_values(said), sort_keys=False, allow_unicode=True))

    def write_run(self, facts: Mapping[str, object]) -> None:
        """Write `run.json`, whole or not at all."""
        self.write_json("run.json", facts)

    def write_json(self, name: str, content: Mapping[str, object]) -> Path:
        """Write a file of JSON without secrets, whole or not at all.

        Raises:
            FileError: It cannot be written.
        """
        return self._write(name, json.dumps(without_values(content), indent=2, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str) -> Path:
        content = text.encode()
        write_whole(self.path / name, content)
        self._contents[name] = content
        return self.path / name

    def write_record(self, record: Record) -> bool:
        """Append a record; a cell's second record is dropped, and one that stands there already.

        Returns:
            Whether it is the cell's first of this session. `journal.failure` says whether it is on disk.
        """
        is_first = self.journal.append(record)
        if self._latest is not None and not self._is_latest and self.journal.failure is None:
            self._point()
        return is_first

    @property
    def asked_again(self) -> list[tuple[Record, Record]]:
        """Each cell that the earlier run answered and this session asked again: its record of then and of now."""
        pairs = ((self.earlier.get(key), record) for key, record in self.journal.written.items())
        return [
            (old, new)
            for old, new in pairs
            if old is not None and {old.status, new.status} <= {"pass", "low"} and old.request != new.request
        ]

    @property
    def reused(self) -> int:
        """How many of this session's cells have the answer that the earlier run gave them."""
        earlier = ((record, self.earlier.get(key)) for key, record in self.journal.written.items())
        return sum(old is not None and (old.request, old.text) == (new.request, new.text) for new, old in earlier)

    def settle(self) -> list[str]:
        """See that the files are all there, and write again what is missing; of outdated records none stays.

        Where the folder is another run's by now, or cannot be made again, this run's files go beside it.

        Returns:
            What had happened to them, a sentence each.

        Raises:
            FileError: Records are missing on disk, and cannot be written.
        """
        if self._is_here():
            return self._restored()
        before, is_moved = self.path, not self.journal.is_in_place()
        self._lock.close()
        try:
            self._occupy(before, is_known=not is_moved)
        except (ConfigError, OSError):
            beside = _unused(before)
            try:
                self._occupy(beside)
            except OSError as error:
                raise FileError.of(beside, error) from None
        if not is_moved and self.path == before:  # its lock alone was removed
            return self._restored()
        self.journal.path = self.results
        self._restored()
        where = "again" if self.path == before else f"to {self.path}"
        return [f"{before}: was moved or removed during the run; its files were written {where}"]

    def _restored(self) -> list[str]:
        happened = [self.journal.settle()]
        for name in [name for name in self._contents if not (self.path / name).exists()]:
            write_whole(self.path / name, self._contents[name])
            happened.append(f"{self.path / name}: was removed during the run; it was written again")
        return [sentence for sentence in happened if sentence]

    @property
    def config(self) -> str:
        """The text of `config.yaml`."""
        return self._contents.get("config.yaml", b"").decode()

    def _is_here(self) -> bool:
        """Whether the folder still stands where it was made, this run's lock in it."""
        mine = os.fstat(self._lock.fileno())
        try:
            found = (self.path / ".lock").stat()
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Let another run write to the folder."""
        self.journal.close()
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
    is_old = _holds_measured(entries)
    return [
        entry.name
        for entry in entries
        if entry.name not in _KEEPERS
        and not (is_old and _OF_PREDECESSOR.match(entry.name))
        and not (entry.is_dir() and not _foreign(entry))
    ]


def may_hold_pictures(folder: Path) -> bool:
    """Whether a folder holds a run, ours or the predecessor's, or its results alone."""
    return is_run_folder(folder) or _holds_measured(folder.iterdir())


def _holds_measured(entries: Iterable[Path]) -> bool:
    return any(_OF_PREDECESSOR.match(entry.name) and _is_measured(entry) for entry in entries)


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


def read_facts(run: Path) -> Facts:
    """What a run folder's `run.json` says; nothing where the run was killed before it was written.

    Raises:
        ResultsError: It is no JSON object, or says something of another kind than a run does.
    """
    if not os.path.lexists(run / "run.json"):
        return {}
    facts: Facts = read_object(run / "run.json")
    for key, kind in _FACTS.items():
        if key in facts and not isinstance(facts[key], kind):
            raise ResultsError(f"{run / 'run.json'}: {key}: {_KINDS[kind]} is expected, found {facts[key]!r}")
    for layer in facts.get("layers", ()):
        read_layer(layer, str(run / "run.json"))
    return facts


def _made(path: Path) -> Path:
    """Make a folder that no other run has: the path itself, or with the first number behind it that is free.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            found = path if number == 1 else path.with_name(f"{path.name}-{number}")
            with suppress(FileExistsError):
                found.mkdir()
                break
    except OSError as error:
        raise ConfigError(f"{path}: the run's folder cannot be written ({error.strerror})") from None
    return found


def _unused(path: Path) -> Path:
    """The path itself, or with the first number behind it that no file has."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found
