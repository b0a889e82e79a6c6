"""What users name is read strictly: regular files, paths that can be one, JSON without surprises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from retrieval_heads.errors import ConfigError, ResultsError, UnreadableFile, printable
from retrieval_heads.reading import parse_json, path_of, read_object, read_text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a path is expected, found ''"),
        (" ", "a path is expected, found ' '"),
        ("a\0b", "it holds a NUL"),
        ("~nosuchuser/x", "there is no user 'nosuchuser'"),
        ("x" * 5000, "File name too long"),
        ("x/" * 3000, "File name too long"),
    ],
)
def test_what_is_no_path_is_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(UnreadableFile) as error:
        path_of(text)
    assert reason in str(error.value)
    assert len(str(error.value)) < 1100


def test_a_path_that_is_fine_is_taken_as_it_is() -> None:
    assert path_of("reports/latest") == Path("reports/latest")
    assert path_of("~/x") == Path.home() / "x"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, reason in (
        (tmp_path / "fifo", "it is a FIFO"),
        (Path("/dev/zero"), "it is a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none", "cannot be read (No such file or directory)"),
    ):
        with pytest.raises(UnreadableFile) as error:
            read_text(path)
        assert str(error.value).startswith(f"{path}: cannot be read")
        assert reason in str(error.value)


def test_a_text_is_utf_8_with_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("Grüße\r\nan\ralle".encode())
    assert read_text(tmp_path / "a") == "Grüße\nan\nalle"
    (tmp_path / "b").write_bytes(b"Gr\xfc\xdfe")
    with pytest.raises(UnreadableFile, match=r"is not UTF-8 text \(byte 2\)$"):
        read_text(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "a value is nan, not a number"),
        ('{"a": -Infinity}', "a value is -infinity, not a number"),
        ('{"a": 1e400}', "the number 1e400 is too large"),
        ("1" + "0" * 400, "a number of 401 digits is too large"),
        ("9" * 5000, "a number of 5000 digits is too large"),
        ("-9223372036854775808", "a number of 19 digits is too large"),
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ("[" * 51 + "]" * 51, "more than 50 lists and objects stand in each other"),
        ("[" * 100_000, "more than 50 lists and objects stand in each other"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("\0", "not a JSON object"),
        ("{", "not a JSON object"),
    ],
)
def test_json_that_no_file_of_ours_holds(text: str, reason: str) -> None:
    with pytest.raises(UnreadableFile, match=r"^f:3: ") as error:
        parse_json(text, "f:3")
    assert reason in str(error.value)


def test_json_that_is_fine() -> None:
    assert parse_json('{"a": ["\\ud83d\\ude00 [[{{", 1.5e3, -7]}', "f") == {"a": ["\U0001f600 [[{{", 1500.0, -7]}
    assert parse_json("[" * 50 + "]" * 50, "f")
    assert parse_json(f'["{"[" * 99}"]', "f") == ["[" * 99], "brackets in a text are no lists"


def test_an_object_is_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UnreadableFile, match=r"a\.json: a JSON object is expected, found list$"):
        read_object(tmp_path / "a.json")


def test_an_unreadable_file_is_a_mistake_of_whoever_names_it() -> None:
    assert issubclass(UnreadableFile, ConfigError)
    assert issubclass(UnreadableFile, ResultsError)


def test_what_a_terminal_would_obey_is_written_as_its_escape() -> None:
    assert printable("a\x1b[31mred\x1b]0;title\x07\nb\tc\x9b\u202e\ud800é🙂") == (
        "a\\x1b[31mred\\x1b]0;title\\x07\nb\tc\\x9b\\u202e\\ud800é🙂"
    )
    assert str(ConfigError("no \x1b[2J")) == "no \\x1b[2J"


def test_a_sentence_stays_readable_whatever_it_quotes() -> None:
    said = str(ConfigError("found " + "x" * 5000 + "\nsecond line"))
    assert [len(line) for line in said.splitlines()] == [1003, 11]
    assert said.startswith("found xxx")
