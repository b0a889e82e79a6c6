"""The first words of the answer: behind the assistant's turn, in the length, in the record, and nowhere twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import PromptError
from retrieval_heads.prompts.requests import Request, Writer
from retrieval_heads.prompts.settings import PROMPTS, Needle, Prompt
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.task import Cell, Question
from toy_tokenizer import SPECIAL, ByteTokenizer, ToyTokenizer, WordTokenizer

BOOK = PROMPTS["book"].messages[0].model_dump()
OPENING = "The ferry leaves"
FERRY = Needle(needle="The ferry to Oslo leaves at dawn.", question="When does the ferry leave?", name="ferry")
PLACE = Place((("length", 120), ("depth", 50.0), ("needle", "ferry")))


@pytest.fixture(scope="module")
def tales(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tales")
    (folder / "a.txt").write_text("Once upon a time there was a boat. It sailed far away. Nobody saw it again.\n" * 9)
    return str(folder)


def asked(source: str, prefill: str | None, tokenizer: ToyTokenizer, *, takes_text: bool = False) -> Request:
    prompt = Prompt.model_validate({"messages": [BOOK], **({"prefill": prefill} if prefill else {})})
    question = Question("tale", "niah", needles=(FERRY,), source=source, prompt=prompt)
    builder = CellBuilder(tokenizer, {}, {}, 4096, takes_text=takes_text)
    return builder.request(Question.of_json(question.to_json()), Cell("a", "a", PLACE))


def record(request: Request) -> Record:
    said = {"context_length": 120, "needle": FERRY.needle, "question": FERRY.question}
    return Record.model_validate({**said, **request.facts.fields()})


@given(
    st.sampled_from([OPENING, " It is ", "<", "Ω", "\n\n1."]),
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.sampled_from(["{chat}", "{chat_with_bos}", "{trims}", None]),
    st.booleans(),
)
def test_it_ends_the_prompt_and_counts_in_its_length(
    prefill: str, kind: type[ToyTokenizer], template: str | None, adds_bos: bool
) -> None:
    tokenizer = kind(template, adds_bos=adds_bos)
    writer = Writer(tokenizer, {}, 4096)
    plain, opened = (
        writer.frame(Prompt.model_validate({"messages": [BOOK], "prefill": said}), "When?") for said in (None, prefill)
    )
    assert opened.head == plain.head
    text = tokenizer.decode(opened.tail)
    assert text.removesuffix(prefill) in (tokenizer.decode(plain.tail), f"{tokenizer.decode(plain.tail)}\n")
    for special in SPECIAL.values():
        assert opened.tail.count(special) == plain.tail.count(special)


def test_a_prompt_with_one_is_as_long_as_one_without(tales: str) -> None:
    tokenizer = WordTokenizer(adds_bos=True)
    plain, opened = (asked(tales, prefill, tokenizer) for prefill in (None, OPENING))
    assert (len(plain.ids), len(opened.ids)) == (120, 120)
    assert tokenizer.decode(opened.ids).endswith(f"<|assistant|>{OPENING}")
    assert opened.facts.question_span[0] == plain.facts.question_span[0] - 3
    assert opened.rows([7, 8]).prompt_tokens == 120, "rows of the answer begin behind it"
    assert opened.hash != plain.hash


def test_the_record_rebuilds_it(tales: str) -> None:
    opened = asked(tales, OPENING, WordTokenizer())
    stored = record(opened)
    assert stored.recipe is not None
    assert (stored.recipe.prefill, stored.recipe.prompt_hash) == (OPENING, opened.facts.recipe.prompt_hash)
    builder = CellBuilder(WordTokenizer(), {}, {}, 4096)
    assert builder.stored(stored).ids == opened.ids
    other = stored.model_copy(update={"recipe": stored.recipe.model_copy(update={"prefill": "It leaves now"})})
    with pytest.raises(PromptError, match="wording"):
        builder.stored(other)


def test_without_one_nothing_says_so(tales: str) -> None:
    request = asked(tales, None, WordTokenizer())
    assert request.facts.recipe.prefill is None
    assert "prefill" not in str(record(request).to_json())


def test_text_ends_with_it_and_no_message_holds_it(tales: str) -> None:
    sent = asked(tales, OPENING, WordTokenizer(), takes_text=True).text
    assert sent is not None
    assert sent.text.endswith(f"<|assistant|>{OPENING}")
    assert sent.prefill == OPENING
    assert [OPENING in message["content"] for message in sent.messages] == [False]


def test_a_message_of_a_task_takes_one() -> None:
    tokenizer = WordTokenizer()
    request = Writer(tokenizer, {}, 4096).message("What is 1 + 1?", {"max_tokens": 4}, prefill="It is")
    assert tokenizer.decode(request.ids).endswith("<|assistant|>It is")
    assert request.facts.recipe.prefill == "It is"


@pytest.mark.parametrize("prefill", ["", " ", 3])
def test_an_empty_one_is_a_mistake(prefill: Any) -> None:
    with pytest.raises(ValueError, match="prefill"):
        Prompt.model_validate({"messages": [BOOK], "prefill": prefill})
