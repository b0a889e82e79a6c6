"""The short-lived folder of one engine process: its socket and what goes with it, for one user's eyes.

Each holds a lock for as long as the process that made it lives, however that ends. The next to be made removes the
folders whose lock nobody holds any more.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from retrieval_heads.errors import EngineError

_PREFIX = "rh-"
KEPT = "rh-warm-"
"""Begins the name of a warm engine's folder, by which others find it."""
_LOCK = "owner.lock"
_LONGEST = 107
"""Bytes of a UNIX socket's path."""
_ROOM = len("/rh-12345678/rh-12345678/engine.sock")
"""What stands behind the temporary folder in a replica's."""
_SHORT: Sequence[str] = ("/tmp", "/var/tmp", "/dev/shm")


class PrivateFolder:
    """A folder of mode 0700 with a short name, gone with `remove` or, after a kill, when the next one is made.

    Args:
        within: The folder of an engine process that makes this one for a replica; else the system's temporary folder.
        prefix: What its name begins with.

    Raises:
        EngineError: There is no place for it.
    """

    def __init__(self, within: Path | None = None, prefix: str = _PREFIX) -> None:
        base = within or _base(_room(prefix))
        if within is None:
            sweep(base)
        try:
            self.path, self._lock = _made(base, prefix)
        except OSError as error:
            raise EngineError(f"{base}: no temporary folder can be made there ({error.strerror})") from None

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def kept_folders() -> Iterator[Path]:
    """The folders of warm engines, of every user, the makers of this user's alive."""
    with suppress(OSError):
        for entry in sorted(os.scandir(_base(_room(KEPT))), key=lambda entry: entry.name):
            if entry.name.startswith(KEPT) and entry.is_dir(follow_symlinks=False):
                path = Path(entry.path)
                if not is_own(path) or has_maker(path):
                    yield path


def is_own(folder: Path) -> bool:
    """Whether a folder is this user's, and nobody else can enter it."""
    told = folder.lstat()
    return told.st_uid == os.getuid() and not told.st_mode & 0o077


def has_maker(folder: Path) -> bool:
    """Whether the process lives that made a folder of this user's."""
    try:
        with open(folder / _LOCK, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may look at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _made(base: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        with suppress(FileNotFoundError):  # swept before it was locked
            lock = open(path / _LOCK, "wb", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.fstat(lock.fileno()).st_nlink:
                return path, lock
            lock.close()


def sweep(base: Path) -> None:
    """Remove the folders of this user whose makers are gone."""
    with suppress(OSError):
        for entry in list(os.scandir(base)):
            if entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError):  # somebody else sweeps too
                    _remove_if_dead(Path(entry.path))


def _remove_if_dead(folder: Path) -> None:
    if folder.lstat().st_uid != os.getuid():
        return
    with open(folder / _LOCK, "rb+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as lock:
        if not stat.S_ISREG(os.fstat(lock.fileno()).st_mode):
            return
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def _room(prefix: str) -> int:
    return _ROOM + len(prefix) - len(_PREFIX)


def _base(room: int) -> Path:
    """The temporary folder, or a shorter one where a socket's path would be too long in it.

    Raises:
        EngineError: There is none.
    """
    for base in _bases(room):
        return base
    raise EngineError(f"TMPDIR={tempfile.gettempdir()} is too long for a socket's path; set it to a shorter folder")


def _bases(room: int) -> Iterator[Path]:
    try:
        usual = Path(tempfile.gettempdir()).absolute()
    except FileNotFoundError as error:
        raise EngineError(f"{error.strerror}; set TMPDIR to a folder that can be written") from None
    if len(os.fsencode(usual)) + room <= _LONGEST:
        yield usual
    yield from (Path(short) for short in _SHORT if os.access(short, os.W_OK | os.X_OK))
