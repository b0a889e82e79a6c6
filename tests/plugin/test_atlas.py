"""An atlas: a folder of head scores that is the same whoever measures them again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from project import Project

from retrieval_heads.cli import main
from retrieval_heads.heads.formats import read_heads
from retrieval_heads.reading import read_object

NAMES = {
    "README.md",
    "atlas.json",
    "detect_heatmap.png",
    "head_scores.png",
    "heads.parquet",
    "samples.jsonl",
    "suite.yaml",
}


@pytest.fixture
def measured(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose suite was asked, with a haystack in a folder of its own."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    project.suite(
        "heads", kind="detect", sweep={"context_lengths": [128], "document_depths": [0, 50], "seeds": [*range(6)]}
    )
    project.behave(retrieval_heads=[[1, 1], [2, 3]])
    assert project.run().ret == 0
    monkeypatch.chdir(project.path)
    return project


def atlas(*arguments: object) -> None:
    main(["heads", "atlas", *map(str, arguments)])


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_an_atlas_is_rebuilt_from_its_card_with_the_same_hashes(
    measured: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    atlas(measured.latest, "--output", "first")
    first = digests(Path("first"))
    assert first.keys() == NAMES
    shutil.rmtree("suites")
    shutil.copy("first/suite.yaml", "again.yaml")
    assert measured.run("-n", "2", "again.yaml", config=False, suites=False).ret == 0
    atlas(measured.latest, "--output", "second")
    assert digests(Path("second")) == first
    capsys.readouterr()
    atlas(measured.latest, "--check", "first")
    assert "first: all 7 files are what" in capsys.readouterr().out
    atlas("--check", "first")
    assert "first: all 7 files are what its card says" in capsys.readouterr().out


def test_nothing_of_the_machine_is_in_it(measured: Project) -> None:
    atlas(measured.latest)
    for file in Path("atlas").iterdir():
        content = file.read_bytes()
        for private in (str(measured.path), str(Path.home()), "hf_abcdefghijklmnop", measured.latest.resolve().name):
            assert private.encode() not in content or len(private) < 6, (file, private)


def test_it_says_what_was_measured(measured: Project) -> None:
    atlas(measured.latest)
    content, heads = read_object(Path("atlas/atlas.json")), read_heads(Path("atlas/heads.parquet"))
    assert (content["asked"], content["cells"], content["counted"]) == (12, 12, 12)
    assert content["intervals"] == "intervals are over 1 needle and 6 texts"
    assert heads.table.ranked("copy")[:2] == [(1, 1), (2, 3)]
    assert heads.samples.figures["copy"].shape[0] == 12
    assert heads.samples.clusters[0] == heads.samples.clusters[1] != heads.samples.clusters[2]
    assert set(content["files"]) == NAMES - {"README.md", "atlas.json"}
    samples = [json.loads(line) for line in Path("atlas/samples.jsonl").read_text().splitlines()]
    assert tuple(sample["cell"] for sample in samples) == heads.samples.cells
    assert all(len(sample["prompt_sha256"]) == 64 for sample in samples)
    told = Path("atlas/README.md").read_text()
    for part in (
        "# Retrieval heads of toy: heads",
        "| 1-1 | 1.000 |",
        "arXiv 2404.15574",
        "stand-in 0",
        "pytest suite.yaml",
    ):
        assert part in told
    assert all(digest in told for digest in content["files"].values())


def test_a_file_that_was_changed_is_named(measured: Project, capsys: pytest.CaptureFixture[str]) -> None:
    atlas(measured.latest)
    with Path("atlas/samples.jsonl").open("a") as file:
        file.write("\n")
    Path("atlas/README.md").write_text("# Mine\n")
    for arguments in (("--check", "atlas"), (measured.latest, "--check", "atlas")):
        with pytest.raises(SystemExit) as caught:
            atlas(*arguments)
        assert caught.value.code == 1
        told = capsys.readouterr().out
        assert "atlas/samples.jsonl: is not the file that atlas.json has the hash of" in told
        assert "atlas/README.md: is not the card of atlas.json" in told


def test_a_run_that_measured_something_else_says_what(measured: Project, capsys: pytest.CaptureFixture[str]) -> None:
    atlas(measured.latest)
    measured.behave(retrieval_heads=[[0, 0]])
    measured.run()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        atlas(measured.latest, "--check", "atlas")
    told = capsys.readouterr().out
    assert "heads.parquet: differs" in told
    assert "samples.jsonl" not in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the run's folder is expected"),
        (("gone",), "gone: no such file or folder"),
        (
            ("reports/latest", "--suite", "other"),
            "--suite other: there is no detect suite of that name; there are heads",
        ),
        (("--check", "reports/latest"), "atlas.json: cannot be read"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(measured: Project, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        atlas(*arguments)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_stand_there_are_kept(measured: Project) -> None:
    atlas(measured.latest)
    with pytest.raises(SystemExit, match="stands there already"):
        atlas(measured.latest)
    atlas(measured.latest, "--overwrite")
    measured.suite("cells")
    measured.run("suites/niah/cells.yaml", suites=False)
    with pytest.raises(SystemExit, match="an atlas is of one detect suite, and the run holds no sample of one"):
        atlas(measured.latest, "--output", "other")
