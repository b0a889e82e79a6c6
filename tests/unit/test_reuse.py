"""What prefix caching can save at best, where arms of an ablation ask the same prompt."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval_heads.prompts.reuse import Reuse
from retrieval_heads.runs.mask import Mask
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder
from toy_tokenizer import WordTokenizer

SUITE = """\
kind: ablate
haystack: pydoc
needles: [{needle: The ferry leaves at dawn., question: When?}]
sweep: {context_lengths: [200], document_depths: [50]}
ablate: {heads: [[0, 0], [0, 1]], top: [1, 2], draws: 1, mode: %s}
"""


@pytest.mark.parametrize("mode", ["zero", "mean", "uniform"])
def test_arms_that_mask_the_same_heads_share_a_cache(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE % mode, encoding="utf-8")
    suite = load_suite(file)
    masked = [cell for cell in suite.cells if "top" in cell.place.arm]
    assert len(masked) == 2
    for others, share in ((((0, 0),), True), (((0, 0), (0, 1)), False)):
        builder, reuse = CellBuilder(WordTokenizer(), {}, {}, 1 << 20), Reuse(1)
        saved = []
        for cell, heads in zip(masked, (((0, 0),), others), strict=True):
            request = builder.request(suite.question, cell, Mask(mode, heads))
            assert request.prefix is not None
            saved.append(reuse.add(request.prefix, len(request.ids)))
        assert saved == [0, len(request.ids) - 1 if share else 0]


def test_arms_whose_heads_are_not_known_yet_share_none(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE % "zero", encoding="utf-8")
    suite = load_suite(file)
    builder, reuse = CellBuilder(WordTokenizer(), {}, {}, 1 << 20), Reuse(1)
    requests = [builder.request(suite.question, cell) for cell in suite.cells if "top" in cell.place.arm]
    assert [reuse.add(one.prefix, len(one.ids)) for one in requests if one.prefix] == [0, 0]
