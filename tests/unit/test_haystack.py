"""Contexts: a run of haystack tokens with a needle at a known place, at the boundary that its depth asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_heads.errors import ConfigError, PromptError
from retrieval_heads.prompts.haystack import (
    AROUND,
    BOUNDARY_REACH,
    Haystack,
    Text,
    check_source,
    read_text,
    state_of_source,
)
from retrieval_heads.prompts.prompt import tokenize_with
from toy_tokenizer import ByteTokenizer, ToyTokenizer, WordTokenizer

NEEDLE = (7, 8, 9)
# Enough of every kind: sentences, line ends, CJK stops, characters of one to four bytes, and none of them at all.
TEXTS = st.text(st.sampled_from("ab. \n!?。é漢🙂\"'"), min_size=1, max_size=300)
TOKENIZERS = st.sampled_from([WordTokenizer, ByteTokenizer]).map(lambda tokenizer: tokenizer())
DEPTHS = st.floats(0, 100)
SEEDS = st.integers(0, 5)


def haystack(text: str, tokenizer: ToyTokenizer | None = None) -> Haystack:
    return Haystack.of("tale", text, tokenize_with(tokenizer or WordTokenizer(), read_special=False))


def sentences(words: int, count: int) -> str:
    """Sentences of that many words; the last of a sentence holds the stop, as one token more."""
    return "".join(f"{' '.join(['word'] * words)}. " for _ in range(count))


@given(TEXTS, TOKENIZERS, st.integers(0, 500), DEPTHS, SEEDS, st.sampled_from(["sentence", "token"]))
def test_a_context_is_its_run_of_tokens_with_the_needle_inside(
    text: str, tokenizer: ToyTokenizer, tokens: int, depth: float, seed: int, boundary: str
) -> None:
    tale = haystack(text, tokenizer)
    context = tale.context(tokens, NEEDLE, depth, seed=seed, boundary=boundary)
    at, size = context.needle_start, len(tale.tokens.ids)
    assert len(context.ids) == tokens + len(NEEDLE)
    assert tuple(context.ids[at : at + len(NEEDLE)]) == NEEDLE
    rest = context.ids[:at] + context.ids[at + len(NEEDLE) :]
    assert rest == [tale.tokens.ids[(context.offset + index) % size] for index in range(tokens)]
    assert 0 <= context.insertion == at <= tokens


@given(TEXTS, st.integers(0, 500), DEPTHS, SEEDS)
def test_the_text_around_a_needle_is_that_of_the_tokens_beside_it(
    text: str, tokens: int, depth: float, seed: int
) -> None:
    tokenizer = WordTokenizer()
    context = haystack(text, tokenizer).context(tokens, NEEDLE, depth, seed=seed)
    before, after = context.around
    assert tokenizer.decode(context.ids[: context.needle_start]).endswith(before)
    assert tokenizer.decode(context.ids[context.needle_start + len(NEEDLE) :]).startswith(after)
    assert bool(before) == (context.needle_start > 0)
    assert bool(after) == (context.needle_start < tokens)
    assert max(len(before), len(after)) <= AROUND


@given(TEXTS, TOKENIZERS, st.integers(0, 500), DEPTHS, SEEDS)
def test_the_needle_stands_at_the_nearest_boundary_within_reach(
    text: str, tokenizer: ToyTokenizer, tokens: int, depth: float, seed: int
) -> None:
    tale = haystack(text, tokenizer)
    at = tale.context(tokens, NEEDLE, depth, seed=seed).needle_start
    size, offset, target = len(tale.tokens.ids), tale.offset(seed), round(tokens * depth / 100)
    # By brute force: every place of the context, both of its ends included.
    allowed = {0, tokens} | {place for place in range(tokens) if (offset + place) % size in tale.boundaries}
    nearest = min(abs(place - target) for place in allowed)
    if nearest <= BOUNDARY_REACH:
        assert at in allowed
        assert abs(at - target) == nearest
    else:
        assert at == tale.context(tokens, NEEDLE, depth, seed=seed, boundary="token").needle_start


@given(TEXTS, TOKENIZERS, st.integers(0, 500), DEPTHS, SEEDS, st.sampled_from(["sentence", "token"]))
def test_a_needle_never_splits_a_character(
    text: str, tokenizer: ToyTokenizer, tokens: int, depth: float, seed: int, boundary: str
) -> None:
    tale = haystack(text, tokenizer)
    context = tale.context(tokens, NEEDLE, depth, seed=seed, boundary=boundary)
    at, size = context.needle_start, len(tale.tokens.ids)
    if at < tokens:  # else the context itself ends here
        after = (context.offset + at) % size
        assert after == 0 or tale.tokens.starts[after] >= tale.tokens.ends[after - 1]


def test_at_no_depth_a_character_is_split() -> None:
    tokenizer = ByteTokenizer()
    tale = haystack("a漢é🙂" * 20, tokenizer)
    for depth in range(101):
        at = tale.context(200, NEEDLE, depth, boundary="token").needle_start
        assert "\ufffd" not in tokenizer.decode(tale.tokens.ids[:at])
        assert 0 <= at - 2 * depth < 4, "the next place that splits none"


@given(TEXTS, st.integers(0, 500), DEPTHS)
def test_token_mode_is_exact_where_a_token_is_a_character_or_more(text: str, tokens: int, depth: float) -> None:
    context = haystack(text).context(tokens, NEEDLE, depth, boundary="token")
    assert context.needle_start == round(tokens * depth / 100)


@given(TEXTS, TOKENIZERS)
def test_boundaries_are_sorted_places_that_start_a_character(text: str, tokenizer: ToyTokenizer) -> None:
    tale = haystack(text, tokenizer)
    assert tale.boundaries[0] == 0
    assert list(tale.boundaries) == sorted(set(tale.boundaries))
    assert tale.boundaries[-1] < len(tale.tokens.ids)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("One. Two! Three? Four", ["One", " Two", " Three", " Four"]),
        ('He said "no." She left.', ["He", " She"]),
        ("Version 3.14 of e.g.x", ["Version"]),
        ("你好。再见！走吧", ["你好", "再见", "走吧"]),
        ("A wrapped\nline. A title\n\nA line", ["A", " A", "A"]),
        ("One.\nTwo.\nThree", ["One", "Two", "Three"]),  # ".\n" is one token
        ("no boundary at all", ["no"]),
    ],
)
def test_sentences_start_at(text: str, starts: list[str]) -> None:
    tokenizer = WordTokenizer()
    tale = haystack(text, tokenizer)
    assert [tokenizer.decode([tale.tokens.ids[place]]) for place in tale.boundaries] == starts


@pytest.mark.parametrize(("depth", "at"), [(0, 0), (2, 0), (50, 5), (100, 10)])
def test_a_needle_moves_to_the_nearest_sentence(depth: float, at: int) -> None:
    # Ten tokens, two sentences of four words and a stop; the second starts at token 5.
    assert haystack(sentences(4, 20)).context(10, NEEDLE, depth).needle_start == at


def test_of_two_boundaries_as_near_the_earlier_is_taken() -> None:
    assert haystack(sentences(3, 20)).context(40, NEEDLE, 25).needle_start in (8, 12)
    assert haystack(sentences(3, 20)).context(20, NEEDLE, 50).needle_start == 8  # target 10, boundaries 8 and 12


@pytest.mark.parametrize(("away", "at"), [(BOUNDARY_REACH, 0), (BOUNDARY_REACH + 1, BOUNDARY_REACH + 1)])
def test_a_boundary_is_near_up_to_64_tokens(away: int, at: int) -> None:
    tale = haystack(" ".join(["word"] * 1000))
    assert tale.context(1000, NEEDLE, away / 10).needle_start == at
    assert tale.context(1000, NEEDLE, 100 - away / 10).needle_start == 1000 - at


def test_a_text_that_is_too_short_starts_again() -> None:
    tale = haystack("One. Two. ")
    size = len(tale.tokens.ids)
    repeats = {count: tale.context(count, NEEDLE, 0).repeats for count in (0, 1, size, size + 1, 2 * size, 9 * size)}
    assert list(repeats.values()) == [0, 0, 0, 1, 1, 8]


def test_a_needle_goes_to_the_seam_where_the_text_starts_again() -> None:
    tale = haystack(" ".join(["word"] * 100))
    assert tale.context(300, NEEDLE, 35).needle_start == 100


def test_a_seed_starts_at_a_sentence_and_zero_at_the_beginning() -> None:
    tale = haystack(sentences(4, 50))
    assert tale.offset(0) == 0
    assert {tale.offset(seed) for seed in range(1, 30)} <= set(tale.boundaries)
    assert len({tale.offset(seed) for seed in range(1, 30)}) > 10


def test_a_seed_means_the_same_in_every_run() -> None:
    assert [haystack(sentences(4, 50)).offset(seed) for seed in range(1, 6)] == [0, 145, 230, 150, 120]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(PromptError, match="the haystack would have -1 tokens"):
        haystack("word").context(-1, NEEDLE, 0)


def test_a_haystack_without_tokens_is_refused() -> None:
    with pytest.raises(PromptError, match="haystack tale: the text has no tokens"):
        haystack("")


@given(TEXTS, st.data())
def test_a_span_of_text_covers_its_characters(text: str, data: st.DataObject) -> None:
    tokens = Text.of(text, tokenize_with(ByteTokenizer(), read_special=False))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    first, last = tokens.span(start, end)
    assert bytes(token - 1000 for token in tokens.ids[first:last]).decode() == text[start:end]


def test_a_span_of_nothing_is_empty() -> None:
    assert Text.of("word", tokenize_with(WordTokenizer(), read_special=False)).span(4, 4) == (0, 0)


class TestSources:
    def test_a_folders_files_are_read_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for name, text in {"b.txt": "two", "a.txt": "one", "c.md": "not this"}.items():
            (tmp_path / name).write_text(text)
        assert read_text(str(tmp_path)) == "one\ntwo\n"

    def test_pydoc_is_long_and_the_same_every_time(self) -> None:
        assert len(read_text("pydoc")) > 300_000
        assert read_text("pydoc") == read_text("pydoc")

    def test_a_package_is_found_without_importing_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "tales"
        (package / "old").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "old" / "a.txt").write_text("Once.")
        monkeypatch.syspath_prepend(tmp_path)
        assert check_source("package:tales/old", tmp_path) == ("package:tales/old", "old")
        assert read_text("package:tales/old") == "Once.\n"

    def test_a_package_without_such_a_folder_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"no \.txt file in 'package:pytest/tales'"):
            read_text("package:pytest/tales")


def test_a_haystack_that_was_written_anew_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time.")
    before = state_of_source(str(tmp_path))
    assert state_of_source(str(tmp_path)) == before
    (tmp_path / "b.txt").write_text("There was a boat.")
    assert state_of_source(str(tmp_path)) != before
    assert state_of_source("pydoc") == ()
