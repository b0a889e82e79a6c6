"""What is built: an sdist that builds the same wheel as the checkout, with the licence and the starter files."""

from __future__ import annotations

import re
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import retrieval_heads
from retrieval_heads.engine.backends.versions import SUPPORTED

pytest.importorskip("hatchling", reason="building needs hatchling (the extra `test` has it)")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hatchling.builders.sdist import SdistBuilder

    return Path(next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("sdist")))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(ROOT, tmp_path_factory.mktemp("wheel"))


def contents(root: Path, folder: Path) -> dict[str, bytes]:
    """A wheel's files, built of a folder of sources."""
    from hatchling.builders.wheel import WheelBuilder

    built = next(WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"]))
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: dict[str, bytes], tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert contents(unpacked, tmp_path / "built") == wheel


def test_the_wheel_says_what_it_is(wheel: dict[str, bytes]) -> None:
    (metadata,) = (text.decode() for name, text in wheel.items() if name.endswith(".dist-info/METADATA"))
    told = Parser().parsestr(metadata)
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Author"] == "The retrieval-heads developers"
    assert told["Version"] == retrieval_heads.__version__
    assert "](docs/" not in metadata, "an index's page has no checkout beside it"
    lines = [line for line in told.get_all("Requires-Dist", []) if "extra" not in line]
    needed = {line.partition(">")[0].strip() for line in lines}
    assert {"numpy", "pytest-xdist", "pytest"} <= needed
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
    assert "retrieval_heads/starter/suites/niah/classic.yaml" in wheel
    assert "retrieval_heads/py.typed" in wheel


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == project["version"] == retrieval_heads.__version__
    assert cited["license"] == project["license"]


def test_the_site_has_every_page() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = {page for group in site["nav"] for page in _pages(group)}
    left_out = set(site["exclude_docs"].split())
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - left_out <= named


def _pages(entry: Any) -> set[str]:
    if isinstance(entry, str):
        return {entry}
    return {page for one in (entry.values() if isinstance(entry, dict) else entry) for page in _pages(one)}


def test_a_commit_is_checked_as_make_lint_does() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = {hook["entry"].replace(" --force-exclude", "") for repo in config["repos"] for hook in repo["hooks"]}
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert linted
    assert hooks == {line.strip().replace("$(bin)", ".venv/bin").removesuffix(" .") for line in linted[1].splitlines()}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image_holds_what_is_supported(name: str) -> None:
    text = (ROOT / name).read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"/src\[([a-z]+)\]", text):
        assert extra in extras
    for requirement in re.findall(r"'(nnsight[^']*)'", text):
        assert requirement in extras["cuda"]
    for pinned in re.findall(r"[a-z0-9-]+==[0-9.]+", text):
        assert pinned in (ROOT / "Makefile").read_text()
    oldest, newest = SUPPORTED
    for found in re.findall(r"vllm-openai:v(\d+)\.(\d+)\.", text):
        assert oldest <= tuple(map(int, found)) <= newest


def test_the_policy_says_what_the_metadata_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    policy = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert f"**Python** {versions[0]} to {versions[-1]}." in policy
    assert project["requires-python"] == f">={versions[0]}"
    (floor,) = (one.partition(">=")[2] for one in project["dependencies"] if one.startswith("pytest>="))
    assert f"**pytest** {floor} and newer" in policy
    assert f"**vLLM** {'.'.join(map(str, SUPPORTED[0]))} to {'.'.join(map(str, SUPPORTED[1]))}" in policy
