"""Every command of the README, the docs and the workflows is one that the programs take, parsed and not run.

Those that need neither a GPU nor a model are run by `tests/plugin/test_typed_commands.py`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tyro

from documented import PAGES, ROOT, arguments_of, commands
from retrieval_heads.cli import main
from retrieval_heads.commands.flags import setting_flags, split_settings
from retrieval_heads.commands.session import KINDS, MATRIX, TASKS, Matrix
from retrieval_heads.commands.validate import Validate


def each(program: str) -> pytest.MarkDecorator:
    """The pages' commands of a program, one test each."""
    told = [pytest.param(command, id=f"{page}: {command[:70]}") for page, command in commands(program)]
    return pytest.mark.parametrize("command", told)


class Parsed(Exception):
    """The program took the command."""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever parses its command line goes no further."""
    parse, parse_one_of = tyro.cli, tyro.extras.subcommand_cli_from_dict

    def cli(*given: Any, **named: Any) -> NoReturn:
        parse(*given, **named)
        raise Parsed

    def one_of(*given: Any, **named: Any) -> NoReturn:
        parse_one_of(*given, **named)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", one_of)


def test_there_are_commands() -> None:
    assert len(commands("pytest", "retrieval-heads")) > 60
    assert len(commands("python")) > 20


@each("pytest")
def test_pytest_takes_it(command: str, request: pytest.FixtureRequest) -> None:
    known, unknown = request.config._parser.parse_known_and_unknown_args(arguments_of(command))
    assert unknown == []
    for said in known.file_or_dir:
        path = said.partition("::")[0]
        is_ours = path.startswith(("suites/", "tests/")) and not path.startswith("suites/mine")
        assert not is_ours or list(ROOT.glob(path)), path
    if (known.rh_config or "").startswith("configs/"):
        assert (ROOT / known.rh_config).exists()


@each("retrieval-heads")
@pytest.mark.usefixtures("parsed")
def test_the_program_takes_it(command: str) -> None:
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


@each("python")
def test_the_script_takes_it(command: str) -> None:
    # Not parsed: some of them measure as they are imported, and most import torch or vLLM first.
    script, *arguments = arguments_of(command)
    source = (ROOT / script).read_text(encoding="utf-8")
    for said in [one for one in arguments if one.startswith("--")]:
        name = said.removeprefix("--")
        assert re.search(rf"\b({name}|{name.replace('-', '_')})\b", source), said
    parts = arguments[arguments.index("--only") + 1 :] if "--only" in arguments else arguments[:1]
    for said in [one for one in parts if one.islower() and not one.startswith("--")]:
        assert re.search(rf"\b{said}\b", source), said


@each("docker")
def test_an_image_is_built_of_a_file_and_run_as_pytest(command: str, request: pytest.FixtureRequest) -> None:
    said = arguments_of(command)
    if said[0] == "build":
        assert (ROOT / (said[said.index("-f") + 1] if "-f" in said else "Dockerfile")).exists()
    else:
        image = next(place for place, one in enumerate(said) if one.startswith("retrieval-heads"))
        known, unknown = request.config._parser.parse_known_and_unknown_args(said[image + 1 :])
        assert unknown == []
        assert all((ROOT / path).exists() for path in [*known.file_or_dir, known.rh_config])


@each("make")
def test_make_has_it(command: str) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = [word for word in arguments_of(command) if "=" not in word]
    assert set(wanted) <= set(targets)


@each("pip")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    there = {path.name for path in (ROOT / "tests").rglob("*.py")}
    assert set(re.findall(r"\btest_\w+\.py\b", text)) <= there
    for path in re.findall(r"`((?:tests|benchmarks|suites|configs)/[\w/.-]+\.(?:py|yaml|yml|jsonl))`", text):
        assert (ROOT / path).exists() or path.startswith("suites/mine"), path
