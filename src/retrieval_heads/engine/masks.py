"""Which heads an ablation's cell masks, once they are known: said by the suite, or found by another of the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from retrieval_heads.ablation.arms import Arm, NoSuchDraw, heads_of
from retrieval_heads.ablation.compression import RANDOM, Groups, Kept, kept_kv_heads, streaming_heads
from retrieval_heads.engine.jobs import CellQuestion, Job
from retrieval_heads.engine.results import Answered
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError, ResultsError
from retrieval_heads.heads.detection import aggregate
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.table import Head
from retrieval_heads.prompts.requests import CellSkipped
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.mask import STREAM, Mask, Stream
from retrieval_heads.runs.record import Record
from retrieval_heads.tasks.task import TASKS, Ablation


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
    _ranked: dict[tuple[tuple[str, ...], str, bool], tuple[Head, ...]] = field(default_factory=dict)

    def are_known(self, ablate: Ablation) -> bool:
        """Whether every sample that an ablation waits for has its result.

        Args:
            ablate: Of a suite's question.

        Raises:
            EngineError: One of them was not submitted before the ablation, so that nothing says that it ever will be.
        """
        jobs = self.server.jobs
        for key in ablate.awaits:
            if key not in jobs:
                raise EngineError(
                    f"the heads to mask are found by cell {key!r} among others, which was not submitted before"
                )
        return all(jobs[key].result is not None for key in ablate.awaits)

    def choose(self, ablate: Ablation, arm: str) -> Mask | None:
        """The mask of an arm; `None` for the unmasked one.

        Args:
            ablate: Of a suite's question.
            arm: The arm's name.

        Raises:
            CellSkipped: There is no such draw, since there are too few others.
            ConfigError: The heads are not this model's, or too many.
            EngineError: No head of this model can be masked.
            ResultsError: The suite that was to find them found none.
        """
        if ablate.stream is not None:
            return self._streaming(ablate, ablate.stream, arm)
        maskable = set(self.maskable)
        shape = {layer.number: layer.heads for layer in self.layers if layer.number in maskable and layer.heads}
        chosen = Arm.of(arm)
        if not chosen.count:
            return None
        if not shape:
            raise EngineError("no head of this model can be masked: `retrieval-heads models --check` says why")
        rankings = dict(zip(ablate.by, ablate.heads or self.rankings(ablate), strict=True))
        try:
            heads = heads_of(chosen, rankings, shape, ablate.seed)
        except NoSuchDraw as reason:
            raise CellSkipped(str(reason)) from None
        return Mask(ablate.mode, heads)

    def _streaming(self, ablate: Ablation, stream: Stream, name: str) -> Mask | None:
        arm = Kept.of(name)
        if not arm.ranking:
            return None
        groups = groups_of(self.layers)
        if not groups:
            raise EngineError("no head of this model can stream: `retrieval-heads models --check` says why")
        ranking = next(one for one in ablate.rankings if one.name == arm.ranking)
        is_drawn = arm.ranking == RANDOM
        ranked = () if is_drawn else ranking.heads or self._found(ablate.awaits, ranking.by, ties_broken=True)
        kept = kept_kv_heads(arm, ranked, groups, ablate.seed)
        return Mask(STREAM, streaming_heads(kept, groups), stream=stream)

    def ranked(self, ablate: Ablation) -> Ablation:
        """The same with the heads that its samples rank in place of these."""
        if ablate.stream is None:
            return replace(ablate, heads=self.rankings(ablate), awaits=())
        rankings = tuple(
            one
            if one.heads or one.name == RANDOM
            else replace(one, heads=self._found(ablate.awaits, one.by, ties_broken=True))
            for one in ablate.rankings
        )
        return replace(ablate, rankings=rankings, awaits=())

    def forget(self, keys: Collection[str]) -> None:
        """Forget what samples of a run ranked that is gone.

        Args:
            keys: Of its jobs.
        """
        self._ranked = {found: ranked for found, ranked in self._ranked.items() if found[0][0] not in keys}

    def rankings(self, ablate: Ablation) -> tuple[tuple[Head, ...], ...]:
        """The heads that the samples which an ablation waits for rank, best first, by each of its scores.

        Raises:
            ResultsError: None of the samples counts, or some that do lack a score.
        """
        return tuple(self._found(ablate.awaits, by) for by in ablate.by)

    def _found(self, keys: tuple[str, ...], by: str = "", *, ties_broken: bool = False) -> tuple[Head, ...]:
        """The heads that the samples of these keys rank, best first.

        Args:
            keys: Of the samples.
            by: The head score that ranks them; empty for the usual one.
            ties_broken: Whether other scores put in order what ties, as exporters do (`heads.order`).

        Raises:
            ResultsError: None of the samples counts, or some that do lack the score.
        """
        if (keys, by, ties_broken) not in self._ranked:
            samples = [_sample(self.server.jobs[key]) for key in keys]
            detection = aggregate(samples, self.layers)
            if by and by not in detection.estimates:
                raise ResultsError(f"{by} was not measured on every sample that counts, and is to rank heads")
            if ties_broken:
                heads = order_of(detection.table("", {}), by or detection.ranking).heads
            else:
                heads = tuple(head for head, _ in detection.ranked(by or None))
            self._ranked[keys, by, ties_broken] = heads
        return self._ranked[keys, by, ties_broken]


def groups_of(layers: Sequence[Layer]) -> Groups:
    """The KV heads of a model's layers and the query heads of each; latents are one for all heads of a layer."""
    found = {}
    for layer in layers:
        kv_heads = 1 if layer.kind == "latent attention" else layer.kv_heads or 0
        if layer.heads and kv_heads:
            found[layer.number] = kv_heads, layer.heads // kv_heads
    return found


def _sample(job: Job) -> Record:
    """What a detection needs to know of a sample: its heads' scores, and whether it counts."""
    assert isinstance(job.ask, CellQuestion)
    result, question, cell = job.result, job.ask.question, job.ask.cell
    if not isinstance(result, Answered) or result.heads is None:
        return Record(passed=False)
    if cell.stored is not None:
        passed = bool(cell.stored.passed)
    else:
        task = TASKS.find(question.task)
        expected = result.expected or task.asked(question, cell.place)
        passed = task.judge(result.answer.text, expected, question.scoring).passed
    return Record(heads=result.head_scores, passed=passed)
