"""Which heads an ablation's cell masks, once they are known: said by the suite, or found by another of the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrieval_heads.ablation.arms import Arm, NoSuchDraw, as_mask, heads_of
from retrieval_heads.engine.jobs import CellQuestion, Job
from retrieval_heads.engine.packed import unpack
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.table import Head
from retrieval_heads.prompts.requests import CellSkipped
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record
from retrieval_heads.tasks.task import TASKS


@dataclass
class Masks:
    """Chooses masks for the engine's loop.

    Args:
        server: Knows what the samples of a detect suite came to.
        layers: The model's.
        maskable: Numbers of those whose heads can be masked; `choose` alone needs them.
    """

    server: Server
    layers: Sequence[Layer]
    maskable: Collection[int] = ()
    _ranked: dict[tuple[str, ...], Sequence[Head]] = field(default_factory=dict)

    def are_known(self, ablate: Mapping[str, Any]) -> bool:
        """Whether every sample that an ablation waits for has its result.

        Args:
            ablate: The `ablate` part of a suite's question.

        Raises:
            EngineError: One of them was not submitted before the ablation, so that nothing says that it ever will be.
        """
        jobs, awaited = self.server.jobs, ablate.get("awaits", ())
        for key in awaited:
            if key not in jobs:
                raise EngineError(
                    f"the heads to mask are found by cell {key!r} among others, which was not submitted before"
                )
        return all(jobs[key].result is not None for key in awaited)

    def choose(self, ablate: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
        """The mask of an arm; `None` for the unmasked one.

        Args:
            ablate: The `ablate` part of a suite's question.
            arm: The arm's name.

        Raises:
            CellSkipped: There is no such draw, since there are too few others.
            ConfigError: The heads are not this model's, or too many.
            ResultsError: The suite that was to find them found none.
        """
        maskable = set(self.maskable)
        shape = {layer.number: layer.heads for layer in self.layers if layer.number in maskable and layer.heads}
        chosen = Arm.of(arm)
        if not chosen.count:
            return None
        ranked = [(layer, head) for layer, head in ablate["heads"]] or self.found(tuple(ablate["awaits"]))
        try:
            heads = heads_of(chosen, ranked, shape, ablate["seed"])
        except NoSuchDraw as reason:
            raise CellSkipped(str(reason)) from None
        return as_mask(heads, ablate["mode"])

    def found(self, keys: tuple[str, ...]) -> Sequence[Head]:
        """The heads that the samples of these keys rank, best first.

        Raises:
            ResultsError: None of the samples counts.
        """
        if keys not in self._ranked:
            samples = [_sample(self.server.jobs[key]) for key in keys]
            detection = aggregate(samples, self.layers)
            self._ranked[keys] = [head for head, _ in detection.ranked()]
        return self._ranked[keys]


def _sample(job: Job) -> Record:
    """What a detection needs to know of a sample: its heads' scores, and whether it counts."""
    assert isinstance(job.ask, CellQuestion)
    result, question, cell = job.result or {}, job.ask.question, job.ask.cell
    heads = result.get("heads")
    passed = False
    if heads is not None:
        if cell.stored is not None:
            passed = bool(cell.stored["passed"])
        else:
            task = TASKS.find(question.task)
            asked = {**task.asked(question, cell.place), **result}
            passed = task.judge(result["answer"]["text"], asked, question.scoring).passed
    return Record(heads=unpack(heads) if heads is not None else None, passed=passed)
