"""What is a secret, and that it is taken out in every form in which files and messages hold it."""

from __future__ import annotations

import json

import pytest

from retrieval_heads import redaction
from retrieval_heads.errors import ConfigError, FileError
from retrieval_heads.redaction import (
    is_secret_key,
    keep_assignment_secret,
    keep_secret,
    without_secrets,
    without_values,
)
from retrieval_heads.runs.record import Record, dump_record
from retrieval_heads.suites.reading import overrides
from retrieval_heads.suites.settings import Model

TOKEN = "hf_Abc\"123'xyz/+="


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_told", set())


@pytest.mark.parametrize(
    "key", ["hf_token", "hf-token", "api_key", "OPENAI_API_KEY", "password", "aws_secret_access_key", "token"]
)
def test_keys_of_secrets(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize(
    "key", ["max_tokens", "tokenizer", "TOKENIZERS_PARALLELISM", "eos_token", "stop_token_ids", "key", "seed", 5]
)
def test_keys_of_no_secrets(key: object) -> None:
    assert not is_secret_key(key)


def test_a_value_that_was_set_is_known_wherever_it_turns_up() -> None:
    keep_secret({"model": {"hf_token": TOKEN, "extra": [{"api_key": "sk-123456"}]}})
    forms = [TOKEN, repr(TOKEN), json.dumps(TOKEN), json.dumps({"a": [TOKEN]}), f"x{TOKEN}y", "sk-123456"]
    for form in forms:
        assert redaction.MARK in without_values(form)
        assert "123" not in without_values(form)
    assert without_values({"said": [TOKEN], "model": {"hf_token": TOKEN, "max_tokens": 5}}) == {
        "said": ["***"],
        "model": {"max_tokens": 5},
    }


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("--rh-set=model.hf_token=abc", "--rh-set=model.hf_token=***"),
        ("model.hf_token='a b c', x=1", "model.hf_token=***, x=1"),
        ("model={hf_token: abc, seed: 1}", "model={hf_token: ***, seed: 1}"),
        ('{"api_key": "abc"}', '{"api_key": ***}'),
        ("--model.hf-token=abc", "--model.hf-token=***"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("https://user:pass@host/x", "https://***@host/x"),
        ("https://token@host/x?token=abc&x=1", "https://***@host/x?token=***&x=1"),
    ],
)
def test_messages_hold_no_value_of_such_a_key(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=512, hf_token=None, api_key: null",
        "TOKENIZERS_PARALLELISM=false",
        "the first token: <|im_start|>",
        "mail me@example.org or see https://example.org/a@b",
        "eos_token: '</s>'",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_secrets(text) == text


def test_of_other_peoples_texts_only_known_values_are_taken() -> None:
    assert without_values("the password: swordfish") == "the password: swordfish"


@pytest.mark.parametrize("variable", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "CI_JOB_TOKEN"])
def test_a_variable_of_the_environment_is_a_secret(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "abcdefghijkl")
    assert without_values("so abcdefghijkl it is") == "so *** it is"
    monkeypatch.setenv(variable, "abcdefghijk")
    assert without_values("so abcdefghijk it is") == "so abcdefghijk it is", "shorter than 12 characters"


@pytest.mark.parametrize("variable", ["TOKENIZERS_PARALLELISM", "MAX_TOKENS", "HF_TOKEN_PATH", "HOME"])
def test_other_variables_are_none(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "abcdefghijkl")
    assert without_values("so abcdefghijkl it is") == "so abcdefghijkl it is"


@pytest.mark.parametrize(
    "assignment",
    ["model.hf_token=[swordfish", "model.hf_token: swordfish", "model={hf_token: swordfish", "hf_token=swordfish"],
)
def test_an_option_that_cannot_be_read_is_quoted_without_it(assignment: str) -> None:
    with pytest.raises(ConfigError) as error:
        overrides([assignment])
    assert "swordfish" not in str(error.value)


def test_an_option_is_known_before_it_is_read() -> None:
    keep_assignment_secret("model.hf_token='sword fish'")
    assert without_values("a sword fish") == "a ***"


def test_a_path_in_an_error_holds_none() -> None:
    keep_secret({"api_key": "swordfish"})
    assert str(FileError(28, "No space left on device", "/tmp/swordfish")) == (
        "/tmp/***: cannot be written (No space left on device)"
    )


def test_settings_show_none() -> None:
    model = Model.model_validate({"model": "toy", "hf_token": "swordfish"})
    assert "swordfish" not in repr(model)
    assert model.engine_args == {"hf_token": "swordfish"}, "the engine gets it"


def test_a_records_line_holds_none_and_is_json() -> None:
    keep_secret({"api_key": "12345", "hf_token": "swordfish"})
    record = Record.model_validate(
        {"context_length": 512345, "document_depth": 50, "needle": "n", "reason": "no swordfish", "token_ids": [12345]}
    )
    line = json.loads(dump_record(record))
    assert (line["reason"], line["context_length"], line["token_ids"]) == ("no ***", 512345, [12345])
