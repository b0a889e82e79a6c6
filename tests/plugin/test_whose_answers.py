"""An answer is used again only where question, model and engine are those that it was given to and by."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import NEEDLE, Project

from toy_tokenizer import ByteTokenizer

ONE = {"context_lengths": [128], "document_depths": [50]}


def asked(project: Project) -> list[int]:
    """How many cells each engine was asked, in the order of the engines."""
    return [int(line) for line in (project.path / "asked").read_text().split()]


def weights(path: Path, value: float) -> None:
    """A safetensors file of one tensor: its header and size are the same whatever the value."""
    header = json.dumps({"o_proj": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<8f", *[value] * 8))


def model_folder(project: Project, value: float = 1.0) -> Path:
    folder = project.path / "models" / "toy"
    weights(folder / "model.safetensors", value)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def answered_once(project: Project, **model: Any) -> None:
    """A run of one cell, to be resumed."""
    project.suite(sweep=ONE)
    project.behave(asked="asked")
    project.write("config.yaml", {"model": {"model": "toy", **model}})
    project.run().assert_outcomes(passed=1)


class TestResume:
    @pytest.mark.parametrize(
        ("setting", "told"),
        [
            ("model.quantization=fp8", "model.quantization: none then, fp8 now"),
            ("model.enforce_eager=true", "engine.enforce_eager: none then, true now"),
            ("generation.top_k=3", "question.sampling.top_k: none then, 3 now"),
            ("boundary=token", "question.boundary: sentence then, token now"),
        ],
    )
    def test_another_question_model_or_engine_is_asked_again_and_named(
        self, project: Project, setting: str, told: str
    ) -> None:
        answered_once(project)
        result = project.run("--rh-resume", "--rh-set", setting)
        assert asked(project) == [1, 1]
        result.stdout.fnmatch_lines(
            ["0 of 1 answers are those of the earlier run", f"1 answer was asked again: {told}*"]
        )
        assert list(project.facts()["asked_again"].values()) == [1]

    def test_what_cannot_change_an_answer_is_not_asked_again(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered_once(project)
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
        monkeypatch.setenv("VLLM_API_KEY", "secret-key")
        settings = (
            "model.gpu_memory_utilization=0.5",
            "model.max_num_seqs=4",
            "scoring.threshold=0.1",
            "verdict=none",
            "gates=[mean(pass_rate) >= 0.1]",
            "allow_skipped=true",
            "engine.replicas=auto",
        )
        result = project.run("--rh-resume", *(word for setting in settings for word in ("--rh-set", setting)))
        assert asked(project) == [1]
        result.stdout.fnmatch_lines(["1 of 1 answers are those of the earlier run"])
        result.stdout.no_fnmatch_line("*asked again*")
        assert "secret-key" not in (project.latest / "run.json").read_text("utf-8")

    def test_a_variable_that_chooses_a_kernel_is_asked_again(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answered_once(project)
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "TRITON_ATTN")
        result = project.run("--rh-resume")
        result.stdout.fnmatch_lines(
            ["1 answer was asked again: engine.VLLM_ATTENTION_BACKEND: none then, TRITON_ATTN now"]
        )

    def test_an_edited_haystack_is_asked_again(self, project: Project) -> None:
        answered_once(project)
        tale = project.path / "tales/a.txt"
        tale.write_text(tale.read_text().replace("boat", "ship"))
        project.run("--rh-resume").stdout.fnmatch_lines(["1 answer was asked again: question.haystack: * then, * now"])

    def test_another_chat_template_is_asked_again(self, project: Project) -> None:
        answered_once(project)
        result = project.run("--rh-resume", "--rh-set", 'model.chat_template="{trims}"')
        result.stdout.fnmatch_lines(["1 answer was asked again: question.template: * then, * now"])

    def test_weights_edited_in_place_are_seen(self, project: Project) -> None:
        folder = model_folder(project, 1.0)
        answered_once(project, model=str(folder))
        weights(folder / "model.safetensors", 0.0)
        result = project.run("--rh-resume")
        assert asked(project) == [1, 1]
        result.stdout.fnmatch_lines(["1 answer was asked again: model.weights/model.safetensors: * then, * now"])

    def test_answers_that_do_not_say_who_gave_them_are_asked_again(self, project: Project) -> None:
        answered_once(project)
        results = project.latest / "results.jsonl"
        record = json.loads(results.read_text())
        del record["answered_by"]
        record["request"] = "0" * 64
        results.write_text(json.dumps(record) + "\n")
        result = project.run("--rh-resume")
        assert asked(project) == [1, 1]
        result.stdout.fnmatch_lines(
            ["1 answer was asked again: the earlier answers do not say which model and engine *"]
        )

    def test_an_engine_that_does_not_start_leaves_what_the_answers_refer_to(self, project: Project) -> None:
        answered_once(project)
        project.behave(fail="no memory")
        assert project.run("--rh-resume").ret == pytest.ExitCode.TESTS_FAILED
        project.behave(asked="asked")
        result = project.run("--rh-resume", "--rh-set", "model.quantization=fp8")
        result.stdout.fnmatch_lines(["1 answer was asked again: model.quantization: none then, fp8 now"])

    def test_a_run_of_two_models_keeps_who_gave_which_answer(self, project: Project) -> None:
        project.suite()
        project.run("-k", "len_128")
        project.run("--rh-resume", "-k", "len_256", "--rh-set", "model.dtype=float16")
        identities = project.facts()["identities"]
        dtypes = {
            record.context_length: identities["models"][record.answered_by.model]["fields"]["dtype"]
            for record in project.records()
            if record.answered_by is not None and "dtype" in identities["models"][record.answered_by.model]["fields"]
        }
        assert dtypes[256] == "float16"
        assert len(identities["models"]) == 2
        assert {len(record.answered_by.model) for record in project.records() if record.answered_by} == {12}


class TestRescore:
    def test_another_model_is_refused(self, project: Project) -> None:
        answered_once(project)
        before = (project.latest / "results.jsonl").read_bytes()
        for setting, told in (
            ("model.model=other", "model.name: toy then, other now"),
            ("model.quantization=fp8", "model.quantization: none then, fp8 now"),
        ):
            result = project.run("--rh-rescore", "--rh-set", setting)
            assert result.ret == pytest.ExitCode.USAGE_ERROR
            result.stdout.fnmatch_lines([f"*rh: --rh-rescore: the stored answers are another model's ({told})*"])
        assert (project.latest / "results.jsonl").read_bytes() == before
        assert project.run("--rh-rescore", "--rh-set", "model.max_num_seqs=3").ret == 0
        assert project.run("--rh-rescore", config=False).ret == 0

    def test_another_question_is_refused_unless_allowed(self, project: Project) -> None:
        answered_once(project)
        token = ["--rh-rescore", "--rh-set", "boundary=token"]
        result = project.run(*token)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(["*niah/tale: *another question (question.boundary: sentence then, token now)*"])
        assert project.run(*token, "--rh-allow-changed").ret == 0


class TestStoredAnswers:
    """What a detect suite traces in place of asking."""

    def traced(self, project: Project, *options: str, **keys: Any) -> pytest.RunResult:
        detect = {"kind": "detect", "from_results": "stored/results.jsonl", "verdict": "none", **keys}
        project.write("suites/detect/again.yaml", yaml.safe_dump(detect))
        return project.run("suites/detect/again.yaml", *options, suites=False)

    def stored(self, project: Project) -> Path:
        answered_once(project)
        return project.latest.resolve().rename(project.path / "stored")

    def test_a_plain_runs_answers_are_traced_by_a_traced_engine(self, project: Project) -> None:
        self.stored(project)
        self.traced(project).assert_outcomes(passed=1)

    def test_those_of_another_model_are_refused_unless_asked_for_by_name(self, project: Project) -> None:
        self.stored(project)
        result = self.traced(project, "--rh-set", "model.model=other")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(
            [
                "*rh: detect/again: *results.jsonl holds answers of another model than other "
                "(model.name: toy then, other now)*"
            ]
        )
        assert len(project.starts) == 1, "names of a hub tell it before anything is loaded"
        again = self.traced(project, "--rh-set", "model.model=other", from_model="toy")
        again.assert_outcomes(passed=1)
        assert self.traced(project, "--rh-set", "model.model=other", from_model="third").ret == 4

    def test_the_same_name_with_other_settings_is_another_model(self, project: Project) -> None:
        self.stored(project)
        result = self.traced(project, "--rh-set", "model.quantization=fp8")
        result.assert_outcomes(errors=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            ["*another model than toy (model.quantization: none then, fp8 now)*`from_model: toy`*"]
        )

    def test_the_predecessors_are_traced_with_a_warning(self, project: Project) -> None:
        folder = self.stored(project)
        said = ByteTokenizer().encode("ferry")
        old = {"context_length": 128, "document_depth": 50, "needle": NEEDLE["needle"], "rougeL": 0.9}
        old |= {"prompt": f"There was a boat. {NEEDLE['needle']} It sailed.", "text": "ferry", "token_ids": said}
        (folder / "results.jsonl").write_text(json.dumps(old) + "\n")
        project.behave(tokenizer="bytes")
        result = self.traced(project)
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            ["WARN detect/again: *records that do not say which model answered; they are traced as *"]
        )
        # They hold one score: a gate on another is broken, and the gates beside it are judged all the same.
        again = self.traced(project, verdict="gates", gates=["mean(key_words) >= 0.5", "mean(rougeL_f) >= 0.5"])
        again.assert_outcomes(passed=1 + 1, failed=1)
        assert again.ret == pytest.ExitCode.TESTS_FAILED
        told = "mean(key_words) has no value, must be >= 0.5: no measured cell holds key_words; they hold"
        again.stdout.fnmatch_lines([f"FAIL detect/again: {told} * rougeL, rougeL_f, seconds"])
        gates = json.loads((project.latest / "gates.json").read_text("utf-8"))["gates"]
        assert [gate["outcome"] for gate in gates] == ["broken", "held"]
        assert self.traced(project, "--rh-save-baseline", "main").ret == 0
        fallen = ("--rh-baseline", "main", "--rh-max-drop", "key_words:0.1")
        against = self.traced(project, *fallen, verdict="gates", gates=["mean(rougeL_f) >= 0.5"])
        against.assert_outcomes(passed=1 + 1, failed=1)
        against.stdout.fnmatch_lines(["FAIL detect/again: max drop: 'key_words' cannot be compared; *rougeL_f*"])

    def test_ours_without_a_word_on_the_model_are_refused(self, project: Project) -> None:
        folder = self.stored(project)
        (folder / "run.json").unlink()
        result = self.traced(project)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stdout.fnmatch_lines(["*does not say which model gave its answers*`from_model: unknown`*"])
        self.traced(project, from_model="unknown").assert_outcomes(passed=1)
