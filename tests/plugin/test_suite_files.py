"""Which files of a folder run are collected, and what is said of those that were meant and are none."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from project import Project


def content(project: Project, **keys: object) -> dict[str, object]:
    """What the project's suite says."""
    data = yaml.safe_load(project.suite().read_text("utf-8"))
    (project.path / "suites/niah/tale.yaml").unlink()
    return {**data, **keys}


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("a.yml", "kind: niah"),
        ("a.YAML", "kind: niah"),
        ("a.Yml", "'kind': niah"),
        ("config.yaml", "kind: niah"),
        ("a.yaml", "kind : niah"),
        ("a.yaml", "kind: !!str niah"),
        ("a.yaml", "? kind\n: niah"),
    ],
)
def test_a_suite_is_collected_however_it_is_written(project: Project, name: str, new: str) -> None:
    text = yaml.safe_dump(content(project), sort_keys=False)
    assert "kind: niah" in text
    project.write(f"suites/niah/{name}", text.replace("kind: niah", new))
    project.write("suites/niah/.lock", "")
    project.run("--co", "-q").stdout.fnmatch_lines([f"suites/niah/{name}::niah[[]len_256-depth_100]"])


@pytest.mark.parametrize("form", ["json", "flow", "indented", "utf-16", "utf-8-sig"])
def test_a_suite_is_collected_in_every_form(project: Project, form: str) -> None:
    data = content(project)
    plain = yaml.safe_dump(data, sort_keys=False)
    forms = {
        "json": json.dumps(data),
        "flow": yaml.safe_dump(data, default_flow_style=True),
        "indented": "".join(f"   {line}\n" for line in plain.splitlines()),
    }
    file = project.write("suites/niah/a.yaml", "")
    file.write_bytes(forms.get(form, plain).encode(form if "utf" in form else "utf-8"))
    project.run().assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: niahh\n", "a.yaml:1: kind: input should be 'niah', 'detect', 'ablate' or 'compress', found 'niahh'"),
        ("kind: Niah\n", "a.yaml:1: kind: input should be 'niah', 'detect', 'ablate' or 'compress', found 'Niah'"),
        ("kind: niah\nneedles: [\n", "a.yaml:3: not valid YAML: "),
        ("kind: niah\n---\nkind: niah\n", "a.yaml:2: not valid YAML: "),
        ("- kind: niah\n", "a.yaml: a mapping of sections is expected, found list"),
        ("ours:\n  kind: niah\n  haystack: pydoc\n", "a.yaml:1: ours: unknown key"),
        ("kind: niah\nkind: niah\n", "a.yaml:2: kind: this key is given twice, on lines 1 and 2"),
    ],
)
def test_what_was_meant_as_a_suite_says_why_it_is_none(project: Project, text: str, told: str) -> None:
    project.suite()
    project.write("suites/a.yaml", text)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert any(told in line for line in result.outlines), result.outlines
    assert project.starts == []


def test_yaml_of_others_is_left_alone(project: Project) -> None:
    project.suite()
    project.write("suites/pod.yaml", "kind: Service\nmetadata: {name: niah}\n---\nkind: Pod\n")
    project.write("suites/tags.yaml", "kind: !Sub niah-detect\nvalue: !Ref niah\n")
    project.write("suites/broken.yaml", "kind: {{ .Values.niah }\n")
    project.write("suites/table.yaml", "kind: Table\nhaystack: 3\n")
    project.write("suites/fake.json", '{"kind": "niah"}')
    project.run().assert_outcomes(passed=6)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_runs_folder_is_not_collected_wherever_it_was_put(project: Project, hidden: bool) -> None:
    project.suite()
    project.run().assert_outcomes(passed=6)
    kept = project.path / "suites" / "kept"
    shutil.copytree(project.latest, kept)
    if not hidden:  # as tools that store artifacts leave such files out
        (kept / ".lock").unlink()
    project.run().assert_outcomes(passed=6)
    # Out of the folder it is a suite, and of the same name.
    shutil.copy(kept / "config.yaml", project.path / "suites" / "again.yaml")
    (project.path / "suites" / "niah" / "tale.yaml").unlink()
    project.run().assert_outcomes(passed=6)


def test_a_config_beside_the_suites_is_none_of_them(project: Project) -> None:
    project.suite()
    needles = [{"needle": "The key is under the mat.", "question": "Where is the key?"}]
    project.write("suites/config.yaml", {"model": {"model": "toy"}, "needles": needles})
    result = project.run("--rh-config", "suites/config.yaml", config=False)
    assert result.parseoutcomes()["failed"] == 6  # the stand-in knows the ferry alone


def test_validate_finds_what_pytest_collects(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    from retrieval_heads.cli import main

    project.write("suites/niah/a.YML", json.dumps(content(project)))
    main(["validate", "suites"])
    assert "niah/a  (suites/niah/a.YML)" in capsys.readouterr().out
