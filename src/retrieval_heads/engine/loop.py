"""The engine's side of the engine process: what happens to a job from its prompt to its result.

A cell is asked and answered, unless an earlier run did so and its answer is to be used again. A cell of a detect
suite is then replayed at once, ahead of everything that waits, and its heads scored. A stored answer is replayed
alone. A cell of an ablation waits until the heads that it masks are known.
"""

from __future__ import annotations

import queue
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from retrieval_heads.engine.ahead import Ahead
from retrieval_heads.engine.answers import answer_of, measured_scores, spelled, with_texts, without_thoughts
from retrieval_heads.engine.backends.backend import Backend, Finished
from retrieval_heads.engine.earlier_answers import answer_in, result_of
from retrieval_heads.engine.jobs import Aim, CellQuestion, FreeQuestion, Job, Run
from retrieval_heads.engine.masks import Masks
from retrieval_heads.engine.results import Answered, Unanswered
from retrieval_heads.engine.sample import Sample, ToReplay
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError, RetrievalHeadsError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.replays import ANSWERED, OtherQuery
from retrieval_heads.heads.score import HeadScore, head_score
from retrieval_heads.heads.texts import RandomText
from retrieval_heads.prompts.requests import CellSkipped, Request
from retrieval_heads.prompts.reuse import Reuse
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.facts import Expectation
from retrieval_heads.runs.record import Record
from retrieval_heads.scoring.settings import Tags
from retrieval_heads.scoring.thoughts import told_apart
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.task import TASKS, Question

Then = Callable[[Finished], None]
Argument = TypeVar("Argument")

_REPLAY = "replay "
_REST = 1.0  # seconds that an engine with nothing to do waits for a job before it tells that it is alive


@dataclass
class Reference:
    """A text whose mean stands in for a masked head's output."""

    to_measure: int
    """Pieces of it that have not come back yet."""
    failure: str | None = None
    """Why there is no such mean: every cell that needs it is told."""


