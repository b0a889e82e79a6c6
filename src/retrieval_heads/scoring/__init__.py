"""Scores of answers: key words, ROUGE and substring, in every script; `judge` says whether a needle was retrieved."""

from retrieval_heads.scoring.judge import Judgement, judge, score_answer
from retrieval_heads.scoring.key_words import KeyWords, best_key_words, key_words, key_words_of
from retrieval_heads.scoring.matches import judge_any, judge_several, matches
from retrieval_heads.scoring.rouge import tokens, words_of

__all__ = [
    "Judgement",
    "KeyWords",
    "best_key_words",
    "judge",
    "judge_any",
    "judge_several",
    "key_words",
    "key_words_of",
    "matches",
    "score_answer",
    "tokens",
    "words_of",
]
