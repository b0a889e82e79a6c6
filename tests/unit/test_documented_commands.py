"""Every command of the README, the docs and the workflows is one that the programs take, parsed and not run."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro

from retrieval_heads.cli import main
from retrieval_heads.commands.flags import setting_flags, split_settings
from retrieval_heads.commands.session import KINDS, MATRIX, TASKS, Matrix
from retrieval_heads.commands.validate import Validate

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / ".github/workflows").glob("*.yml")),
]
PROGRAMS = ("pytest", "retrieval-heads", "retrieval-heads.niah", "retrieval-heads.detect", "make", "pip")
_FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:pytest|retrieval-heads) [^`]+)`")
_OPEN = ("...", "…", "<", " [", "SUBCOMMAND", "ARGUMENTS", "BEFORE")
"""What stands in a command that is a form, and none to type."""


def commands() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = [text] if page.suffix == ".yml" else _FENCE.findall(text)
        lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
        lines += [] if page.suffix == ".yml" else [re.sub(r"\s+", " ", said) for said in _INLINE.findall(text)]
        for line in dict.fromkeys(lines):
            told = re.sub(r"^\s*(- )?(run: )?(\$ )?(\.venv/bin/)?", "", line)
            is_name = re.fullmatch(r"(retrieval-heads|pytest)( [a-z-]+)*( --[a-z-]+)?", told)
            if told.split(" ")[0] not in PROGRAMS or is_name or any(mark in told for mark in _OPEN):
                continue
            yield pytest.param(told, id=f"{page.name}: {told[:70]}")


class Parsed(Exception):
    """The program took the command."""


def arguments_of(command: str) -> list[str]:
    return shlex.split(command.partition(" && ")[0].partition(" | ")[0], comments=True)[1:]


def test_there_are_commands() -> None:
    assert len(list(commands())) > 60


@pytest.mark.parametrize("command", [one for one in commands() if str(one.values[0]).startswith("pytest")])
def test_pytest_takes_it(command: str, request: pytest.FixtureRequest) -> None:
    known, unknown = request.config._parser.parse_known_and_unknown_args(arguments_of(command))
    assert unknown == []
    for said in known.file_or_dir:
        path = said.partition("::")[0]
        assert not path.startswith("suites/") or (ROOT / path).exists() or path.startswith("suites/mine"), path
    for config in known.rh_config or ():
        if str(config).startswith("configs/"):
            assert (ROOT / config).exists(), config


@pytest.mark.parametrize("command", [one for one in commands() if str(one.values[0]).startswith("retrieval-heads")])
def test_the_program_takes_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parse, parse_one_of = tyro.cli, tyro.extras.subcommand_cli_from_dict

    def cli(*given: Any, **named: Any) -> NoReturn:
        parse(*given, **named)
        raise Parsed

    def one_of(*given: Any, **named: Any) -> NoReturn:
        parse_one_of(*given, **named)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", one_of)
    arguments = arguments_of(command)
    if command.startswith("retrieval-heads."):
        arguments = [command.split(" ")[0].partition(".")[2], *arguments]
    if arguments == ["--version"] or arguments[-1:] == ["--help"]:
        return
    with pytest.raises(Parsed):
        main(arguments)
    kinds: dict[str, type[Any]] = {**KINDS, **TASKS, MATRIX: Matrix, "validate": Validate}
    if (kind := arguments[0]) in kinds:
        ours = arguments[1 : arguments.index("--")] if "--" in arguments else arguments[1:]
        known = [line.split()[0] for line in setting_flags()]
        for flag in [one.partition("=")[0] for one in split_settings(ours, kinds[kind])[1] if one.startswith("--")]:
            is_open = flag.startswith(("--model.", "--generation.", "--task.", "--engine."))
            assert is_open or flag.replace(".no-", ".") in known, flag


@pytest.mark.parametrize("command", [one for one in commands() if str(one.values[0]).startswith("make")])
def test_make_has_it(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = [word for word in arguments_of(command) if "=" not in word]
    assert set(wanted) <= set(targets)


@pytest.mark.parametrize("command", [one for one in commands() if str(one.values[0]).startswith("pip")])
def test_pip_finds_what_it_installs(command: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for said in re.findall(r"\[([a-z,-]+)\]", command):
        assert set(said.split(",")) <= project["optional-dependencies"].keys()
    assert f"install '{project['name']}" not in command, "no index has it yet"


def test_every_setting_is_told_where_help_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["niah", "--help"])
    assert end.value.code in (0, None)
    told = capsys.readouterr().out
    for flag in ("--sweep.context-lengths", "--scoring.metric", "--engine.silence", "--model.KEY", "--output-dir"):
        assert flag in told
    assert "--sweep.context-lengths.min" not in told, "it may be a list"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    main(["--version"])
    assert capsys.readouterr().out == f"retrieval-heads {version}\n"
