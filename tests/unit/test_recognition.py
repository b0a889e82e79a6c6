"""Which YAML files are suites, by what they say and not by how it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_heads.suites.recognition import find_suites, is_suite, kind_said

ASKS = "haystack: pydoc\nneedles: [{needle: The ferry leaves at dawn., question: When?}]\n"


def said(tmp_path: Path, content: str | bytes, name: str = "suite.yaml") -> str | None:
    """What a file of that content says of its kind."""
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return kind_said(file)


@pytest.mark.parametrize(
    "head",
    [
        "kind: niah",
        '"kind": niah',
        "'kind' : 'niah'",
        "kind : niah",
        "kind: !!str niah",
        "kind: &kind niah",
        "kind:\n  niah",
        "? kind\n: niah",
        "%YAML 1.1\n---\nkind: niah",
        "# kind: Deployment\nkind:   niah   # ours",
        "<<: {kind: niah}",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_a_kind_however_it_is_written(tmp_path: Path, head: str, encoding: str) -> None:
    assert said(tmp_path, f"{head}\n{ASKS}".encode(encoding)) == "niah"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"haystack": "pydoc", "kind": "niah"}),
        json.dumps({"haystack": "pydoc", "kind": "niah"}, indent=1).replace("\n", "\r\n"),
        "{kind: niah, haystack: pydoc}",
        "  kind: niah\n  haystack: pydoc\n",
        "--- {kind: niah}",
        "kind: niah\n...\n",
        ASKS,
    ],
)
def test_a_whole_however_it_is_written(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, text) == "niah"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("kind: detect\n", "detect"),
        ("kind: ablate\n", "ablate"),
        ("from_results: [a.jsonl]\n", "detect"),
        ("suites: {niah/a: {haystack: pydoc}}\n", "niah"),
        # Slips: reading the file says what is accepted.
        ("kind: niahh\n", "niahh"),
        ("kind: NIAH\n", "NIAH"),
        ("kind: detct\n" + ASKS, "detct"),
        ("kind: retrieval\n" + ASKS, "retrieval"),
        ("kind: [niah]\n" + ASKS, ""),
        # What was meant as a suite and is none.
        ("kind: niah\nhaystack: [pydoc\n", "niah"),
        ('  "kind" : "niah"\n haystack: pydoc\n', "niah"),
        ("kind: niah\n---\nkind: niah\n", ""),
        ("apiVersion: v1\n---\nkind: niah\n", ""),
        ("- kind: niah\n  haystack: pydoc\n", ""),
        ("mine:\n  kind: niah\n  haystack: pydoc\n", ""),
    ],
)
def test_other_kinds_and_what_was_meant_as_a_suite(tmp_path: Path, text: str, kind: str) -> None:
    assert said(tmp_path, text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "services: {web: {image: niah}}\n",
        "kind: Deployment\n",
        "apiVersion: v1\nkind: Service\nmetadata: {name: niah}\n---\nkind: Pod\nspec: {detect: true}\n",
        "kind: Table\nname: needles\n",
        "kind: Detector\nkinds: [detect]\n",
        "jobs: {detect: {kind: detect}}\n",
        "- {kind: detect, model: yolo}\n",
        "haystack: {haystack_dir: tales}\nsweep: {}\n",  # the predecessor's config, which --rh-config names
        "a: !Ref niah\nkind: !Sub x\n",
        "a: {{ .Values.niah }}\nkind: {{ .Values.kind }}\n",
        "# kind: niah\nname: other\n",
        "text: |\n  kind: niah\nname: other\n",
        "[1,\n",
        "",
        "\0\0",
        b"\x89PNG kind niah",
        "a: &a {<<: *a, kind: niah}\n",
        "kind: &a [*a]\n",
    ],
)
def test_yaml_of_others_is_left_alone(tmp_path: Path, text: str | bytes) -> None:
    assert said(tmp_path, text) is None


def test_a_merge_bomb_is_looked_through_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: niah}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 40)]
    assert said(tmp_path, "\n".join([*lines, "<<: *a39", "kind: x"])) is None


def test_of_a_huge_file_the_start_is_read(tmp_path: Path) -> None:
    rows = "- {kind: other, row: niah}\n" * 300_000
    assert said(tmp_path, rows) is None
    assert said(tmp_path, f"kind: niah\nrows:\n{rows}") == "niah"


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "suite.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert find_suites(tmp_path) == []
    assert kind_said(tmp_path / "nowhere.yaml") is None


def test_suites_are_found_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yml", "c.YAML", "d.Yml", "e.json", "f.txt"):
        (tmp_path / name).write_text("kind: niah\n")
    assert [path.name for path in find_suites(tmp_path)] == ["a.yaml", "b.yml", "c.YAML", "d.Yml"]


def test_a_runs_own_config_is_no_suite_and_a_users_is(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("kind: niah\n")
    for name in (".lock", "results.jsonl"):
        assert is_suite(file)
        (tmp_path / name).write_text("")
    assert is_suite(file)
    (tmp_path / "engine.log").write_text("")  # as a run of 0.1.0 leaves them
    assert not is_suite(file)


def test_yaml_of_others_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {web: {image: kind}}\n")
    code = "import sys, pathlib; from retrieval_heads.suites.recognition import find_suites; "
    code += "find_suites(pathlib.Path(sys.argv[1]))"
    code += "; assert not {'yaml', 'pydantic', 'retrieval_heads.runs.folder'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
