"""Prompts: exact lengths, spans known by construction, chat templates good and bad."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import PromptError
from retrieval_heads.prompts.haystack import Haystack
from retrieval_heads.prompts.prompt import BuiltPrompt, PromptBuilder, hash_ids, tokenize_with
from retrieval_heads.prompts.settings import PROMPTS, Needle, Prompt
from toy_tokenizer import BOS, ByteTokenizer, ToyTokenizer, WordTokenizer

TALE = "Once upon a time. There was a ferry. It left at dawn! 从前有一座山。山里有座庙。 Caf\u00e9 🙂 talk\n" * 3
FERRY = Needle(needle="The ferry to Oslo leaves at dawn.", question="When does the ferry leave?")
QUESTION_FIRST = Prompt.model_validate({"messages": [{"content": "{question} Read this:\n{context}\nNow answer."}]})
WORDINGS = {**PROMPTS, "question first": QUESTION_FIRST}


def builder(tokenizer: ToyTokenizer, template: str | None = None, **options: Any) -> PromptBuilder:
    return PromptBuilder(tokenizer, template, options)


def build(
    tokenizer: ToyTokenizer,
    length: int = 300,
    depth: float = 50,
    *,
    needle: Needle = FERRY,
    wording: str = "book",
    text: str = TALE,
    seed: int = 0,
    boundary: str = "sentence",
) -> BuiltPrompt:
    prompts = builder(tokenizer)
    tale = Haystack.of("tale", text, prompts.tokenize)
    frame = prompts.frame(WORDINGS[wording], needle.question)
    return prompts.build(tale, frame, needle, length, depth, seed=seed, boundary=boundary)


def said(tokenizer: ToyTokenizer, prompt: BuiltPrompt, span: tuple[int, int]) -> str:
    return tokenizer.decode(prompt.ids[span[0] : span[1]])


WORDS = st.text(st.sampled_from("abc de. 漢é🙂?"), min_size=1, max_size=40).filter(lambda text: text.strip() != "")
AROUND = st.sampled_from(["", "\n", " \n"])
NEEDLES = st.builds(
    lambda before, text, after, question: Needle(needle=before + text + after, question=question),
    AROUND,
    WORDS,
    AROUND,
    WORDS.map(str.strip),
)
TEXTS = st.text(st.sampled_from("ab. \n!?。é漢🙂"), min_size=1, max_size=200)
TOKENIZERS = st.builds(
    lambda kind, template, adds_bos: kind(template, adds_bos=adds_bos),
    st.sampled_from([WordTokenizer, ByteTokenizer]),
    st.sampled_from(["{chat}", "{chat_with_bos}", "{trims}", None]),
    st.booleans(),
)
WORDING = st.sampled_from(sorted(WORDINGS))


@given(TOKENIZERS, NEEDLES, TEXTS, st.integers(400, 900), st.floats(0, 100), WORDING, st.integers(0, 3), st.data())
def test_length_needle_and_question_are_exact(
    tokenizer: ToyTokenizer,
    needle: Needle,
    text: str,
    length: int,
    depth: float,
    wording: str,
    seed: int,
    data: st.DataObject,
) -> None:
    boundary = data.draw(st.sampled_from(["sentence", "token"]))
    prompt = build(tokenizer, length, depth, needle=needle, wording=wording, text=text, seed=seed, boundary=boundary)
    assert len(prompt.ids) == length
    assert said(tokenizer, prompt, prompt.needle_span).strip() == needle.needle.strip()
    assert needle.question.strip() in said(tokenizer, prompt, prompt.question_span)
    assert len(said(tokenizer, prompt, prompt.question_span)) <= len(needle.question) + 2  # no more than a token's rest
    room = length - len(builder(tokenizer).frame(WORDINGS[wording], needle.question))
    room -= len(builder(tokenizer).needle_tokens(needle)[0])
    assert prompt.achieved_depth == pytest.approx(100 * prompt.context.insertion / room)


@given(TOKENIZERS, st.floats(0, 100), st.integers(300, 500))
def test_a_prompt_decodes_to_the_template_around_the_needle_in_its_context(
    tokenizer: ToyTokenizer, depth: float, length: int
) -> None:
    prompt = build(tokenizer, length, depth)
    text = tokenizer.decode(prompt.ids)
    before, _, after = text.partition(f"\n{FERRY.needle}\n")
    assert after, "the needle stands in the prompt, on a line of its own"
    assert before.removeprefix("<s>").removeprefix("<|user|>").startswith("This is a very long story book:\n<book>\n")
    assert after.count(FERRY.question) == 1


@given(TOKENIZERS, WORDING)
def test_there_is_one_first_token_at_most(tokenizer: ToyTokenizer, wording: str) -> None:
    prompt = build(tokenizer, 400, wording=wording)
    adds, writes = tokenizer("", add_special_tokens=True).input_ids, tokenizer.chat_template == "{chat_with_bos}"
    assert prompt.ids.count(BOS) == int(bool(adds) or writes)
    assert BOS not in prompt.ids[1:]


@pytest.mark.parametrize("depth", [0, 25, 50, 75, 100])
def test_depth_is_the_share_of_haystack_before_the_needle(depth: float) -> None:
    prompt = build(WordTokenizer(), 1000, depth, boundary="token", text="word " * 2000)
    assert prompt.achieved_depth == pytest.approx(depth, abs=0.1)


@pytest.mark.parametrize("short", [0, 1])
def test_the_shortest_length_holds_template_question_and_needle(short: int) -> None:
    prompts = builder(WordTokenizer())
    least = len(prompts.frame(PROMPTS["book"], FERRY.question)) + len(prompts.needle_tokens(FERRY)[0])
    if short == 0:
        prompt = build(WordTokenizer(), least)
        assert (len(prompt.ids), prompt.achieved_depth) == (least, 0.0)
        return
    with pytest.raises(PromptError, match=rf"^a length of {least - 1} tokens is too short: .* {least} are needed$"):
        build(WordTokenizer(), least - 1)


def test_the_counted_part_of_a_needle_is_its_answer_span() -> None:
    tokenizer, needle = WordTokenizer(), FERRY.model_copy(update={"answer_span": "at dawn"})
    prompt = build(tokenizer, needle=needle)
    assert said(tokenizer, prompt, prompt.needle_span) == " at dawn"
    assert said(tokenizer, prompt, (prompt.needle_span[0] - 6, prompt.needle_span[0])) == "\nThe ferry to Oslo leaves"


@pytest.mark.parametrize(
    ("given", "inserted"),
    [("A key.", "\nA key.\n"), ("\nA key.\n", "\nA key.\n"), (" A key.", " A key."), ("A key. ", "A key. ")],
)
def test_a_bare_needle_gets_a_line_of_its_own(given: str, inserted: str) -> None:
    tokenizer = ByteTokenizer()
    ids, (first, last) = builder(tokenizer).needle_tokens(Needle(needle=given, question="Where?"))
    assert tokenizer.decode(ids) == inserted
    assert tokenizer.decode(ids[first:last]) == "A key."


def test_the_question_is_found_in_front_of_the_context_too() -> None:
    tokenizer = WordTokenizer()
    prompt = build(tokenizer, wording="question first")
    assert prompt.question_span[1] < prompt.needle_span[0]
    assert said(tokenizer, prompt, prompt.question_span) == FERRY.question


def test_a_template_that_trims_changes_no_length() -> None:
    trimmed = build(WordTokenizer("{trims}"), wording="question first")
    assert len(trimmed.ids) == 300
    assert said(WordTokenizer("{trims}"), trimmed, (0, 1)) == "<|user|>"


@pytest.mark.parametrize("wording", ["document"])
@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{refuses_two}",
            "the chat template refuses this prompt: roles must alternate user/assistant/user/assistant/...",
        ),
        ("{loses_first}", "the chat template writes a message 0 times; once is needed"),
        ("{says_twice}", "the chat template writes a message 2 times; once is needed"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(wording: str, template: str, sentence: str) -> None:
    with pytest.raises(PromptError) as raised:
        builder(WordTokenizer(template)).frame(PROMPTS[wording], FERRY.question)
    assert str(raised.value) == sentence


def test_a_given_template_replaces_the_tokenizers_own() -> None:
    tokenizer = WordTokenizer("{refuses_two}")
    assert len(builder(tokenizer, "{chat}").frame(PROMPTS["document"], FERRY.question)) > 0


def test_a_base_model_gets_the_plain_form() -> None:
    tokenizer = WordTokenizer(None)
    text = tokenizer.decode(build(tokenizer, wording="document").ids)
    assert text.startswith("Once upon a time.")
    assert text.endswith(f"\n{FERRY.question} {PROMPTS['document'].messages[1].content.removeprefix('{question} ')}")


def test_template_options_reach_the_template_and_the_hash() -> None:
    tokenizer = WordTokenizer()
    plain = builder(tokenizer).frame(PROMPTS["book"], FERRY.question)
    thinking = builder(tokenizer, enable_thinking=False).frame(PROMPTS["book"], FERRY.question)
    assert tokenizer.decode(thinking.head).startswith("[enable_thinking=False]")
    assert plain.hash != thinking.hash


def test_special_tokens_are_read_from_the_template_alone() -> None:
    tokenizer = WordTokenizer()
    needle = FERRY.model_copy(update={"needle": "The <|end|> token."})
    prompt = build(tokenizer, needle=needle, text="A <s> in a tale. " * 50)
    assert prompt.ids.count(BOS) == 0
    assert prompt.ids.count(4) == 1, "the template's own <|end|>"
    assert said(tokenizer, prompt, prompt.needle_span) == "The <|end|> token.\n"  # ".\n" is one token


@pytest.mark.parametrize("kind", [WordTokenizer, ByteTokenizer])
def test_a_slow_tokenizers_offsets_are_found_by_decoding(kind: type[ToyTokenizer]) -> None:
    text = "A plain tale. Of ASCII!\n"
    fast, slow = kind(), kind(is_fast=False)
    assert tokenize_with(slow, read_special=False)(text) == tokenize_with(fast, read_special=False)(text)


def test_a_slow_tokenizer_builds_the_same_prompt() -> None:
    text = "There was a ferry. It left at dawn! " * 20
    assert build(WordTokenizer(is_fast=False), text=text).ids == build(WordTokenizer(), text=text).ids


def test_a_free_text_gets_its_first_token_once() -> None:
    prompts = builder(WordTokenizer(adds_bos=True))
    assert prompts.encode_start("A tale").count(BOS) == 1
    assert prompts.encode_start("<s>A tale").count(BOS) == 1


def test_the_hash_is_of_the_ids() -> None:
    prompt = build(WordTokenizer())
    assert prompt.hash == hash_ids(prompt.ids) == build(WordTokenizer()).hash
    assert hash_ids([1, 2]) == "34fb5c825de7ca4aea6e712f19d439c1da0c92c37b423936c5f618545ca4fa1f"


@pytest.mark.parametrize("wording", list(WORDINGS))
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(("length", "depth"), [(300, 0), (600, 35), (1500, 100)])
def test_the_text_of_a_prompt_is_what_its_tokens_are_of(wording: str, seed: int, length: int, depth: float) -> None:
    tokenizer = ByteTokenizer()  # whose tokens do not depend on those beside them
    prompts = builder(tokenizer)
    tale = Haystack.of("tale", TALE + "{context} {question}", prompts.tokenize)
    frame = prompts.frame(WORDINGS[wording], FERRY.question)
    prompt = prompts.build(tale, frame, FERRY, length, depth, seed=seed, boundary="sentence")
    text = prompts.prompt_text(prompt, tale, frame, [FERRY.needle], FERRY.question)
    # A length that ends within a character has that character whole.
    assert text.text.startswith(tokenizer.decode(prompt.ids).partition("\ufffd")[0])
    assert prompts.render([dict(message) for message in text.messages]) == text.text
    assert abs(len(prompts.encode_start(text.text)) - len(prompt.ids)) < 4


def test_what_a_template_wrote_is_kept_for_the_last_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def render(write: Any) -> str:
        written.append(write())
        return written[-1]

    monkeypatch.setattr("retrieval_heads.prompts.prompt.render_limited", render)
    prompts = builder(WordTokenizer("{chat}"))
    for number in [*range(300), 299, 0]:
        assert f"program {number}<" in prompts.render([{"role": "user", "content": f"program {number}"}])
    assert ["program 299<" in text for text in written].count(True) == 1
    assert "program 0<" in written[300]
    long = [{"role": "user", "content": "a" * 100_000}]
    assert prompts.render(long) == prompts.render(long)
    assert len(written) == 303, "a whole conversation is not kept"
