"""What is left of a model's config in its small copy, and what is said of the process that runs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retrieval_heads.engine.backends.shrunk import VOCABULARY, layers_kept, shrunk
from retrieval_heads.engine.backends.small_copy import SmallCopy
from retrieval_heads.engine.trial import try_step
from retrieval_heads.runs.layers import Layer

SLIDING, FULL = "sliding_attention", "full_attention"


def layers(windows: Sequence[int | None]) -> list[Layer]:
    return [Layer(f"model.layers.{number}.attn", number, 8, window) for number, window in enumerate(windows)]


class TestLayersKept:
    def test_alike_layers_are_two(self) -> None:
        assert layers_kept({"num_hidden_layers": 30}, layers([None] * 30)) == 2

    def test_the_only_layer_is_kept(self) -> None:
        assert layers_kept({"n_layer": 1}, layers([None])) == 1

    def test_the_first_of_each_window_is_within(self) -> None:
        assert layers_kept({"num_hidden_layers": 12}, layers(([512] * 5 + [None]) * 2)) == 6

    def test_the_first_of_each_type_is_within(self) -> None:
        config = {"num_hidden_layers": 4, "layers_block_type": ["mamba", "mamba", "attention", "mamba"]}
        assert layers_kept(config, layers([None])) == 3

    def test_layers_that_share_keys_come_after_one_of_each_kind(self) -> None:
        windows = ([512] * 4 + [None]) * 6
        assert layers_kept({"num_hidden_layers": 30, "num_kv_shared_layers": 15}, layers(windows)) == 10


class TestShrunk:
    def test_heads_and_windows_stay(self) -> None:
        kept = {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
        }
        config = {"num_hidden_layers": 32, "vocab_size": 128256, "intermediate_size": 14336, **kept}
        small = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "intermediate_size": 256, **kept}
        assert shrunk(config, [], 2) == small

    def test_lists_and_patterns_of_layers_are_as_long_as_there_are_layers(self) -> None:
        config: dict[str, Any] = {
            "num_hidden_layers": 6,
            "layer_types": [SLIDING, FULL] * 3,
            "hybrid_override_pattern": "M-M*M-",
            "attn_layer_indices": [1, 3, 5],
            "intermediate_size": [9000] * 6,
            "first_k_dense_replace": 3,
            "mrope_section": [16, 24, 24],
        }
        small = shrunk(config, [], 2)
        assert small["layer_types"] == [SLIDING, FULL]
        assert small["hybrid_override_pattern"] == "M-"
        assert small["attn_layer_indices"] == [1]
        assert small["intermediate_size"] == [256, 256]
        assert small["first_k_dense_replace"] == 1
        assert small["mrope_section"] == [16, 24, 24]

    def test_half_of_the_layers_share_keys_where_some_do(self) -> None:
        assert shrunk({"num_hidden_layers": 30, "num_kv_shared_layers": 15}, [], 10)["num_kv_shared_layers"] == 5

    @pytest.mark.parametrize(("groups", "chosen", "experts"), [(1, 2, 4), (1, 8, 16), (8, 8, 16), (4, 6, 12)])
    def test_a_router_has_enough_experts_to_choose_from(self, groups: int, chosen: int, experts: int) -> None:
        config = {
            "num_hidden_layers": 2,
            "n_routed_experts": 256,
            "n_group": groups,
            "num_experts_per_tok": chosen,
            "moe_intermediate_size": 2048,
        }
        small = shrunk(config, [], 2)
        assert (small["n_routed_experts"], small["moe_intermediate_size"]) == (experts, 256)

    def test_special_tokens_are_within_the_vocabulary_and_apart(self) -> None:
        config = {
            "num_hidden_layers": 2,
            "vocab_size": 151936,
            "pad_token_id": None,
            "bos_token_id": 1,
            "eos_token_id": [151643, 151645],
            "image_token_id": 151655,
        }
        small = shrunk(config, [], 2)
        assert (small["pad_token_id"], small["bos_token_id"]) == (None, 1)
        special = [*small["eos_token_id"], small["image_token_id"]]
        assert len(set(special)) == 3
        assert max(special) < VOCABULARY

    def test_only_the_language_model_of_several_parts_is_shrunk(self) -> None:
        config = {
            "quantization_config": {"quant_method": "fp8"},
            "text_config": {"num_hidden_layers": 30, "vocab_size": 100},
            "vision_config": {"num_hidden_layers": 30, "intermediate_size": 4096},
        }
        assert shrunk(config, ["text_config"], 2) == {
            "text_config": {"num_hidden_layers": 2, "vocab_size": 100},
            "vision_config": {"num_hidden_layers": 30, "intermediate_size": 4096},
        }
        assert "quantization_config" in config

    def test_a_config_without_a_known_depth_is_refused(self) -> None:
        with pytest.raises(KeyError, match="num_hidden_layers"):
            shrunk({"depth": 3}, [], 2)


class TestTheProcess:
    """A shell script stands in for Python: what an end that nobody foresaw is told as."""

    def tried(self, folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> tuple[tuple[str, ...], bool]:
        python = folder / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        outcome = try_step(SmallCopy(str(folder), {}, 2, 30, 100, is_quantized=False))
        return outcome.lines, outcome.is_ours

    def test_a_copy_that_vllm_alone_cannot_run_is_no_fault_of_the_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines, is_ours = self.tried(tmp_path, monkeypatch, "echo 'no kernel' >&2; kill -ILL $$")
        assert lines == (
            "no step was run: vLLM alone cannot run this copy here (starting failed: its process was ended by SIGILL; "
            "its last lines were: no kernel)",
        )
        assert not is_ours

    def test_a_process_that_is_killed_may_lack_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines, _ = self.tried(tmp_path, monkeypatch, "kill -KILL $$")
        assert "its process was ended by SIGKILL, as one that takes too much memory is" in lines[0]

    def test_what_fails_once_it_answers_is_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said = """echo '{"done": "started"}'; echo '{"done": "4 tokens"}'"""
        lines, is_ours = self.tried(tmp_path, monkeypatch, f"""{said}; echo '{{"error": "keys: another order"}}'""")
        assert lines == ("started", "4 tokens", "scoring heads failed: keys: another order")
        assert is_ours

    def test_what_fails_where_vllm_alone_answers_is_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said = """echo '{"done": "started"}'; grep -q '"traced": true' && exit 3; echo '{"done": "4 tokens"}'"""
        lines, is_ours = self.tried(tmp_path, monkeypatch, f"{said}; exit 0")
        assert lines == (
            "started",
            "answering failed: its process ended with status 3 and gave no reason; vLLM alone answers",
        )
        assert is_ours