@dataclass
class Loop:
    """Keeps the engine fed from the server's queue and hands results back.

    Args:
        server: Where jobs come from and results go.
        engine: What answers.
        builder: Builds cells' prompts, a bounded number ahead of the engine.
        sleep_after: Seconds without a run after which a warm engine that can gives its GPU's memory back.
        clock: Tells seconds, for what is counted.
        beat: Called at every sign of life: a job that was started, a step that moved something, a second of rest.
    """

    server: Server
    engine: Backend
    builder: CellBuilder
    beat: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    sleep_after: float | None = None
    in_flight: dict[str, Then] = field(default_factory=dict)
    """What to do as each request finishes."""
    turn: int = 0
    """The latest of those that have come: whoever asks now has its next one after it, however much of another run's
    waits (start-time fair queueing)."""
    turns: dict[str, int] = field(default_factory=dict)
    """By request, when it is its run's turn."""
    held: dict[str, list[str]] = field(default_factory=dict)
    """Masked cells by run and suite, while what they mask is not known."""
    released: deque[str] = field(default_factory=deque)
    """Those of them that can start now."""
    upcoming: deque[str] = field(default_factory=deque)
    """Jobs that are next, taken from the server's queue so that their prompts can be built ahead."""
    fed: int = 0
    """Tokens to compute that were handed to the engine since its last step, as far as prompts tell."""
    ahead: Ahead | None = None
    """Builds prompts in other processes; left out, as many as there are cores to spare."""
    replayed: dict[str, str] = field(default_factory=dict)
    """Which job each replay in flight is of."""
    uncounted: dict[str, float] = field(default_factory=dict)
    """Seconds of the last step, by the runs for which it has not been counted as one that ended a replay of another
    prompt than a sample's own.
    """
    references: dict[str, Reference] = field(default_factory=dict)
    """By haystack, what masks of mode `mean` put in place of heads."""

    def __post_init__(self) -> None:
        self.masks = Masks(self.server, self.engine.info.layers or (), self.engine.info.maskable_layers or ())
        self.reuse = Reuse(self.engine.info.block_size)
        self._ahead = self.ahead or Ahead(self.builder)
        self._begun = self.server.begun

    def run(self) -> None:
        """Step for ever."""
        ahead, clock = 2 * self.engine.info.max_num_seqs, self.clock
        # No step computes more than half of this; a grid's last prompts are built and hashed while its first run.
        enough = 2 * self.engine.info.max_num_batched_tokens
        since: float | None = None  # when the engine last had work and no step
        while True:
            self._look_at_runs()
            self.fed = 0
            while len(self.in_flight) < ahead and self.fed < enough:
                try:
                    key = self._next()
                except queue.Empty:
                    break
                self._wake()
                since = clock() if since is None else since
                self._guarded(key, self._start, key)
                self.beat()
            if not self.in_flight:
                self._sleep()
                self.beat()
                # A prompt that is still being built is waited for, and counted.
                since = (since or clock()) if self.upcoming else None
                continue
            began = clock()
            found = self.engine.step()
            ended = clock()
            if self.engine.has_moved:
                self.beat()
            runs = list(self.server.runs.values())
            for run in runs:
                run.done.count_step(ended - began, began - (since or began))
                run.done.usage = self.engine.usage
                run.done.underway_tokens = self._underway(run)
            self.uncounted = {run.name: ended - began for run in runs}
            since = ended
            for finished in found:
                then = self.in_flight.pop(finished.id, None)
                key = self.replayed.pop(finished.id, finished.id)
                self.turn = max(self.turn, self.turns.pop(finished.id, 0))
                if then is None:
                    continue  # of a run that is gone, from a backend that works on
                if (job := self.server.jobs.get(key)) is not None:
                    job.count(finished.seconds, finished.own_seconds)
                    self._guarded(key, then, finished)
                else:  # a piece of a reference, which many jobs need
                    then(finished)
            if not self.in_flight:
                since = None  # what it waits for is no work of ours

    def _underway(self, run: Run) -> int:
        """How far a run's prompts are that are not answered yet; replays are of prompts that are."""
        jobs = self.server.jobs
        reached = self.engine.reached.items()
        return sum(tokens for name, tokens in reached if (job := jobs.get(name)) is not None and job.run is run)

    def _sleep(self) -> None:
        """Give memory back, where nobody has asked for a while."""
        server = self.server
        if self.sleep_after is None or server.asleep or not self.engine.capabilities.sleeps:
            return
        if server.idle_seconds >= self.sleep_after:
            server.asleep = self.engine.sleep()
            if server.asleep:
                self.reuse = Reuse(self.engine.info.block_size)  # its prefix cache is empty

    def _wake(self) -> None:
        if self.server.asleep:
            self.engine.wake()
            self.server.asleep = ""

    def _look_at_runs(self) -> None:
        """Drop what runs asked that are gone; read anew what has changed on disk since one began."""
        for run in self.server.dropped():
            self._drop(run)
        if self._begun != self.server.begun:
            self._begun = self.server.begun
            if self.builder.renew():
                self._ahead.close()  # its processes have read the same files
                self.references.clear()

    def _drop(self, run: Run) -> None:
        names = {job.name for job in run.jobs.values()}
        for waiting in (self.upcoming, self.released):
            kept = [name for name in waiting if name not in names]
            waiting.clear()
            waiting.extend(kept)
        self.held = {suite: keys for suite, keys in self.held.items() if keys[0] not in names}
        self.masks.forget(names)
        for name in names:
            self._ahead.drop(name)
        asked = [name for name in self.in_flight if self.replayed.get(name, name) in names]
        for name in asked:
            del self.in_flight[name]
            self.replayed.pop(name, None)
            self.turns.pop(name, None)
        if asked:
            self.engine.drop(asked)

    def _next(self) -> str:
        """The next job to start; waits for one, a second at most, only when there is nothing else to do.

        Raises:
            queue.Empty: There is none now.
        """
        for suite, keys in list(self.held.items()):
            try:
                is_known = self._can_mask(self._cell(keys[0]).question)
            except Exception as error:  # not known now, nor later
                for key in self.held.pop(suite):
                    self._guarded(key, _fail, error)
            else:
                if is_known:
                    self.released.extend(self.held.pop(suite))
        if self.released:
            return self.released.popleft()
        if self._ahead.reach:
            self._look_ahead()
            if not self.upcoming or not self._ahead.is_ready(self.upcoming[0], 0 if self.in_flight else _REST):
                raise queue.Empty
            return self.upcoming.popleft()
        if self.upcoming:
            return self.upcoming.popleft()
        return self._taken(block=not self.in_flight)

    def _taken(self, *, block: bool) -> str:
        """The next job of the server's queue, once what its run changes is seen to.

        Raises:
            queue.Empty: There is none now.
        """
        key = self.server.waiting.get(block=block, timeout=_REST)
        self._look_at_runs()
        if key not in self.server.jobs:
            raise queue.Empty  # its run has just gone
        return key

    def _look_ahead(self) -> None:
        """Take the next jobs from the queue; waits for the first, only when there is nothing else to do."""
        while len(self.upcoming) < self._ahead.reach:
            is_idle = not self.in_flight and not self.upcoming
            try:
                key = self._taken(block=is_idle)
            except queue.Empty:
                return
            self.upcoming.append(key)
            ask = self._job(key).ask
            if isinstance(ask, CellQuestion):
                self._ahead.offer(key, ask)

    def _guarded(self, key: str, action: Callable[[Argument], None], argument: Argument) -> None:
        """Do what may go wrong for one job alone: it is told, and the others go on."""
        try:
            action(argument)
        except CellSkipped as reason:
            self.server.finish(key, Unanswered("skipped", str(reason)))
        except RetrievalHeadsError as error:
            self.server.finish(key, Unanswered("error", str(error)))
        except Exception as error:  # a mistake of ours or of a user's prompt; the log says where
            traceback.print_exc()
            self.server.finish(key, Unanswered("error", f"{type(error).__name__}: {error}"))

    def _start(self, key: str) -> None:
        ask = self._job(key).ask
        if isinstance(ask, FreeQuestion) and ask.text is not None:
            self._measure(key, ask.text)
        elif isinstance(ask, FreeQuestion) and ask.aim is not None:
            self._start_aimed(key, ask, ask.aim)
        elif isinstance(ask, FreeQuestion):
            request = replace(self.builder.ask(ask.prompt, chat=ask.chat), sampling=dict(ask.sampling), mask=ask.mask)
            self._send(key, request, partial(self._answered, key, request, ()))
        elif ask.cell.stored is not None:
            record = ask.cell.stored
            request = self.builder.stored(record)
            if request.facts.needle_span is None:
                raise CellSkipped("its answer stands at no one place that heads could be scored on")
            answer = replace(answer_in(record), text=record.said, thoughts=None, thought_tokens=None)
            self._replay(key, request, self._without_thoughts(answer, request, ask.question.scoring.tags))
        else:
            self._start_cell(key, ask)

    def _start_aimed(self, key: str, ask: FreeQuestion, aim: Aim) -> None:
        if not self.engine.scores:
            raise EngineError("this engine scores no heads; it does where it is started for a suite that needs them")
        built = self.builder.aimed(str(ask.prompt), aim.spans, aim.question, chat=ask.chat)
        request = replace(built, sampling=dict(ask.sampling))
        if aim.answer is None:
            self._send(key, request, partial(self._to_replay, key, request, ()), is_replayed=True)
        else:
            self._replay(key, request, self.builder.said(request, aim.answer))

    def _start_cell(self, key: str, asked: CellQuestion) -> None:
        mask, question, cell = None, asked.question, asked.cell
        if asked.is_masked:
            if not self._can_mask(question):
                self.held.setdefault(self._job(key).run.name_of(question.suite), []).append(key)
                return
            assert question.ablate is not None
            mask = self.masks.choose(question.ablate, cell.place.arm)
        request = self._ahead.take(key) or self.builder.request(question, cell, mask)
        is_traced = question.kind == "detect"
        job = self._job(key)
        known = job.run.earlier.get(job.key)
        tags = question.scoring.tags
        if known and known.request == request.hash:
            found = self._scored_before(known, request, asked) if is_traced else known
            if found is not None:
                self.server.finish(key, result_of(found))
                return
        reusable = self.reuse.add(request.prefix, len(request.ids)) if request.prefix else 0
        self.fed += len(request.ids) - reusable
        then = partial(self._to_replay if is_traced else self._answered, key, request, tags)
        self._send(key, request, partial(self._generated, job.run, then, reusable), is_replayed=is_traced)

    def _send(self, key: str, request: Request, then: Then, *, is_replayed: bool = False) -> None:
        more: dict[str, Any] = {}
        if self.engine.takes_turns:
            run = self._job(key).run
            self.turns[key] = more["turn"] = run.turn = max(run.turn, self.turn) + 1
        if is_replayed and self.engine.keeps_rows and request.facts.needle_span is not None:
            more["rows"] = self._all_rows(request, (), 0, self._job(key).ask)
        self.engine.add(key, request.prompt, request.sampling, request.mask, is_replayed=is_replayed, **more)
        self.in_flight[key] = then

    def _job(self, key: str) -> Job:
        return self.server.jobs[key]

    def _cell(self, key: str) -> CellQuestion:
        ask = self._job(key).ask
        assert isinstance(ask, CellQuestion)
        return ask

    def _can_mask(self, question: Question) -> bool:
        """Whether a suite's masks are known; has the reference measured where they need one."""
        ablate, source = question.ablate, question.source
        assert ablate is not None
        if not self.masks.are_known(ablate):
            return False
        if ablate.mode != "mean":
            return True
        if source not in self.references:
            name, pieces = self.builder.reference(source)
            reference = self.references[source] = Reference(to_measure=len(pieces))
            for number, ids in enumerate(pieces):
                request = f"reference {number} of {source}"
                try:
                    self.engine.measure(request, ids, name)
                except EngineError as error:
                    reference.failure = str(error)
                    break
                self.in_flight[request] = partial(self._measured, reference)
        reference = self.references[source]
        if reference.failure is not None:
            raise EngineError(f"the mean of the heads' output was not measured: {reference.failure}")
        return reference.to_measure == 0

    def _measured(self, reference: Reference, finished: Finished) -> None:
        reference.to_measure -= 1
        reference.failure = reference.failure or finished.error

    def _generated(self, run: Run, then: Then, reusable: int, finished: Finished) -> None:
        run.done.count_prompt(finished.prompt_tokens, finished.cached_tokens, reusable)
        then(finished)

    def _without_thoughts(self, answer: Answer, request: Request, tags: Sequence[Tags]) -> Answer:
        return without_thoughts(answer, request, tags, self.engine.tokenizer)

    def _answered(self, key: str, request: Request, tags: Sequence[Tags], finished: Finished) -> None:
        if finished.error is not None:
            raise EngineError(f"the heads were not masked: {finished.error}" if request.mask else finished.error)
        answer = self._without_thoughts(answer_of(finished, request), request, tags)
        self.server.finish(key, self._result(key, request, answer))

    def _to_replay(self, key: str, request: Request, tags: Sequence[Tags], finished: Finished) -> None:
        if finished.error is not None:
            raise EngineError(finished.error)
        self._replay(key, request, self._without_thoughts(answer_of(finished, request), request, tags))

    def _replay(self, key: str, request: Request, answer: Answer) -> None:
        said, thoughts = answer.token_ids, answer.thought_tokens or 0
        if thoughts and len(said) == thoughts:
            self.server.finish(key, self._result(key, request, answer))
            return
        if not said:
            raise EngineError("the answer has no tokens, so that there is nothing to score heads on")
        rows = self._rows(request, said, thoughts, self._job(key).ask)
        sample = Sample([*request.ids, *said[:-1]], rows)
        asked = sample.to_replay(partial(self._with_query, request, self._job(key).ask))
        if not asked:
            raise EngineError(f"the sample has nothing that {', '.join(rows.scores)} could be measured on")
        for number, each in enumerate(asked):
            name = f"{_REPLAY}{number} of {key}" if number else f"{_REPLAY}{key}"
            of = key if each.replayed == ANSWERED else None
            self.engine.replay(name, each.ids, each.rows, each.rows.first, of=of)
            self.in_flight[name] = partial(self._scored, key, request, answer, sample, each)
            self.replayed[name] = key
        self.fed += len(request.ids)  # of a stored answer; after a generation it is forgotten before more is fed

    def _measure(self, key: str, text: RandomText) -> None:
        """Have heads measured on a random text."""
        names = measured_scores(text.scores, self.engine.scores)
        ids = self.builder.repeated(text)
        rows = Rows(len(ids), (), (0, 0), (), (0, 0), scores=names, period=text.tokens)
        sample = Sample(ids, rows)
        (asked,) = sample.to_replay(_no_query)
        name = f"{_REPLAY}{key}"
        self.engine.replay(name, ids, rows, rows.first, of=None)
        self.in_flight[name], self.replayed[name] = partial(self._text_measured, key, sample, asked), key

    def _text_measured(self, key: str, sample: Sample, done: ToReplay, finished: Finished) -> None:
        sample.take(done, finished)
        replay = sample.replays[done.replayed]
        self._job(key).run.done.count_other(replay, replay.seconds)
        heads = sample.heads(self.engine.info.layers or ())
        said_nothing = Answer(
            text="",
            token_ids=[],
            finish_reason=finished.finish_reason,
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            seconds=finished.seconds,
        )
        self.server.finish(key, Answered(said_nothing, heads=heads, replay=replay))

    def _result(self, key: str, request: Request, answer: Answer) -> Answered:
        timed = self._job(key).timed(answer)
        return Answered(timed, request.facts, request.expected, request.hash, request.answered_by, request.mask)

    def _rows(self, request: Request, said: Sequence[int], thoughts: int, asked: CellQuestion | FreeQuestion) -> Rows:
        """What a suite's scores read of a replay, with all their names. Where none reads the question's rows, or looks
        at the question, these are not computed again, nor what stands between them and the answer, thoughts among it.
        """
        rows = self._all_rows(request, said, thoughts, asked)
        of_answer, scores = replace(rows, question_span=(0, 0)), [head_score(name) for name in rows.scores]
        return of_answer if all(_reads_alike(score, rows, of_answer) for score in scores) else rows

    def _all_rows(
        self, request: Request, said: Sequence[int], thoughts: int, asked: CellQuestion | FreeQuestion
    ) -> Rows:
        """What scores may read of a sample, the question's rows included. Nothing is asked of their `looks`, which take
        an answer: before there is one, `said` is empty.
        """
        if isinstance(asked, FreeQuestion):
            cell, wanted, per_step = None, asked.aim.scores if asked.aim else (), False
        else:
            cell, wanted, per_step = asked, asked.question.scores, asked.question.per_step
        names = measured_scores(wanted, self.engine.scores)
        scores = [head_score(name) for name in names]
        rows = replace(request.rows(said, thoughts), scores=names, per_step=per_step)
        if cell and any("written" in score.needs for score in scores):
            sayings = (cell.cell.stored or request.expected or _expected(cell)).sayings
            rows = replace(rows, spelled=spelled(rows.answer, sayings, self.engine.tokenizer))
        if cell and any(isinstance(one, OtherQuery) for score in scores for one in score.replays):
            span = self.builder.query_span(request, _words(request, cell))
            rows = rows if span is None else replace(rows, query_span=span)
        return rows

    def _with_query(self, request: Request, asked: CellQuestion | FreeQuestion, other: OtherQuery) -> Sequence[int]:
        if isinstance(asked, FreeQuestion):
            raise EngineError(f"a prompt of one's own has no question that {other.query} could stand for")
        return self.builder.with_query(request, _words(request, asked), other.query)

    def _scored_before(self, known: Record, request: Request, asked: CellQuestion) -> Record | None:
        """The record with the scores that a suite wants, if heads were scored by all of them on what the suite's tags
        leave as the answer, or there is none that they could be scored on.
        """
        tags = asked.question.scoring.tags
        if told_apart(known.thoughts, known.text, tags) != (known.thoughts, known.text):
            return None
        if known.heads is None:
            return known if known.is_cut_off else None
        rows = self._rows(request, known.token_ids, known.thought_tokens or 0, asked)
        wanted = Sample((), rows).names
        per_step = asked.question.per_step
        if not known.heads.keys() >= set(wanted) or (per_step and known.steps is None):
            return None
        heads = {name: known.heads[name] for name in wanted}
        return known.model_copy(update={"heads": heads, "steps": known.steps if per_step else None})

    def _scored(
        self, key: str, request: Request, answer: Answer, sample: Sample, done: ToReplay, finished: Finished
    ) -> None:
        job = self._job(key)
        if job.result is not None:
            return  # another replay of the sample failed
        is_last = sample.take(done, finished)
        if done.replayed != ANSWERED:
            job.run.done.count_other(sample.replays[done.replayed], self.uncounted.pop(job.run.name, 0.0))
        if is_last:
            heads = sample.heads(self.engine.info.layers or ())
            others = {one.query: how for one, how in sample.replays.items() if isinstance(one, OtherQuery)}
            replay = sample.replays.get(ANSWERED)
            found = replace(self._result(key, request, answer), heads=heads, replay=replay, other_replays=others)
            steps = sample.steps and with_texts(sample.steps, sample.rows, self.engine.tokenizer)
            self.server.finish(key, replace(found, steps=steps))


def _expected(ask: CellQuestion) -> Expectation:
    return TASKS.find(ask.question.task).asked(ask.question, ask.cell.place)


def _reads_alike(score: HeadScore, rows: Rows, other: Rows) -> bool:
    return score.looks(rows) == score.looks(other) and score.weighings(rows) == score.weighings(other)


def _no_query(other: OtherQuery) -> Sequence[int]:
    raise EngineError(f"a random text has no question that {other.query} could stand for")


def _words(request: Request, asked: CellQuestion) -> str:
    """The question, as the prompt words it."""
    if asked.cell.stored is not None:
        return asked.cell.stored.question
    return (request.expected or _expected(asked)).question


def _fail(error: Exception) -> None:
    raise error
