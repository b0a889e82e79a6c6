"""A chat template comes to an end, whatever it does."""

from __future__ import annotations

import os

import psutil
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from retrieval_heads.errors import PromptError
from retrieval_heads.prompts import rendering
from retrieval_heads.prompts.rendering import render_limited

ENVIRONMENT = ImmutableSandboxedEnvironment()


def rendered(template: str) -> str:
    return render_limited(lambda: ENVIRONMENT.from_string(template).render(said="dawn"))


def test_what_a_template_writes_comes_back_whole() -> None:
    assert rendered("<s>{{ said }} 夜明け\n" + "x" * 300_000) == "<s>dawn 夜明け\n" + "x" * 300_000
    assert rendered("") == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        pytest.param(
            "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
            marks=pytest.mark.long,
        ),
        "{{ 10 ** (10 ** 9) }}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a' * 100000000 }}",
        pytest.param("{{ '%1000000000d' % 1 }}", marks=pytest.mark.long),
        "{{ ('a' * 9000000) | replace('a', 'a' * 9000) }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{{ [1] * 10000000000 }}",
    ],
)
def test_one_that_would_not_end_or_fills_the_memory_is_ended(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    before = psutil.Process().children(recursive=True)  # another test's library may keep one
    with pytest.raises(PromptError, match=r"^the chat template (was ended: |writes more than 4,000,000 characters)"):
        rendered(template)
    assert set(psutil.Process().children(recursive=True)) <= set(before), "nothing is left of it"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nobody() }}", "'nobody' is undefined"),
        ("{{ said.__class__.__mro__ }}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_one_that_refuses_says_why(template: str, reason: str) -> None:
    with pytest.raises(PromptError, match=f"^the chat template refuses this prompt: .*{reason}"):
        rendered(template)


def test_a_child_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> str:
        os._exit(9)

    with pytest.raises(PromptError, match="was ended"):
        render_limited(die)
