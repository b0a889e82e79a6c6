"""The file of `--rh-config`: settings for every suite, and maybe suites of its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pytest_retrieval_heads.options import Options, flag
from retrieval_heads.errors import ConfigError, RetrievalHeadsError
from retrieval_heads.matrix.settings import Matrix, read_matrix
from retrieval_heads.plain import Fields
from retrieval_heads.reading import path_of
from retrieval_heads.suites.reading import is_whole_suite, overlay, overrides, read_settings, read_suites, resolve
from retrieval_heads.suites.recognition import is_suite, is_yaml, kind_said
from retrieval_heads.suites.settings import Settings
from retrieval_heads.suites.suite import Suite, load_suites


class ConfigFile:
    """The session's config file, where there is one, with what `--rh-set` lays over it.

    Args:
        options: The session's.

    Raises:
        ConfigError: It cannot be read, or an override is none.
    """

    def __init__(self, options: Options) -> None:
        self._path = Path(options.config_file).absolute() if options.config_file else None
        self.data = read_settings(self._path) if self._path else {}
        """Its keys."""
        asked = read_suites(self._path) if self._path else {}
        if not asked and is_whole_suite(self.data):
            asked = {"": self.data}
        self._asked_kinds = {str(suite.get("kind", "niah")) for suite in asked.values()}
        """The kinds of suite that it asks itself."""
        self.sets = overrides(options.sets)
        """The keys of `--rh-set`."""
        self.matrix = _matrix(options)

    @property
    def settings(self) -> Settings:
        """Its settings with the overrides, without any suite's."""
        return resolve(overlay(self.data, self.sets), str(self._path or "--rh-set"))

    def is_mere_config(self, path: Path) -> bool:
        """Whether a file is the config, and none that says itself what to ask."""
        return path == self._path and not self._asked_kinds

    def replaces(self, path: Path) -> bool:
        """Whether it asks in place of a suite file: it holds a haystack, and that file is of its kind."""
        return path != self._path and kind_said(path) in self._asked_kinds

    def be_collected(self, config: pytest.Config) -> None:
        """Have pytest collect it where it holds suites, alone where no other path was asked for."""
        if not self._asked_kinds:
            return
        path, args = str(self._path), config.args
        if any(os.path.abspath(arg.partition("::")[0]) == path for arg in args):  # noqa: PTH100 - as pytest does
            return
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            args.clear()
        args.append(path)

    def over_suites(self, setting: str) -> Sequence[Fields]:
        """What is laid over each suite: the keys of the config, those of a setting, and those of `--rh-set`."""
        laid = self.matrix.settings.get(setting, {}) if self.matrix else {}
        return [self.data, laid, self.sets]

    def suites_in(self, path: Path) -> Mapping[str, Suite]:
        """The suites of a file by name, its own settings under the config's; see `load_suites`.

        Of a matrix each suite once for each setting, whose name is then that of the suite, or follows it.
        """
        if self.matrix is None:
            return load_suites(path, self.data, self.sets)
        read = {
            setting: load_suites(path, overlay(self.data, laid), self.sets)
            for setting, laid in self.matrix.settings.items()
        }
        self.matrix.check(read)
        return {
            f"{name}@{setting}" if name else setting: self.matrix.variant(suite, setting)
            for setting, suites in read.items()
            for name, suite in suites.items()
        }

    def suites_beside(self, collected: Iterable[Suite]) -> Iterator[Suite]:
        """Suites in the folders of collected ones that a path, `--ignore` or `--lf` kept out."""
        known = {suite.path for suite in collected}
        for folder in dict.fromkeys(path.parent for path in known):
            for path in sorted(folder.iterdir()):
                if path not in known and is_yaml(path) and is_suite(path):
                    with suppress(RetrievalHeadsError):  # one that cannot be read now is nobody's cells
                        yield from self.suites_in(path).values()


def _matrix(options: Options) -> Matrix | None:
    if options.matrix is None:
        return None
    for name in ("baseline", "save_baseline"):
        if getattr(options, name):
            raise ConfigError(f"{flag(name)}: a matrix compares settings with its own reference; give it no baseline")
    return read_matrix(options.base / path_of(options.matrix))
