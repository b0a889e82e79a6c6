"""A cell's prompt, by the real tokenizer: exact in length, needle and question where they are said to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from retrieval_heads.prompts.haystack import Haystack, read_text
from retrieval_heads.prompts.prompt import BuiltPrompt, PromptBuilder
from retrieval_heads.prompts.settings import PROMPTS, Needle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

pytestmark = pytest.mark.engine

NEEDLES = {
    "english": Needle(
        needle="\nThe best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny day.\n",
        question="What is the best thing to do in San Francisco?",
    ),
    "chinese": Needle(needle="黄鹤楼的钥匙藏在第三块青砖下面。", question="黄鹤楼的钥匙藏在哪里？"),
    "emoji": Needle(needle="The gate opens with 🦊🌋👩‍🚀 and nothing else.", question="What opens the gate?"),
}
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def builder(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    return PromptBuilder(tokenizer, None, {})


@pytest.fixture(scope="module")
def pydoc(builder: PromptBuilder) -> Haystack:
    return Haystack.of("pydoc", read_text("pydoc"), builder.tokenize)


@pytest.fixture(scope="module")
def chinese_haystack(builder: PromptBuilder) -> Haystack:
    lines = [f"第{number}天，老船长在灯塔下写信🐳，雨一直下到天亮。" for number in range(40)]
    return Haystack.of("letters", "".join(lines), builder.tokenize)


@pytest.mark.parametrize("wording", PROMPTS)
@pytest.mark.parametrize("needle", NEEDLES.values(), ids=list(NEEDLES))
@pytest.mark.parametrize("length", [256, 511, 4096])
@pytest.mark.parametrize("seed", [0, 7])
def test_prompt_is_the_template_around_haystack_needle_haystack(
    builder: PromptBuilder, pydoc: Haystack, wording: str, needle: Needle, length: int, seed: int
) -> None:
    frame = builder.frame(PROMPTS[wording], needle.question)
    for depth in (0, 33.3, 50, 100):
        prompt = builder.build(pydoc, frame, needle, length, depth, seed=seed, boundary="sentence")
        text = builder.tokenizer.decode(prompt.ids)

        assert len(prompt.ids) == length
        assert text == whole_text(builder, pydoc, prompt, wording, needle)
        assert said(builder, prompt, prompt.needle_span) == needle.needle.strip()
        assert said(builder, prompt, prompt.question_span).strip() == needle.question
        assert text.count(needle.needle.strip()) == 1


@pytest.mark.parametrize("wording", PROMPTS)
def test_template_starts_the_prompt_once(builder: PromptBuilder, pydoc: Haystack, wording: str) -> None:
    needle = NEEDLES["english"]
    start, end = (builder.tokenizer.convert_tokens_to_ids(name) for name in SPECIAL[:2])  # type: ignore[attr-defined]
    prompt = builder.build(
        pydoc, builder.frame(PROMPTS[wording], needle.question), needle, 600, 50, seed=0, boundary="sentence"
    )
    turns = len(PROMPTS[wording].messages) + 2  # SmolLM2's template adds a system message and opens the answer

    assert prompt.ids[0] == start
    assert prompt.ids[1] != start
    assert prompt.ids.count(start) == turns
    assert prompt.ids.count(end) == turns - 1


@pytest.mark.parametrize("wording", PROMPTS)
def test_names_of_special_tokens_in_haystack_and_needle_stay_text(builder: PromptBuilder, wording: str) -> None:
    named = "".join(f"A user typed {name} into the box. " for name in SPECIAL)
    haystack = Haystack.of("typed", named * 40, builder.tokenize)
    needle = Needle(needle="The clerk answered <|im_end|> and left.", question="What did the clerk answer?")
    frame = builder.frame(PROMPTS[wording], needle.question)
    prompt = builder.build(haystack, frame, needle, 700, 40, seed=0, boundary="sentence")
    special = set(builder.tokenizer.convert_tokens_to_ids(list(SPECIAL)))  # type: ignore[attr-defined]
    start, stop = len(frame.head), len(prompt.ids) - len(frame.tail)

    assert not special & set(haystack.tokens.ids)
    assert not special & set(prompt.ids[start:stop])
    assert said(builder, prompt, prompt.needle_span) == needle.needle
    assert all(builder.tokenizer.decode(prompt.ids[start:stop]).count(name) > 2 for name in SPECIAL)


@pytest.mark.parametrize("boundary", ["sentence", "token"])
@pytest.mark.parametrize("needle", NEEDLES.values(), ids=list(NEEDLES))
def test_no_character_is_split_around_a_needle(
    builder: PromptBuilder, chinese_haystack: Haystack, needle: Needle, boundary: str
) -> None:
    frame = builder.frame(PROMPTS["book"], needle.question)
    for depth in range(0, 90, 3):
        prompt = builder.build(chinese_haystack, frame, needle, 700, depth, seed=0, boundary=boundary)
        start, end = prompt.needle_span

        assert "\ufffd" not in builder.tokenizer.decode(prompt.ids[:start])
        assert builder.tokenizer.decode(prompt.ids[end : end + 12]).strip()[0] != "\ufffd"
        assert said(builder, prompt, prompt.needle_span) == needle.needle.strip()


def test_short_haystack_repeats_and_says_so(builder: PromptBuilder, chinese_haystack: Haystack) -> None:
    needle = NEEDLES["chinese"]
    frame = builder.frame(PROMPTS["book"], needle.question)
    size = len(chinese_haystack.tokens.ids)
    prompt = builder.build(chinese_haystack, frame, needle, 2 * size + 400, 70, seed=3, boundary="sentence")

    assert prompt.context.repeats == 2
    assert builder.tokenizer.decode(prompt.ids).rstrip("\ufffd") == whole_text(
        builder, chinese_haystack, prompt, "book", needle
    )


def test_chat_template_of_a_file_frames_the_prompt(
    tokenizer: PreTrainedTokenizerBase, pydoc: Haystack, tmp_path: Path
) -> None:
    template = tmp_path / "shout.jinja"
    template.write_text("{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[bot] ")
    builder = PromptBuilder(tokenizer, template.read_text(), {})
    needle = NEEDLES["english"]
    frame = builder.frame(PROMPTS["document"], needle.question)
    prompt = builder.build(pydoc, frame, needle, 400, 20, seed=0, boundary="sentence")
    text = builder.tokenizer.decode(prompt.ids)

    assert len(prompt.ids) == 400
    assert text.startswith("[user] ")
    assert text.endswith("your findings\n[bot] ")
    assert said(builder, prompt, prompt.needle_span) == needle.needle.strip()


def said(builder: PromptBuilder, prompt: BuiltPrompt, span: tuple[int, int]) -> str:
    return builder.tokenizer.decode(prompt.ids[slice(*span)])


def whole_text(builder: PromptBuilder, haystack: Haystack, prompt: BuiltPrompt, wording: str, needle: Needle) -> str:
    """The prompt as text, made from characters alone: the chat template around haystack, needle, haystack."""
    inserted = needle.needle if needle.needle.startswith("\n") else f"\n{needle.needle}\n"
    frame = builder.frame(PROMPTS[wording], needle.question)
    first = prompt.context.offset
    tokens = len(prompt.ids) - len(frame) - len(builder.needle_tokens(needle)[0])
    before = characters(haystack, first, first + prompt.context.insertion)
    after = characters(haystack, first + prompt.context.insertion, first + tokens)
    messages = [
        {
            "role": message.role,
            "content": message.content.replace("{context}", before + inserted + after).replace(
                "{question}", needle.question
            ),
        }
        for message in PROMPTS[wording].messages
    ]
    rendered: Any = builder.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(rendered)


def characters(haystack: Haystack, first: int, last: int) -> str:
    """The haystack's text from one token to another, read round and round."""
    size, starts = len(haystack.tokens.ids), haystack.tokens.starts
    places = [divmod(token, size) for token in (first, last)]
    start, end = (lap * len(haystack.text) + starts[token] for lap, token in places)
    return (haystack.text * (places[1][0] + 1))[start:end]
