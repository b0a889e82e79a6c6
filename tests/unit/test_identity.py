"""What tells one model, engine or question from another, and how a difference is named."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.errors import ConfigError
from retrieval_heads.runs import fingerprint
from retrieval_heads.runs.fingerprint import fingerprints
from retrieval_heads.runs.identity import (
    UNKNOWN,
    Identities,
    Identity,
    argument_differences,
    asked_again_line,
    differences,
    engine_identity,
    model_identity,
    question_differences,
    weights_of,
    why_asked_again,
)
from retrieval_heads.runs.origin import Origin
from retrieval_heads.runs.record import Record


def weights(path: Path, value: float, count: int = 8) -> Path:
    """A safetensors file of one tensor: its header and size are the same whatever the value."""
    header = json.dumps({"o_proj": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", value) * count)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RH_CACHE", str(tmp_path / "cache"))
    made = weights(tmp_path / "toy" / "model.safetensors", 1.0).parent
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"):
        (made / name).write_text("{}", encoding="utf-8")
    return made


def model(arguments: dict[str, Any] | None = None, name: str = "toy", revision: str | None = "main") -> Identity:
    return model_identity(name, weights_of(name), arguments or {}, {}, revision)


def engine(arguments: dict[str, Any] | None = None, *, traced: bool = False, **environment: str) -> Identity:
    return engine_identity(arguments or {}, environment, engine="vllm 0.32.0", device="cpu", traced=traced)


def told(part: str, then: Identity, now: Identity) -> list[str]:
    return [one.sentence() for one in differences(part, then, now)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"quantization": "fp8"}, "model.quantization: none then, fp8 now"),
        ({"kv_cache_dtype": "fp8"}, "model.kv_cache_dtype: none then, fp8 now"),
        ({"dtype": "float16"}, "model.dtype: none then, float16 now"),
        ({"hf_overrides": {"rope_theta": 1}}, 'model.hf_overrides: none then, {"rope_theta": 1} now'),
        ({"enable_lora": True}, "model.enable_lora: none then, true now"),
        ({"tokenizer": "other"}, "model.tokenizer: none then, other now"),
        ({"override_generation_config": {"k": 1}}, 'model.override_generation_config: none then, {"k": 1} now'),
    ],
)
def test_an_argument_that_says_which_model_answers_is_the_models(arguments: dict[str, Any], named: str) -> None:
    assert told("model", model(), model(arguments)) == [named]
    assert told("engine", engine(), engine(arguments)) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"enforce_eager": True}, "engine.enforce_eager: none then, true now"),
        ({"tensor_parallel_size": 2}, "engine.tensor_parallel_size: none then, 2 now"),
        ({"max_model_len": 4096}, "engine.max_model_len: none then, 4096 now"),
        ({"an_argument_of_tomorrow": 1}, "engine.an_argument_of_tomorrow: none then, 1 now"),
    ],
)
def test_every_other_argument_is_the_engines(arguments: dict[str, Any], named: str) -> None:
    assert told("engine", engine(), engine(arguments)) == [named]
    assert told("model", model(), model(arguments)) == []


@pytest.mark.parametrize(
    "key", ["gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "disable_log_stats", "hf_token"]
)
def test_what_cannot_change_an_answer_is_neither(key: str) -> None:
    assert engine() == engine({key: 1})
    assert model() == model({key: 1})


def test_plain_and_traced_engines_differ_and_so_do_versions() -> None:
    assert "engine.traced: false then, true now" in told("engine", engine(), engine(traced=True))
    other = engine_identity({}, {}, engine="vllm 0.33.0", device="cpu", traced=False)
    assert told("engine", engine(), other) == ["engine.version: vllm 0.32.0 then, vllm 0.33.0 now"]
    assert "torch" in engine().fields


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("VLLM_ATTENTION_BACKEND", True),
        ("VLLM_USE_DEEP_GEMM", True),
        ("VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE", True),
        ("VLLM_A_VARIABLE_OF_TOMORROW", True),
        ("NVIDIA_TF32_OVERRIDE", True),
        ("VLLM_LOGGING_LEVEL", False),
        ("VLLM_API_KEY", False),
        ("VLLM_CACHE_ROOT", False),
        ("VLLM_CPU_KVCACHE_SPACE", False),
        ("HOME", False),
    ],
)
def test_variables_that_choose_kernels_are_the_engines(name: str, counts: bool) -> None:
    assert told("engine", engine(), engine(**{name: "1"})) == ([f"engine.{name}: none then, 1 now"] if counts else [])


def test_what_was_loaded_goes_before_what_was_asked_for() -> None:
    loaded = {"dtype": "bfloat16", "quantization": "none"}
    asked = model_identity("toy", None, {"dtype": "auto"}, loaded, "main")
    assert asked == model_identity("toy", None, {}, loaded, "main")


def test_a_hubs_model_is_known_by_name_and_commit() -> None:
    assert told("model", model(revision="aaa"), model(revision="bbb")) == ["model.revision: aaa then, bbb now"]
    assert told("model", model(name="one"), model(name="two")) == ["model.name: one then, two now"]


def test_what_is_unknown_equals_nothing_not_even_itself() -> None:
    unknown = model(revision=UNKNOWN)
    assert not unknown.is_known
    assert told("model", unknown, unknown) == ["model.revision: unknown then, unknown now"]
    first, second = (Identities.of(unknown, engine(), run) for run in ("r1", "r2"))
    assert first.models.keys().isdisjoint(second.models)
    assert first.engines.keys() == second.engines.keys()
    assert told("model", model(), Identity.of_json("torn")) != []
    assert [one.sentence() for one in differences("model", None, model())] == ["model: unknown then, toy now"]


class TestFolder:
    def test_weights_edited_in_place_are_seen_though_size_header_and_time_stay(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        before, times = model(name=str(folder)), file.stat()
        weights(file, 0.0)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert file.stat().st_size == times.st_size
        (named,) = told("model", before, model(name=str(folder)))
        assert named.startswith("model.weights/model.safetensors: ")

    def test_an_edit_is_seen_though_the_hash_was_remembered(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fingerprint, "_WORTH_REMEMBERING", 0)
        monkeypatch.setattr(fingerprint, "_SETTLED_SECONDS", -1e9)
        file = folder / "model.safetensors"
        times = file.stat()
        first = fingerprints(folder)
        with monkeypatch.context() as patched:
            patched.setattr(fingerprint, "_hash", lambda *_: pytest.fail("it was hashed again"))
            assert fingerprints(folder) == first
        weights(file, 2.0)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert fingerprints(folder) != first

    def test_what_changed_lately_is_not_remembered(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fingerprint, "_WORTH_REMEMBERING", 0)
        fingerprints(folder)
        assert not (folder.parent / "cache" / "fingerprints.json").exists()

    def test_a_torn_memory_is_no_memory(self, folder: Path) -> None:
        memory = folder.parent / "cache" / "fingerprints.json"
        first = fingerprints(folder)
        memory.parent.mkdir(exist_ok=True)
        memory.write_text('{"a": [1', encoding="utf-8")
        assert fingerprints(folder) == first

    def test_a_byte_in_any_piece_is_seen(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fingerprint, "_PIECE", 1 << 10)
        file = weights(folder / "model.safetensors", 1.0, count=1000)
        whole = file.read_bytes()
        hashes = set()
        for at in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            hashes.add(fingerprints(folder)["weights/model.safetensors"])
        assert len(hashes) == 3

    @pytest.mark.parametrize(
        ("file", "kind"),
        [
            ("config.json", "config"),
            ("generation_config.json", "config"),
            ("modeling_toy.py", "config"),
            ("tokenizer.json", "tokenizer"),
            ("chat_template.jinja", "tokenizer"),
            ("pytorch_model.bin", "weights"),
            ("toy.Q4_0.gguf", "weights"),
            ("model.safetensors.index.json", "weights"),
        ],
    )
    def test_every_file_that_can_change_an_answer_counts(self, folder: Path, file: str, kind: str) -> None:
        (folder / file).write_text("{}", encoding="utf-8")
        before = model(name=str(folder))
        (folder / file).write_text("[]", encoding="utf-8")
        (named,) = told("model", before, model(name=str(folder)))
        assert named.startswith(f"model.{kind}/{file}: ")

    @pytest.mark.parametrize("file", ["README.md", "LICENSE", "optimizer.pt", ".gitattributes", "plot.png"])
    def test_no_other_counts(self, folder: Path, file: str) -> None:
        before = model(name=str(folder))
        (folder / file).write_text("anything", encoding="utf-8")
        assert model(name=str(folder)) == before

    def test_the_same_files_in_another_place_are_the_same_model(self, folder: Path) -> None:
        before = model(name=str(folder))
        moved = folder.rename(folder.with_name("moved"))
        assert told("model", before, model(name=str(moved))) == []

    def test_many_files_are_one_line(self, folder: Path) -> None:
        for number in range(30):
            weights(folder / f"model-{number:05}-of-00030.safetensors", 1.0)
        before = model(name=str(folder))
        for number in range(30):
            weights(folder / f"model-{number:05}-of-00030.safetensors", 0.0)
        (named,) = told("model", before, model(name=str(folder)))
        assert named.startswith("model.weights: 30 files differ, model-00000-of-00030.safetensors: ")

    def test_an_adapters_files_are_the_models(self, folder: Path) -> None:
        adapter = weights(folder.parent / "adapter" / "adapter_model.safetensors", 1.0)
        arguments = {"lora_modules": [{"name": "a", "path": str(adapter.parent)}]}
        before = model(arguments)
        weights(adapter, 2.0)
        (named,) = told("model", before, model(arguments))
        assert named.startswith("model.lora_modules/weights/adapter_model.safetensors: ")


RECIPE = {
    "haystack": "pydoc",
    "hash": "a" * 64,
    "tokens": 9,
    "offset": 0,
    "insertion": 1,
    "repeats": 0,
    "wording": [{"role": "user", "content": "{context} {question}"}],
    "template_hash": "t",
    "prompt_hash": "1" * 64,
    "template": {"hash": "b" * 64},
    "boundary": "sentence",
    "sampling": {"temperature": 0.0},
}


def record(answered_by: dict[str, str] | None = None, **recipe: Any) -> Record:
    fields = {"context_length": 512, "document_depth": 50, "needle": "N", "cell": "c", "suite": "s"}
    return Record.model_validate({**fields, "answered_by": answered_by, "recipe": {**RECIPE, **recipe}})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hash": "c" * 64}, "question.haystack: aaaaaaaaaaaa then, cccccccccccc now"),
        ({"template": {"hash": "d" * 64}}, "question.template: bbbbbbbbbbbb then, dddddddddddd now"),
        (
            {"template": {"hash": "b" * 64, "kwargs": {"x": 1}}},
            'question.chat_template_kwargs: none then, {"x": 1} now',
        ),
        ({"boundary": "token"}, "question.boundary: sentence then, token now"),
        ({"sampling": {"temperature": 0.0, "top_k": 3}}, "question.sampling.top_k: none then, 3 now"),
        ({}, "question.prompt: 111111111111 then, 222222222222 now"),
    ],
)
def test_what_differs_between_two_questions_is_named(change: dict[str, Any], named: str) -> None:
    found = question_differences(record(), record(**change, prompt_hash="2" * 64))
    assert [one.sentence() for one in found] == [named]


def test_why_cells_are_asked_again_is_one_line_with_counts() -> None:
    then = Identities.of(model(), engine(), "")
    now = Identities.of(model({"quantization": "fp8"}), engine(), "")
    before, after = ({"model": next(iter(one.models)), "engine": next(iter(one.engines))} for one in (then, now))
    pairs = [
        (record(before), record(after)),
        (record(before), record(after, boundary="token", prompt_hash="2" * 64)),
        (record(None), record(after)),
    ]
    reasons = why_asked_again(pairs, then, now)
    assert asked_again_line(3, reasons) == (
        "3 answers were asked again: model.quantization: none then, fp8 now (2); "
        "question.boundary: sentence then, token now (1); "
        "the earlier answers do not say which model and engine gave them (1)"
    )


def test_identities_come_back_from_json() -> None:
    known = Identities.of(model({"quantization": "fp8"}), engine(), "")
    facts = json.loads(json.dumps({"identities": known.to_json()}))
    assert Identities.of_facts(facts) == known
    for torn in ({}, {"identities": 3}, {"identities": {"models": 3}}):
        assert Identities.of_facts(torn) == Identities()


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"model": "other"}, ["model.name: toy then, other now"]),
        ({"model": "toy"}, ["model.quantization: fp8 then, none now"]),
        ({"model": "toy", "quantization": "fp8", "max_num_seqs": 3}, []),
        ({"model": None, "dtype": "half"}, ["model.dtype: none then, half now"]),
        ({"model": None}, []),
    ],
)
def test_settings_that_name_another_model_than_answered(now: dict[str, Any], named: list[str]) -> None:
    found = argument_differences({"model": "toy", "quantization": "fp8"}, now, {"toy"})
    assert [one.sentence() for one in found][: max(1, len(named))] == named


class TestOrigin:
    def test_answers_of_the_loaded_model_are_traced(self) -> None:
        assert Origin("f", "toy", model()).check(model(), "toy", None) is None

    def test_those_of_another_are_refused_unless_asked_for_by_its_name(self) -> None:
        origin, other = Origin("f", "toy", model()), model({"quantization": "fp8"})
        with pytest.raises(ConfigError, match=r"quantization: none then, fp8 now.*`from_model: toy`"):
            origin.check(other, "toy", None)
        assert origin.check(other, "toy", "toy") is None
        with pytest.raises(ConfigError, match="from_model names third, and the answers of f are of toy"):
            origin.check(other, "toy", "third")

    def test_names_of_a_hub_tell_before_anything_is_loaded(self) -> None:
        with pytest.raises(ConfigError, match="toy then, other now"):
            Origin("f", "toy", model()).check(None, "other", None)
        assert Origin("f", "toy", model()).check(None, "toy", None) is None

    def test_the_predecessors_are_a_warning_and_ours_of_before_are_refused(self) -> None:
        said = Origin("f", "unknown", None, is_predecessors=True).check(model(), "toy", None)
        assert said == "f: records that do not say which model answered; they are traced as this model's"
        with pytest.raises(ConfigError, match="does not say which model gave its answers"):
            Origin("f", "toy", None).check(model(), "toy", None)
        assert Origin("f", "toy", None).check(model(), "toy", "toy") is None

    def test_it_crosses_to_another_process(self) -> None:
        for origin in (Origin("f", "toy", model()), Origin("f", "unknown", None, is_predecessors=True)):
            assert Origin.of_json(json.loads(json.dumps(origin.to_json()))) == origin
