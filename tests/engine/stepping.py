"""Starting and stepping engines by hand, in the scripts that the tests run."""

from __future__ import annotations

from typing import Any
from unittest import mock

from retrieval_heads.engine.backends.backend import Finished
from retrieval_heads.engine.backends.vllm import Engine
from retrieval_heads.heads.score import head_score


def finish(engine: Engine) -> dict[str, Finished]:
    """Run everything that is queued to its end; what finished, by its name."""
    finished: dict[str, Finished] = {}
    while engine.has_work:
        finished.update({each.id: each for each in engine.step()})
    return finished


def finish_with_logprobs(engine: Engine) -> tuple[dict[str, Finished], dict[str, list[dict[int, float]]]]:
    """The same, and by request of each token of its answer the log probabilities that were asked for, by id."""
    step, outputs = engine.traced.step, []

    def watched() -> list[Any]:
        found: list[Any] = step()
        outputs.extend(found)
        return found

    with mock.patch.object(engine.traced, "step", watched):
        finished = finish(engine)
    logprobs = {
        output.request_id: [
            {token: each.logprob for token, each in one.items()} for one in output.outputs[0].logprobs or ()
        ]
        for output in outputs
        if output.finished
    }
    return finished, logprobs


def scores_of_an_answer(engine: Engine) -> tuple[str, ...]:
    """The scores that one replay of an answer gives, those among them that are measured where a suite names them."""
    return tuple(name for name in engine.scores if head_score(name).is_default or name == "r2")


def look_at_models_here() -> None:
    """Have vLLM look at a model's class in this process, and not in one of its own, which imports everything again.

    That takes 9 s of a processor for each architecture that its cache does not know; a fresh machine's knows none.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()
