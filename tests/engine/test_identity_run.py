"""On the real engine: whose answers a resumed run takes. Two engine starts beside that of `own_project`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import MODEL, Outcome, OwnProject, finished
from retrieval_heads.models import locate_model

pytestmark = pytest.mark.engine


def zero_output_projections(file: Path) -> int:
    """Every `o_proj` of a safetensors file set to 0 where it stands: size and header stay. Returns how many."""
    with file.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        places = [tensor["data_offsets"] for name, tensor in header.items() if "o_proj" in name]
        for start, end in places:
            stream.seek(8 + length + start)
            stream.write(bytes(end - start))
    return len(places)


@pytest.fixture
def resume(own_project: OwnProject, tmp_path: Path) -> Callable[..., Outcome]:
    """Goes on with a copy of the run of `own_project`."""
    folder = tmp_path / "own"
    shutil.copytree(own_project.suite.parent, folder, symlinks=True)
    arguments = [own_project.suite.name, "--rh-config", own_project.config.name, "-k", "len_300", "--rh-resume"]
    return lambda *settings: finished([*arguments, *(word for one in settings for word in ("--rh-set", one))], folder)


def test_the_same_weights_elsewhere_are_the_same_model_until_they_are_edited(
    resume: Callable[..., Outcome], own_project: OwnProject, tmp_path: Path
) -> None:
    copy = shutil.copytree(locate_model(MODEL), tmp_path / "copy")
    texts = {cell: record.text for cell, record in own_project.outcome.records.items() if "len_300" in cell}
    same = resume(f"model.model={copy}")
    assert "3 of 3 answers are those of the earlier run" in same.output
    assert "asked again" not in same.output
    assert {cell: same.records[cell].text for cell in texts} == texts

    assert zero_output_projections(copy / "model.safetensors") == 30
    edited = resume(f"model.model={copy}", "model.dtype=bfloat16")
    assert "0 of 3 answers are those of the earlier run" in edited.output
    again = edited.facts["asked_again"]
    assert [reason for reason in again if reason.startswith("model.weights/model.safetensors: ")]
    assert again["model.dtype: float32 then, bfloat16 now"] == 3
    assert set(again.values()) == {3}
    assert len(again) == 2
    assert not any(edited.records[cell].text == text for cell, text in texts.items())
