"""The score that decides by default, against answers that were labelled by hand before it was written."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import Labelled, labelled
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.prompts.settings import Needle
from retrieval_heads.runs.place import Place
from retrieval_heads.scoring import judge, key_words, key_words_of, score_answer
from retrieval_heads.scoring.settings import METRICS, Scoring
from retrieval_heads.tasks.needle import TheNeedle
from retrieval_heads.tasks.task import Question

ANSWERS = labelled()
MUSEUM = "Where does the night guard of the Orrin museum keep a spare key?"
BRASS = "inside the brass telescope"


def shares(answers: list[Labelled]) -> tuple[float, float, list[Labelled]]:
    """False passes among the wrong answers, false misses among the right ones, and which they are."""
    false = [
        each for each in answers if key_words(each.answer, each.reference, each.question).is_retrieved != each.is_right
    ]
    count = Counter(each.is_right for each in answers)
    missed = sum(each.is_right for each in false)
    return (len(false) - missed) / max(count[False], 1), missed / max(count[True], 1), false


@pytest.mark.parametrize("part", ["tune", "held out"])
def test_at_most_1_percent_of_wrong_answers_pass_and_2_percent_of_right_ones_miss(part: str) -> None:
    passes, misses, false = shares([each for each in ANSWERS if each.part == part])
    told = [f"{each.name}, {each.label}: {each.answer!r}" for each in false]
    assert passes <= 0.01, told
    assert misses <= 0.02, told


def test_the_file_holds_what_it_must() -> None:
    by_hand = Counter(each.name for each in ANSWERS if each.source == "hand" and not each.is_right)
    assert min(by_hand[name] for name in ("museum", "lighthouse", "san_francisco")) >= 100
    near = Counter(each.language for each in ANSWERS if not each.is_right)
    right = Counter(each.language for each in ANSWERS if each.is_right)
    for language in ("de", "ru", "ar", "hi", "zh"):  # five scripts
        assert near[language] >= 20, language
        assert right[language] >= 10, language


@pytest.mark.parametrize(
    ("reference", "question", "words"),
    [
        (BRASS, MUSEUM, ("inside", "brass", "telescope")),
        ("a jar of plum jam", "What does every visitor receive?", ("jar", "plum", "jam")),
        ("at home", "Where is the cat?", ("home",)),
        ("two of them", "How many?", ("two",)),
        ("on and off", "How does it work?", ("on", "off")),  # a place word with no noun behind it tells answers apart
        ("the key inside the drawer", "Where is the key?", ("inside", "drawer")),
    ],
)
def test_key_words_leave_out_function_words_and_the_questions(
    reference: str, question: str, words: tuple[str, ...]
) -> None:
    assert key_words_of(reference, question) == words


JAM = ("What does every visitor receive?", "a jar of plum jam")
CODE = ("What is the access code?", "48213")
MAYOR = ("Who is the mayor?", "Agnes Thorvald")
WHERE = ("Where is the key hidden?", BRASS)
LAMP = ("What is the state of the lamp?", "on")
HEATING = ("How does the heating work?", "on and off")


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (WHERE, "There is no doubt that it is inside the brass telescope."),
        (WHERE, "No need to look further: inside the brass telescope."),
        (JAM, "Without exception, every visitor receives a jar of plum jam."),
        (JAM, "You ask what they receive? A jar of plum jam."),
        (("What does he keep?", "a parrot"), "A parrot, a gift from his sister."),
        (("How many lanterns hang in the hall?", "seventeen"), "The hall has 17 lanterns and 2 doors."),
        (("Which organisation paid?", "the WHO"), "WHO"),
        (("Where does she live?", "the US"), "in the U.S."),
        (("Who wrote it?", "Dr. Elena Petrova"), "Elena Petrova"),
        (("What is the temperature?", "-5 degrees"), "minus 5 degrees"),
        (LAMP, "The lamp is on."),
        (LAMP, "It is on now."),
        (HEATING, "On and off."),
        (HEATING, "It goes off and on."),
        (MAYOR, "Agnes Thorvald's the mayor."),
        (MAYOR, "Agnes M. Thorvald"),
        (("Wo liegt der Schlüssel?", "im Messingfernrohr"), "Ohne Zweifel im Messingfernrohr."),
        (("Где ключ?", "в медном телескопе"), "Без сомнения, в медном телескопе."),
        (("أين المفتاح؟", "داخل التلسكوب النحاسي"), "لا شك أنه داخل التلسكوب النحاسي"),
        (("钥匙藏在哪里？", "铜望远镜里"), "鑰匙藏在銅望遠鏡裡。"),
        (("鑰匙藏在哪裡？", "銅望遠鏡裡"), "毫无疑问，在铜望远镜里。"),
        (("每位访客得到什么？", "一罐李子果酱"), "1罐李子果酱"),
        (("多少钱？", "1,250元"), "一共1250元。"),
        (("多少钱？", "1,250元"), "1,250 元"),
        (("有多远？", "3.5公里"), "大约3.5 公里。"),
        (("有多远？", "3.5公里"), "3,5公里"),
        (("どのくらいですか？", "12,000円"), "12000円です。"),
        (("Which sign is it?", "¯"), "It is ¯."),
    ],
)
def test_right_in_other_words(asked: tuple[str, str], answer: str) -> None:
    question, reference = asked
    assert key_words(answer, reference, question).reason == ""


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (JAM, "They stopped giving a jar of plum jam."),
        (("多少钱？", "1,250元"), "1,251元"),
        (("多少钱？", "1,250元"), "250元"),
        (("多少钱？", "1,250元"), "31,250元"),
        (("有多远？", "3.5公里"), "35公里"),
        (("有多远？", "3.5公里"), "13.5公里"),
        (("有多远？", "3.5公里"), "3.55公里"),
        (JAM, "They used to receive a jar of plum jam."),
        (JAM, "The text denies that they receive a jar of plum jam."),
        (JAM, "A jar of plum jam and a jar of honey."),
        (JAM, "A jar of honey. A jar of plum jam."),
        (JAM, "A jar of plum jam and a candle."),
        (JAM, "A jar of plums and jam."),
        (JAM, "A jar of plum jam? I cannot tell."),
        (WHERE, "I doubt it is inside the brass telescope."),
        (WHERE, "It was removed from inside the brass telescope."),
        (CODE, "48213 and 48214"),
        (CODE, "48213/48214"),
        (CODE, "The code was changed from 48213 to 9999."),
        (("How much is it?", "1,250 crowns"), "less than 1250 crowns"),
        (LAMP, "The lamp is off."),
        (LAMP, "The lamp sits on the table."),
        (HEATING, "It works on the first floor and off the hall."),
        (HEATING, "It is always on."),
        (MAYOR, "Agnes Thorvald's sister"),
        (("Which organisation paid?", "the WHO"), "the man who paid"),
        (("Which grade was it?", "A"), "He got a grade."),
        (("What is the temperature?", "-5 degrees"), "5 degrees"),
        (("Which animal?", "a wolf"), "a wolf and a bear"),
        (("What colour is it?", "blue"), "blue/green"),
        (("Wo liegt er?", "im Messingfernrohr"), "Früher lag er im Messingfernrohr, jetzt in der Uhr."),
        (("Сколько лодок?", "двадцать три лодки"), "более 23 лодок"),
        (("谁写了这封信？", "李小龙"), "李小龙和王明"),
    ],
)
def test_wrong_for_all_its_key_words(asked: tuple[str, str], answer: str) -> None:
    question, reference = asked
    assert not key_words(answer, reference, question).is_retrieved


def test_what_is_missing_is_named() -> None:
    found = key_words("inside the copper telescope", BRASS, MUSEUM)
    assert (found.missing, found.score) == (("brass",), pytest.approx(1 / 3))
    judged = judge("inside the copper telescope", Needle(needle="n", question=MUSEUM, answer=BRASS), Scoring())
    assert judged.reason == (
        "key_words 0.333 is not above 0.5: the answer does not hold the needle; says 2 of 3 key words; missing: brass"
    )


def test_any_of_several_answers_is_enough() -> None:
    needle = Needle(
        needle="It runs on Mondays.", question="When does it run?", answer=["on Mondays", "every Monday", "weekly"]
    )
    assert needle.reference == "on Mondays"
    for answer, passed in (("Weekly.", True), ("every Monday", True), ("daily", False)):
        assert judge(answer, needle, Scoring()).passed is passed, answer
    assert judge("weekly", needle, Scoring(metric="rouge1_recall_novel")).passed


def test_an_answer_span_is_what_must_be_said() -> None:
    needle = Needle(
        needle="The guard keeps a key inside the brass telescope, says the porter.", question=MUSEUM, answer_span=BRASS
    )
    assert judge("Inside the brass telescope.", needle, Scoring()).passed
    assert not judge("Inside the telescope, says the porter.", needle, Scoring()).passed


def test_a_suites_needle_with_an_answer_span_expects_the_span() -> None:
    needle = Needle(needle="The ferry to Oslo leaves at dawn.", question="When does the ferry leave?", name="ferry")
    for span, answer, passed in ((None, "At dawn.", False), ("at dawn", "At dawn.", True), ("at dawn", "Oslo.", False)):
        asks = Question("tale", "niah", needles=(needle.model_copy(update={"answer_span": span}),))
        expected = TheNeedle.asked(asks, Place((("length", 128), ("depth", 0), ("needle", "ferry"))))
        assert TheNeedle.judge(answer, expected, Scoring()).passed is passed, (span, answer)


def test_the_threshold_means_what_it_meant() -> None:
    needle = Needle(needle="n", question="What does every visitor receive?", answer="a jar of plum jam")
    assert judge("a jar of honey", needle, Scoring(metric="rouge1_recall_novel")).passed
    for threshold in (0.5, 0.7, 0.9):
        assert not judge("a jar of honey", needle, Scoring(threshold=threshold)).passed
        assert judge("plum jam in a jar", needle, Scoring(threshold=threshold)).passed


WORDS = st.lists(
    st.sampled_from([*BRASS.split(), "not", "or", "1,250", "3.5", "0,5元", "№7", "Ölfaß", "ключ", "钥匙", "0A", "x"]),
    max_size=6,
)


@settings(deadline=None, max_examples=50)
@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_a_repeated_reference_is_always_retrieved(reference: str, question: str) -> None:
    try:
        scores = score_answer(reference, reference, question)
    except RetrievalHeadsError:
        return
    assert set(scores) == set(METRICS)
    assert scores["key_words"] == 1.0, key_words(reference, reference, question)
