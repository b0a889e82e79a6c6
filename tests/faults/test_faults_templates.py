"""Chat templates that loop, multiply, reach for what is not theirs, or lose the prompt.

They are rendered by Jinja's sandbox, as transformers does, and end after two seconds here instead of twenty.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from fault_case import Case, Special
from fault_project import CONFIG, SUITE, text_of
from fault_settings import drawn
from hypothesis import given
from hypothesis import strategies as st

Check = Callable[[Case], None]

_SAYS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
_ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{{ 10 ** 10 ** 9 }}",
    "{{ (10 ** 10 ** 6) ** 999 }}",
    "{{ ('a' * 9000000) | replace('a', 'a' * 9000) }}",
    "{{ range(99999) | map('string') | join('x' * 99999) }}",
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% for a in 'x' * 99999999 recursive %}{{ loop([a]) }}{% endfor %}",
)
_HUGE = (
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a' * 10 ** 30 }}",
    "{{ 'a' * 100000000 }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%.*f' % (2000000000, 1.0) }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a\nb' | indent(10 ** 10) }}",
    "{{ messages | tojson(indent=10 ** 10) }}",
    "{{ 'a\tb'.expandtabs(10 ** 10) }}",
    "{{ lipsum(n=10 ** 7) }}",
)
_REFUSED = (
    "{{ range(10 ** 6) | list }}",
    "{% for a in range(10 ** 15) %}x{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ nobody() }}",
    "{{ messages[0].nothing.more }}",
    "{{ messages[99].content.x }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.append(1) }}",
    "{{ '\\ud800' }}" + _SAYS,
    "{{ 1 / 0 }}",
    "{{ raise_exception('two users in a row') }}",
    "{{ raise_exception('\\x1b[31mred\\x07') }}",
    "{{ raise_exception('x' * 100000) }}",
    "{% for m in messages %}",
    "{{",
    "{% if %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ messages | nothing }}",
    "{% nothing %}",
    "{}",
    "{{ '' }}",
    "{{ messages[0].content | upper }}",
    "{{ messages[0].content | reverse }}",
    "{{ messages[0].content[:60] }}",
    "{{ messages[0].content | wordcount }}",
    _SAYS + _SAYS,
    "{" * 3000,
    "{{ " + "(" * 3000 + " }}",
    "{{ " + "-" * 20000 + "1 }}",
)
_FINE = (
    _SAYS,
    "{% set n = namespace(at=0) %}{% for m in messages %}{% set n.at = n.at + 1 %}{{ m.content }}{% endfor %}",
    "{% macro says(m) %}<|{{ m['role'] }}|>{{ m['content'] }}{% endmacro %}"
    "{% for m in messages %}{{ says(m) }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{# a thousand lines #}\n" + "{% if false %}nothing{% endif %}" * 1000 + _SAYS,
    "{{ 'é' * 1000 }} " + _SAYS,
)
_VALIDATE = ("validate", SUITE, "--config", "config.yaml")


def _case(template: str, how: str, expected: str = "refused") -> Case:
    """A template in the config, in a file, or asked for by a flag."""
    if how == "config":
        files = {"config.yaml": text_of({**CONFIG, "model": {**CONFIG["model"], "chat_template": template}})}
        arguments: Sequence[str] = _VALIDATE
    elif how == "file":
        model = {**CONFIG["model"], "chat_template": "own.jinja"}
        files = {"own.jinja": template, "config.yaml": text_of({**CONFIG, "model": model})}
        arguments = _VALIDATE
    else:
        files, arguments = {}, (*_VALIDATE, f"--model.chat-template={json.dumps(template)}")
    seconds = 2.0 if expected == "refused" else 60.0
    return Case("cli", arguments, files, expected, seconds=seconds, note=template[:100])  # type: ignore[arg-type]


_HALVES = [0, pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("part", _HALVES)
def test_one_that_does_not_end_is_ended(check: Check, part: int) -> None:
    for template in _ENDLESS[part::2]:
        check(_case(template, "config"))


@pytest.mark.parametrize("part", _HALVES)
def test_one_that_multiplies_is_ended(check: Check, part: int) -> None:
    for number, template in enumerate(_HUGE[part::2]):
        check(_case(template, ("config", "file", "flag")[number % 3]))


def test_one_that_is_wrong_or_loses_the_prompt_is_refused(check: Check) -> None:
    for number, template in enumerate(_REFUSED):
        check(_case(template, ("config", "file", "flag")[number % 3]))


@pytest.mark.parametrize("how", ["config", "file", "flag"])
def test_one_that_is_fine_is_accepted(check: Check, how: str) -> None:
    for template in _FINE:
        check(_case(template, how, "accepted"))


@pytest.mark.parametrize("kind", ["fifo", "folder", "/dev/zero", "nowhere"])
def test_a_file_that_is_none_is_refused(check: Check, kind: str) -> None:
    special = Special(kind) if kind in ("fifo", "folder") else Special("link", kind)  # type: ignore[arg-type]
    config = text_of({**CONFIG, "model": {**CONFIG["model"], "chat_template": "./own.jinja"}})
    check(Case("cli", _VALIDATE, {"own.jinja": special, "config.yaml": config}, says=["own.jinja"]))


@drawn(15)
@given(
    st.integers(0, len(_SAYS) - 1),
    st.sampled_from(["", "{{", "}}", "{%", "%}", "'", "(", "[", "\\", "é", "* 9999999999", "{#", " ~ ", "|", "."]),
    st.booleans(),
)
def test_one_cut_or_with_a_byte_changed_ends_in_no_fault(check: Check, at: int, put: str, is_cut: bool) -> None:
    check(_case(_SAYS[:at] + put + ("" if is_cut else _SAYS[at + 1 :]), "config", "either"))
