"""What the README and the docs tell a reader to type is run as it stands, where it needs neither GPU nor model."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from project import Project

import retrieval_heads.prompts.tokenizer
from documented import arguments_of, commands
from retrieval_heads.cli import main
from retrieval_heads.commands.session import KINDS, MATRIX, pytest_arguments
from toy_tokenizer import WordTokenizer

ONE = {"context_lengths": [128], "document_depths": [0]}
HEADS = [[1, 2], [2, 0]]
SUITES: dict[str, dict[str, Any]] = {
    "niah/classic": {"sweep": {"context_lengths": [4000, 4096], "document_depths": [5, 50]}},
    "niah/demo": {"sweep": {"context_lengths": [1024], "document_depths": [50]}},
    "niah/ci": {"sweep": {"context_lengths": [128], "document_depths": [0, 50]}},
    "detect/demo": {"sweep": {"context_lengths": [128], "document_depths": [0, 50]}},
    "ablate/demo": {"ablate": {"heads": "detect/demo", "top": [1], "draws": 1}},
    "compress/heads": {"kind": "detect"},
    "compress/demo": {
        "compress": {"heads": "detect/heads", "scores": ["copy"], "keep": [1.0, 0.5], "sink": 4, "recent": 32}
    },
}
ASKED = ("suites/niah", "suites/detect", "suites/ablate", "suites/compress")
"""Suites of this project; those of others in the docs are asked by the tests of their tasks."""
NOT_RUN = {
    "retrieval-heads engine start": "a process that stays: test_warm_engine.py",
    "--rh-engine keep": "a process that stays: test_warm_engine.py",
    "retrieval-heads models --check": "of a model: tests/engine/test_models.py, tests/unit/test_located_models.py",
    "retrieval-heads compare BASELINE": "names no run",
    "--cell niah/PaulGrahamEssays/": "a cell of the shipped suite",
    "heads agree reports/latest duo published.json": "names a file of others",
    "suites/detect/definitions.yaml": "tests/engine: the scores of a real engine",
    "suites/ablate/definitions.yaml": "tests/engine: the scores of a real engine",
}


AS_TYPED = {"config": False, "suites": False}


def typed(*programs: str) -> list[str]:
    return [
        command
        for command in dict.fromkeys(command for _, command in commands(*programs))
        if not any(part in command for part in NOT_RUN)
    ]


def sessions() -> list[list[str]]:
    """pytest's arguments of every command that becomes a session of this project's suites, in the pages' order."""
    made: list[list[str]] = []
    for command in typed("pytest", "retrieval-heads"):
        arguments = arguments_of(command)
        if command.startswith("retrieval-heads") and arguments[0] in (*KINDS, MATRIX):
            made.append(pytest_arguments(arguments[0], arguments[1:], "retrieval-heads"))
        elif command.startswith("pytest") and all(one.startswith(ASKED) for one in arguments if "suites/" in one):
            made += [arguments] if "suites/" in arguments[0] else []
    # What --rh-report draws takes three seconds each time: other tests see it.
    plain = dict.fromkeys(tuple(one for one in arguments if one != "--rh-report") for arguments in made)
    return list(map(list, plain))


@pytest.fixture
def reader(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project of somebody who reads the docs: suites and configs of their names, asked of the stand-in engine."""
    project.behave(retrieval_heads=HEADS, kv_heads=2)
    for place, keys in SUITES.items():
        kind = place.partition("/")[0]
        written = project.suite("typed", **{"kind": kind, "sweep": ONE} | keys)
        project.write(f"suites/{place}.yaml", written.read_text())
        written.unlink()
    for name in ("qwen", "smollm2"):
        project.write(f"configs/{name}.yaml", {"model": {"model": "toy"}})
    project.write("kv.yaml", {"matrix": {"reference": {}, "fp8": {"model": {"kv_cache_dtype": "fp8"}}}})
    monkeypatch.chdir(project.path)
    return project


def test_what_asks_is_run(reader: Project) -> None:
    asked = sessions()
    assert len(asked) > 15
    for arguments in asked:
        result = reader.run(*arguments, **AS_TYPED)
        assert result.ret == 0, shlex.join(arguments)
        assert result.parseoutcomes().keys() & {"passed", "xfailed"}, shlex.join(arguments)


def test_what_works_on_stored_files_is_run(reader: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.behave(retrieval_heads=HEADS, kv_heads=2, takes_start_token=False)
    tokenizer = WordTokenizer()
    tokenizer.bos_token_id = None  # as the stand-in's
    for name, value in {"load_tokenizer": tokenizer, "load_generation": None, "kv_bytes_per_token": 1024}.items():
        monkeypatch.setattr(retrieval_heads.prompts.tokenizer, name, lambda model, value=value: value)
    assert (
        reader.run("suites/niah/classic.yaml", "suites/detect", "--rh-config", "configs/qwen.yaml", **AS_TYPED).ret == 0
    )
    shutil.copytree(reader.latest, "reports/main")
    ran = 0
    for command in typed("retrieval-heads"):
        arguments = arguments_of(command)
        if arguments[0] in (*KINDS, MATRIX):
            continue
        ran += 1
        # The stand-in has four heads in a layer, of two KV heads; SmolLM2 nine of three.
        main([{"3": "2", "9": "4"}.get(argument, argument) for argument in arguments])
    assert ran > 10
    for made in ("report.html", "atlas/README.md", "agreement.png", "press.py", "from-duo.json"):
        assert Path(made).exists(), made
