"""Scores of answers, in every script."""

from __future__ import annotations

import pydoc_data.topics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.scoring import score_answer, tokens
from retrieval_heads.scoring.porter import stem
from retrieval_heads.scoring.settings import METRICS

ENDINGS = """
ational tional enci anci izer bli alli entli eli ousli ization ation ator alism iveness fulness
ousness aliti iviti biliti fulli logi icate ative alize iciti ical ful ness al ance ence er ic able
ible ant ement ment ent ion ou ism ate iti ous ive ize e ll y ies ied eed ed ing sses ss s at bl iz
ly
"""
ASCII = st.text(st.characters(max_codepoint=127))
# Words of which some are stemmed, so that examples do meet.
PROSE = st.lists(
    st.sampled_from(["the", "was", "ferry", "ferries", "leaves", "leaving", "at", "9", "o'clock.", "_x_"])
).map(" ".join)
ANY = st.text(st.characters(codec="utf-8"), max_size=40)
SCRIPTS = {
    "English": ("The best thing to do in Oslo is to ride the ferry.", "What is the best thing to do in Oslo?"),
    "Chinese": ("在旧金山最好的事是吃三明治。", "在旧金山最好做什么?"),
    "Japanese": ("東京で一番いいのは公園で寿司を食べることです。", "東京で一番いいことは何ですか。"),
    "Cyrillic": ("Лучшее, что можно сделать в Осло, — прокатиться на пароме.", "Что лучше всего сделать в Осло?"),
    "Greek": ("Το κλειδί είναι μέσα στο τηλεσκόπιο.", "Πού είναι το κλειδί;"),
    "Arabic": ("المفتاح داخل التلسكوب النحاسي.", "أين المفتاح؟"),
    "Hindi": ("चाबी पीतल की दूरबीन में है।", "चाबी कहाँ है?"),
    "Thai": ("กุญแจอยู่ในกล้องโทรทรรศน์", "กุญแจอยู่ไหน"),
    "Korean": ("열쇠는 망원경 안에 있습니다.", "열쇠는 어디에 있습니까?"),
    "emoji": ("The password is 🦊🌵👩🏽‍🚀❤️🇳🇴.", "What is the password?"),
    "emoji alone": ("🦊🌵🚀", "Which signs?"),
}


@given(ASCII | PROSE)
def test_words_are_those_of_rouge_score_on_ascii_text(text: str) -> None:
    assert tokens(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@given(st.lists(st.text("aeiouybcdlrstzwx", max_size=6) | st.sampled_from(ENDINGS.split()), max_size=4).map("".join))
def test_stems_are_those_of_nltk(word: str) -> None:
    assert stem(word) == PorterStemmer().stem(word)


def test_stems_of_a_whole_text_are_those_of_nltk() -> None:
    words = set("\n".join(pydoc_data.topics.topics.values()).lower().split())
    assert len(words) > 5_000
    theirs = PorterStemmer()
    assert {word: stem(word) for word in words} == {word: theirs.stem(word) for word in words}


@given(PROSE, PROSE.filter(lambda text: bool(tokens(text))))
def test_scores_are_those_of_rouge_score_on_ascii_text(answer: str, reference: str) -> None:
    theirs = RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(reference, answer)
    # English, whose dictionary is loaded anyway: of a few words without a question it may be any language.
    ours = score_answer(answer, reference, question="And who is with them?")
    for name, score in theirs.items():
        assert ours[f"{name}_precision"] == score.precision
        assert ours[f"{name}_recall"] == score.recall
        assert ours[f"{name}_f"] == score.fmeasure


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_repeated_needle_scores_1(script: str) -> None:
    needle, question = SCRIPTS[script]
    assert score_answer(needle, needle, question) == dict.fromkeys(METRICS, 1.0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_echo_of_the_question_scores_0_over_new_words(script: str) -> None:
    needle, question = SCRIPTS[script]
    scores = score_answer(question, needle, question)
    assert {name: score for name, score in scores.items() if name.endswith("_novel") and score} == {}
    assert scores["substring"] == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_another_answer_scores_0_over_new_words(script: str) -> None:
    needle, question = SCRIPTS[script]
    assert score_answer("xyzzy ж 龘", needle, question)["rouge1_recall_novel"] == 0


HALVES = pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.long)])
"""Fifty examples each: most are in a language of their own, whose dictionary takes long to load."""


@HALVES
@settings(max_examples=50)
@given(answer=ANY, reference=ANY, question=ANY)
# Digits of a newer Unicode than Python's own, which has no value for them.
@example(answer="", reference="\U000116d0", question="")
@example(answer="5:30 pm", reference="\U000116d0\U000116d0:30 pm", question="")
@example(answer="\U000116d0\U000116d1个", reference="三个 1\U000116d0个", question="")
def test_every_score_is_there_and_between_0_and_1(half: int, answer: str, reference: str, question: str) -> None:
    try:
        scores = score_answer(answer, reference, question)
    except RetrievalHeadsError:
        assert set(tokens(reference)) <= set(tokens(question))
        return
    assert set(scores) == set(METRICS)
    assert all(0 <= score <= 1 for score in scores.values())


@HALVES
@settings(max_examples=50)
@given(reference=ANY, question=ANY)
def test_a_repeated_reference_scores_1_whatever_it_is(half: int, reference: str, question: str) -> None:
    if set(tokens(reference)) - set(tokens(question)):
        assert set(score_answer(reference, reference, question).values()) == {1.0}


def test_an_empty_answer_scores_0() -> None:
    assert set(score_answer("", "at dawn", "When?").values()) == {0.0}


def test_a_reference_that_the_question_gives_away_is_refused() -> None:
    with pytest.raises(RetrievalHeadsError, match="every word of the expected answer 'At dawn' stands in the question"):
        score_answer("dawn", "At dawn", "Does it leave at dawn?")


def test_half_of_the_new_words_score_a_half() -> None:
    scores = score_answer("It leaves at dawn", "The ferry leaves at dawn today", "When does the ferry leave?")
    assert scores["rouge1_recall_novel"] == pytest.approx(2 / 3)  # at dawn, of: at dawn today
    assert scores["rouge1_recall"] == pytest.approx(3 / 6)  # leave at dawn
    assert scores["rougeL_precision"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("It is INSIDE the, brass: telescope!", 1),
        ("inside the brass telescopes", 0),
        ("inside a brass telescope", 0),
        ("inside the", 0),
    ],
)
def test_substring_means_the_references_words_in_a_row(answer: str, found: int) -> None:
    assert score_answer(answer, "inside the brass telescope", "Where?")["substring"] == found


def test_words_ignore_case_and_width_and_stem_latin_words() -> None:
    assert tokens("Ferries ＦＥＲＲＹ Straße") == ["ferri", "ferri", "strass"]
    assert tokens("Caf\u00e9 Cafe\u0301") == ["café", "café"]
    assert tokens("iPhone手机") == ["iphon", "手", "机"]
