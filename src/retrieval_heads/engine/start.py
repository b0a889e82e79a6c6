"""What an engine is started with, and whether another was started with the same.

Imports neither torch nor vllm: whether a warm engine can be used is known before anything is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retrieval_heads.engine.backends.backend import find, reference_of
from retrieval_heads.engine.messages import Hello
from retrieval_heads.errors import ConfigError, EngineError
from retrieval_heads.models import PACKAGED, packaged_folder
from retrieval_heads.plain import Fields, Json, Plain
from retrieval_heads.redaction import is_secret_key, take_variable
from retrieval_heads.runs.fingerprint import model_files, stamp
from retrieval_heads.runs.identity import Difference, chooses_kernels, shown
from retrieval_heads.suites.settings import Engine, Settings
from retrieval_heads.version import __version__

_LIBRARIES = ("vllm", "torch", "nnsight", "transformers")
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "RAY_ADDRESS", "RH_CACHE")
"""Of the environment: which devices and which files, beside the variables that choose kernels."""


@dataclass(frozen=True, slots=True)
class StartedWith(Plain):
    """All that an engine's answers depend on, but for what it is asked: equal ones stand in for each other.

    Args:
        said: By name, such as `model.dtype`; without secrets, paths absolute.
        files: Of each file that its start reads, when it was written and how long it is.
    """

    said: Mapping[str, Json]
    files: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Fields, section: Engine, *, traced: bool) -> StartedWith:
        """What an engine would be started with now, by this process.

        Args:
            model: The `model` section of the settings.
            section: The `engine` section.
            traced: Whether heads are scored or masked.
        """
        said: dict[str, Json] = {
            "package": _package(),
            "python": sys.executable,
            **{name: found for name in _LIBRARIES if (found := _version(name))},
            "traced": traced,
            "engine.kind": section.kind,
            "engine.replicas": section.replicas,
            **{f"engine.{key}": value for key, value in _plain(section.options)},
            **{f"model.{key}": value for key, value in _plain(model)},
            **{name: os.environ[name] for name in sorted(os.environ) if chooses_kernels(name) or name in _VARIABLES},
        }
        return cls(said, _files(said))

    def now(self) -> StartedWith:
        """The same with its files as they are now."""
        return StartedWith(self.said, _files(self.said))

    def differences(self, needed: StartedWith) -> list[str]:
        """Why an engine that was started with this is not the one that is needed: a sentence for each key or file."""
        told = [
            Difference(key, *(shown(each.said.get(key, _NONE)) for each in (self, needed)))
            for key in dict.fromkeys([*needed.said, *self.said])
            if self.said.get(key, _NONE) != needed.said.get(key, _NONE)
        ]
        if told:  # the files are another model's
            return [one.sentence("there", "here") for one in told]
        paths = dict.fromkeys([*needed.files, *self.files])
        return [
            f"{path} has changed since it was read" for path in paths if self.files.get(path) != needed.files.get(path)
        ]

    def still_fits(self, settings: Settings) -> bool:
        """Whether settings, read again, still ask for this engine."""
        again = StartedWith.of(settings.model.model_dump(), settings.engine, traced=bool(self.said["traced"]))
        return again.said == self.said


_NONE = "none"


def hello_of(
    model: Fields, section: Engine, *, traced: bool, haystacks: Sequence[str] = (), is_resumed: bool = False
) -> Hello:
    """What an engine process is told, once it is seen that its backend is there and takes it.

    Args:
        model: The `model` section of the settings.
        section: The `engine` section.
        traced: Whether heads are scored or masked.
        haystacks: The sources that cells will name.
        is_resumed: Whether an earlier run is gone on with.

    Raises:
        ConfigError: There is no such backend, or no such variable as it names for its key.
        EngineError: It is not installed, or does not take the settings.
    """
    backend = find(section.kind)
    backend.check_installed(traced=traced)
    backend.check_arguments(model, section.options)
    return Hello(
        model=model,
        traced=traced,
        backend=reference_of(backend),
        options=_with_key(section.options),
        haystacks=tuple(haystacks),
        is_resumed=is_resumed,
        replicas=section.replicas,
        silence=section.silence,
        start_limit=section.start_limit,
        offline=backend.check_model(model),
    )


def _with_key(options: Fields) -> Fields:
    """What the `engine` section says to the backend, and the key that stands in the variable which it names.

    Raises:
        ConfigError: There is no such variable.
    """
    name = options.get("api_key_env")
    if name is None:
        return options
    if (key := take_variable(name)) is None:
        raise ConfigError(f"engine.api_key_env: the environment variable {name} is not set")
    return {**options, "api_key": key}


@cache
def _package() -> str:
    """This package's version and place, and when it was written last: an edited checkout is another one."""
    folder = Path(__file__).parents[1]
    written = max(file.stat().st_mtime_ns for file in folder.rglob("*.py"))
    return f"{__version__} in {folder}, written {written / 1e9:.3f}"


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _plain(section: Fields) -> Iterator[tuple[str, Json]]:
    for key, value in section.items():
        if value not in (None, {}, []) and not is_secret_key(key):
            yield key, _absolute(value)


def _absolute(value: Json) -> Json:
    """With paths that exist as absolute ones: another run may be called in another folder."""
    if isinstance(value, str):
        path = os.path.expanduser(value)  # noqa: PTH111 - as the next, which takes texts that are no path
        return str(Path(path).resolve()) if path and os.path.exists(path) else value  # noqa: PTH110
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    if isinstance(value, dict):
        return {key: _absolute(one) for key, one in value.items() if not is_secret_key(key)}
    return value


def _files(said: Mapping[str, Json]) -> dict[str, tuple[int, ...]]:
    """The files that the settings name: of a model's folder, of adapters, a chat template."""
    found: dict[str, tuple[int, ...]] = {}
    for key, value in said.items():
        if key.startswith(("model.", "engine.")):
            for path in _paths(value):
                found |= {str(file): stamp(file) for file in model_files(path).values()}
    return found


def _paths(value: Json) -> Iterator[Path]:
    if isinstance(value, str) and value in PACKAGED:
        try:
            folder = packaged_folder(value)
        except EngineError:  # its package is not there any more
            return
        if folder.is_dir():
            yield folder
    elif isinstance(value, str):
        if os.path.isabs(value) and os.path.exists(value):  # noqa: PTH110, PTH117
            yield Path(value)
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _paths(one)
