"""The answers of a run are those of plain `vllm.LLM.generate` on the same token ids, in float32."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream

from conftest import SMALL_CACHE, run_script
from retrieval_heads.engine.backends.vllm import primed_stream
from retrieval_heads.models import locate_model
from retrieval_heads.prompts.prompt import hash_ids
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.record import Record
from retrieval_heads.suites.reading import read_settings
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from conftest import OwnProject

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def answered(own_project: OwnProject) -> list[Record]:
    """The records of the cells that were asked."""
    return [record for record in own_project.outcome.records.values() if record.status in ("pass", "low")]


@pytest.fixture(scope="module")
def builder(own_project: OwnProject, tokenizer: PreTrainedTokenizerBase) -> CellBuilder:
    return CellBuilder(tokenizer, {}, {}, own_project.max_model_len)


@pytest.fixture(scope="module")
def rebuilt(own_project: OwnProject, builder: CellBuilder) -> dict[str, Request]:
    """Each cell's request, built again in this process from suite and config alone."""
    suite = load_suite(own_project.suite, read_settings(own_project.config))
    fitting = (cell for cell in suite.cells if cell.place.get("length") < own_project.max_model_len)
    return {cell.id: builder.request(suite.question, cell) for cell in fitting}


@pytest.fixture(scope="module")
def plain_answers(rebuilt: dict[str, Request], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What plain vLLM says to the same ids, by cell."""
    folder = tmp_path_factory.mktemp("plain")
    asked = {
        "engine_args": {
            "model": locate_model("SmolLM2-135M-Instruct"),
            "dtype": "float32",
            "max_model_len": 1024,
            "enforce_eager": True,
            **SMALL_CACHE,
        },
        "prompts": [request.ids for request in rebuilt.values()],
        "sampling": {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True},
    }
    (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    run_script("plain_vllm.py", folder / "asked.json", folder / "answered.json", is_real=True)
    answers = json.loads((folder / "answered.json").read_text(encoding="utf-8"))
    return dict(zip(rebuilt, answers, strict=True))


def test_every_cell_that_fits_was_answered(answered: list[Record], rebuilt: dict[str, Request]) -> None:
    assert [record.cell for record in answered] == list(rebuilt)
    assert len(answered) == 6


def test_recorded_prompts_have_the_length_asked(answered: list[Record], rebuilt: dict[str, Request]) -> None:
    for record in answered:
        assert record.prompt_tokens == record.context_length == len(rebuilt[record.cell].ids)


def test_recipes_name_the_ids_that_the_library_builds(answered: list[Record], rebuilt: dict[str, Request]) -> None:
    for record in answered:
        request = rebuilt[record.cell]
        assert record.recipe is not None
        assert record.recipe.model_dump(exclude_none=True) == request.facts.recipe.model_dump(exclude_none=True)
        assert record.recipe.prompt_hash == hash_ids(request.ids)
        assert record.needle_span == request.facts.needle_span
        assert record.question_span == request.facts.question_span


def test_records_alone_give_the_same_ids(
    answered: list[Record], rebuilt: dict[str, Request], builder: CellBuilder
) -> None:
    for record in answered:
        assert builder.stored(record).ids == rebuilt[record.cell].ids


def test_answers_equal_those_of_plain_vllm(answered: list[Record], plain_answers: dict[str, dict[str, Any]]) -> None:
    ours = {record.cell: {"text": record.text, "token_ids": record.token_ids} for record in answered}

    assert ours == plain_answers
    assert all(len(record.token_ids) == 40 for record in answered)


def test_cells_of_one_length_share_their_start_in_the_prefix_cache(answered: list[Record]) -> None:
    cached = {(record.context_length, record.document_depth): record.cached_tokens for record in answered}

    assert cached[300, 0] == 0
    assert all(tokens is not None and tokens % 128 == 0 for tokens in cached.values())
    # Up to the needle of the cell before: half of 600 tokens, in whole blocks.
    assert cached[600, 100] == 256


def test_text_after_the_prompts_last_tokens_is_that_after_all_of_them(tokenizer: PreTrainedTokenizerBase) -> None:
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    words = "The key, naïve and small — żółć, 你好世界, 한국어, ελληνικά, 🙂🙃 — lies in\n\n  a 'brass' telescope. " * 8
    ids: list[int] = tokenizer.encode(words)

    def said(answer: list[int], stream: Any) -> str:
        return "".join(stream.step(backend, token) or "" for token in answer)

    clean = [cut for cut in range(40, len(ids) - 40) if not tokenizer.decode(ids[:cut]).endswith("\ufffd")]
    assert len(clean) > 100
    for cut in clean:
        before, answer = ids[:cut], ids[cut : cut + 40]
        whole = DecodeStream(ids=before, skip_special_tokens=True)
        assert said(answer, primed_stream(backend, before, True)) == said(answer, whole)


def test_where_the_last_tokens_tell_too_little_the_whole_prompt_is_decoded() -> None:
    """Llama 2's kind of tokenizer: what it does not know is bytes, and the first space of a text is stripped."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581Hello", "x"]
    known = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(known, [], byte_fallback=True, unk_token="<unk>"))
    spaced = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(spaced)
    tokenizer.add_special_tokens(["<s>"])
    smiling = [known[f"<0x{byte:02X}>"] for byte in "\U0001f642\U0001f642\U0001f642\U0001f642\U0001f642\n".encode()]
    assert primed_stream(tokenizer, [known["x"], *smiling], True) is None, "begins within a character"
    assert primed_stream(tokenizer, [known["x"], *[tokenizer.token_to_id("<s>")] * 16], True) is None, "no text"
    ids = [*smiling, *[known["x"]] * 16]
    assert primed_stream(tokenizer, ids, True).step(tokenizer, known["\u2581Hello"]) == " Hello"
