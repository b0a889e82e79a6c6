"""The engine process: what its loop counts and feeds, and what it may start. No engine."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrieval_heads.engine.backends.backend import Finished, Info
from retrieval_heads.engine.client import Address, EngineClient
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.loop import Loop
from retrieval_heads.engine.results import Answered, Unanswered
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError, PromptError
from retrieval_heads.heads.looks import Rows
from retrieval_heads.heads.texts import RandomText
from retrieval_heads.prompts.requests import Request
from retrieval_heads.prompts.reuse import Prefix
from retrieval_heads.runs.facts import Expectation, PromptFacts
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.place import Place
from retrieval_heads.runs.record import Record, Replay
from retrieval_heads.tasks.task import Ablation, Cell, Question

BUILDING, STEPPING = 0.25, 0.125  # seconds that floats hold exactly

INFO = Info("none 0", "none", "float32", 8192, max_num_seqs=8, max_num_batched_tokens=8192, block_size=16)
PLAIN = Question("plain", "niah")


def cells(numbers: Iterable[int], arm: str = "") -> dict[str, Cell]:
    """Cells by their keys, told apart by their seeds."""
    return {f"{number}": Cell("", "", Place((), number, arm)) for number in numbers}


class Over(Exception):
    """Ends a loop that has answered all that a test asks."""


class Asking:
    """An engine process in this one: what a client asks of its socket, a loop answers in a thread."""

    def __init__(self, folder: Path) -> None:
        self._server = Server("key")
        self._server.listen(str(folder / "engine.sock"))
        self.client = EngineClient(Address(str(folder / "engine.sock"), "key"))

    def remember(self, earlier: Mapping[str, Record]) -> None:
        """Give the run that asks records of an earlier one."""
        (run,) = self._server.runs.values()
        run.earlier = earlier

    def results(
        self, engine: Engine, builder: Builder, keys: Iterable[str], *, is_kept: bool = False, **options: Any
    ) -> dict[str, Any]:
        """What the cells that were submitted before come to; the loop may be kept for what is asked after."""
        is_over = threading.Event()

        def beat() -> None:
            if is_over.is_set():
                raise Over

        loop = Loop(self._server, engine, builder, beat=beat, **options)  # type: ignore[arg-type]

        def run() -> None:
            with contextlib.suppress(Over):
                loop.run()

        threading.Thread(target=run, daemon=True).start()
        try:
            return {key: self.client.result(key) for key in keys}
        finally:
            if not is_kept:
                is_over.set()


@pytest.fixture
def asking() -> Iterator[Asking]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        made = Asking(Path(folder))
        yield made
        made.client.close()


class Clock:
    """Time that passes only where a test says so."""

    now = 1.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Finishes a request a step."""

    info = INFO
    has_moved = True
    usage = None
    reached: Mapping[str, int] = {}
    takes_turns = False
    keeps_rows = False
    tokenizer = SimpleNamespace(decode=lambda ids: "")

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.waiting: list[tuple[str, Sequence[int]]] = []

    def add(self, request: str, ids: Sequence[int], sampling: Any, mask: Any, *, is_replayed: bool) -> None:
        self.waiting.append((request, ids))

    def step(self) -> list[Finished]:
        self.clock.now += STEPPING
        request, ids = self.waiting.pop(0)
        return [Finished(request, "", [1], "stop", len(ids), 16 if request == "2" else 0, 0.0)]


class Builder:
    """Takes its time for each prompt of 50 tokens, of which 40 are the same."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()

    def request(self, question: Any, cell: Any, mask: Any) -> Request:
        self.clock.now += BUILDING
        prefix = Prefix(head=(), context=0, insertion=40, needle=(cell.place.seed,), tail=(0,) * 5)
        return Request(list(range(50)), {}, PromptFacts(), prefix=prefix)


def test_what_the_engine_did_is_counted(asking: Asking) -> None:
    clock = Clock()
    asking.client.submit(PLAIN, cells(range(3)))
    asking.results(Engine(clock), Builder(clock), "012", clock=clock)
    done = asking.client.counters().done
    assert (done.steps, done.prompt_tokens, done.cached_tokens) == (3, 150, 16)
    assert done.reusable_tokens == 2 * 32, "whole blocks of the 40 tokens that two of three found there"
    assert done.feed_gap_seconds == 3 * BUILDING
    assert done.step_seconds == 3 * STEPPING


def test_an_answer_tells_what_it_took_itself_and_how_long_it_waited(asking: Asking) -> None:
    class Shared(Engine):
        def step(self) -> list[Finished]:
            self.reached = {request: len(ids) // 2 for request, ids in self.waiting[1:]}
            (finished,) = super().step()
            return [replace(finished, seconds=0.0, own_seconds=0.125 * (1 + int(finished.id)))]

    asking.client.submit(PLAIN, cells(range(3)))
    answers = [result.answer for result in asking.results(Shared(), Builder(), "012").values()]
    assert [answer.engine_seconds for answer in answers] == [0.125, 0.25, 0.375]
    waited = [answer.queued_seconds for answer in answers]
    assert waited == sorted(waited), "the last waited for all before it"
    counters = asking.client.counters()
    assert (counters.finished, counters.done.underway_tokens) == (3, 0)


def test_prompts_that_are_under_way_are_counted(asking: Asking) -> None:
    seen = []

    class Slow(Engine):
        def step(self) -> list[Finished]:
            self.reached = {request: 20 for request, _ in self.waiting[1:]}
            seen.append(asking.client.counters().done.underway_tokens)
            return super().step()

    asking.client.submit(PLAIN, cells(range(3)))
    asking.results(Slow(), Builder(), "012")
    assert seen == [0, 2 * 20, 20]


def test_the_first_prompts_run_while_the_last_are_built(asking: Asking) -> None:
    events: list[str] = []

    class Watched(Engine):
        info = replace(INFO, max_num_batched_tokens=30)

        def add(self, request: str, *more: Any, **options: Any) -> None:
            events.append(f"add {request}")
            super().add(request, *more, **options)

        def step(self) -> list[Finished]:
            events.append("step")
            return super().step()

    asking.client.submit(PLAIN, cells(range(5)))
    asking.results(Watched(), Builder(), "01234")
    # The first has 50 tokens to compute, the others 18 each: enough for two steps is handed over before each step.
    assert events[:5] == ["add 0", "add 1", "step", "add 2", "add 3"]
    assert events[5:] == ["add 4", "step", "step", "step", "step"]


class Turning(Engine):
    """Answers whoever's turn is first, as many at once as it has sequences."""

    takes_turns = True
    info = replace(INFO, max_num_seqs=4)

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def add(self, request: str, ids: Sequence[int], *more: Any, turn: int, **options: Any) -> None:
        self.waiting.append((f"{turn:06} {request}", ids))
        self.waiting.sort()

    def step(self) -> list[Finished]:
        (finished,) = super().step()
        name = finished.id.partition(" ")[2]
        self.order.append(name)
        return [replace(finished, id=name)]


def test_a_short_run_does_not_wait_for_all_that_a_long_one_has_handed_over(asking: Asking) -> None:
    engine = Turning()
    late = EngineClient(replace(asking.client._address, run="late"))

    def step() -> list[Finished]:
        if len(engine.order) == 2:
            late.submit(PLAIN, cells(range(2)))
        return Turning.step(engine)

    asking.client.submit(PLAIN, cells(range(12)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "step", step)
        asking.results(engine, Builder(), map(str, range(12)))
    late.close()
    # One that had to wait for what was handed over before it would come eleventh and later.
    assert engine.order.index("late 0") < 8, engine.order
    assert engine.order.index("late 1") < 11, engine.order
    assert [name for name in engine.order if "late" not in name] == list(map(str, range(12)))


class Measuring(Engine):
    """An engine that masks; what measuring its second piece of a reference comes to is told by its mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.info = replace(INFO, layers=(Layer("0", 0, 2),), maskable_layers=(0,))
        self.measured = 0

    def measure(self, request: str, ids: Sequence[int], name: str) -> None:
        self.measured += 1
        if self.mistake == "refused" and self.measured == 2:
            raise EngineError("vLLM refuses the request: too long")
        self.waiting.append((request, ids))

    def step(self) -> list[Finished]:
        error = "out of memory" if self.mistake == "hook" else None
        return [
            replace(finished, error=error) if finished.id.startswith("reference") else finished
            for finished in super().step()
        ]


class Referring(Builder):
    """Gives the reference of a haystack in three pieces, or cannot read it."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake

    def reference(self, source: str) -> tuple[str, list[list[int]]]:
        if self.mistake == "unreadable":
            raise PromptError("haystack: tales holds no text")
        return "hash", [[1], [2], [3]]


@pytest.mark.parametrize("awaits", [(), ("2",)], ids=["at the start", "once its heads are known"])
@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ("unreadable", "haystack: tales holds no text"),
        ("refused", "the mean of the heads' output was not measured: vLLM refuses the request: too long"),
        ("hook", "the mean of the heads' output was not measured: out of memory"),
    ],
)
def test_a_mean_that_cannot_be_measured_is_an_error_of_the_cells_that_need_it(
    asking: Asking, mistake: str, reason: str, awaits: tuple[str, ...]
) -> None:
    ablate = Ablation("mean", heads=(((0, 1),),), awaits=awaits)
    asking.client.submit(Question("masked", "ablate", source="tales", ablate=ablate), cells(range(2), "top_1"))
    asking.client.submit(PLAIN, cells([2]))
    results = asking.results(Measuring(mistake), Referring(mistake), "012")
    assert results["0"] == results["1"] == Unanswered("error", reason)
    assert isinstance(results["2"], Answered)


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_masked_cells_whose_heads_nobody_is_asked_for_are_errors(asking: Asking, mode: str) -> None:
    ablate = Ablation(mode, awaits=("10", "11"))
    asking.client.submit(PLAIN, cells([10]))
    asking.client.submit(Question("masked", "ablate", source="tales", ablate=ablate), cells(range(2), "top_1"))
    results = asking.results(Measuring(""), Referring(""), ["0", "1", "10"])
    reason = "the heads to mask are found by cell '11' among others, which was not submitted before"
    assert results["0"] == results["1"] == Unanswered("error", reason)
    assert isinstance(results["10"], Answered)


FORKING = """
import multiprocessing, threading, time
from retrieval_heads.engine.process import _end_with_launcher
threading.Thread(target=_end_with_launcher, daemon=True).start()
time.sleep(0.3)
forked = multiprocessing.get_context("fork").Process(target=print, args=["forked"])
forked.start()
forked.join(5)
print(forked.exitcode)
"""


def test_vllm_can_fork_its_workers_while_the_launcher_is_watched() -> None:
    watched = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # whose processes the watch kills
    )
    assert watched.stdout is not None
    try:
        assert watched.stdout.readline() == "forked\n"
        assert watched.stdout.readline() == "0\n"
    finally:
        os.killpg(watched.pid, signal.SIGKILL)
        watched.communicate()


class SlowAhead:
    """Builds the prompts of odd cells elsewhere; a test says when each is there."""

    reach = 3

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.offered: list[str] = []
        self.asked: list[tuple[str, float]] = []
        self.ready: set[str] = set()
        self.taken: list[str] = []
        self.most = 0

    def offer(self, key: str, asked: Any) -> None:
        self.offered.append(key)
        self.most = max(self.most, len(self.offered) - len(self.taken))

    def is_ready(self, key: str, seconds: float) -> bool:
        self.asked.append((key, seconds))
        if int(key) % 2 == 0 or key in self.ready:
            return True
        self.ready.add(key)  # by the next time
        return False

    def take(self, key: str) -> Request | None:
        self.taken.append(key)
        return self.builder.request(None, SimpleNamespace(place=Place((), int(key))), None) if int(key) % 2 else None


def test_prompts_built_elsewhere_keep_their_order_and_are_waited_for_only_when_idle(asking: Asking) -> None:
    engine, builder = Engine(), Builder()
    ahead = SlowAhead(builder)
    asking.client.submit(PLAIN, cells(range(1, 8)))
    results = asking.results(engine, builder, [str(key) for key in range(1, 8)], ahead=ahead)
    assert all(isinstance(result, Answered) for result in results.values())
    assert ahead.offered == [str(key) for key in range(1, 8)]
    assert ahead.most == ahead.reach, "no more than that wait to be taken, however many cells there are"
    turns = list(dict.fromkeys(key for key, _ in ahead.asked))
    assert turns == ahead.offered, "in the order in which they were asked"
    assert dict(ahead.asked[:1]) == {"1": 1.0}, "with nothing to do it waits, a second at most"
    assert any(seconds == 0 for _, seconds in ahead.asked), "while the engine has work it does not"


class Replaying(Engine):
    """Scores heads by what a replay's rows want."""

    scores = ("copy", "mass", "query")

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(INFO, layers=(Layer("0", 0, 2),))
        self.replayed: dict[str, tuple[str, ...]] = {}
        self.first_rows: dict[str, int] = {}

    def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str) -> None:
        self.replayed[request] = rows.scores
        self.first_rows[request] = first_row
        assert first_row == rows.first
        self.waiting.append((request, ids))

    def step(self) -> list[Finished]:
        request, ids = self.waiting.pop(0)
        wanted = self.replayed.get(request)
        scores = None if wanted is None else [[[0.5, 0.25]]] * len(wanted or self.scores)
        return [Finished(request, "", [1, 2], "stop", len(ids), 0, 0.0, head_scores=scores)]


class Detecting(Builder):
    """Prompts with spans, and the same hash for all."""

    def request(self, question: Any, cell: Any, mask: Any) -> Request:
        facts = PromptFacts(needle_span=(3, 5), question_span=(40, 45))
        return Request(list(range(50)), {}, facts, hash="same")


HEADS = {name: [[0.125, 1.0]] for name in ("copy", "mass")}
DETECTION = Question("heads", "detect")


@pytest.mark.parametrize(
    ("wanted", "replayed", "expected"),
    [
        (("mass", "copy"), None, HEADS),
        (("mass",), None, {"mass": HEADS["mass"]}),
        (("mass", "query"), ("mass", "query"), {"mass": [[0.5, 0.25]], "query": [[0.5, 0.25]]}),
        ((), ("copy", "mass", "query"), {name: [[0.5, 0.25]] for name in ("copy", "mass", "query")}),
    ],
    ids=["all of them", "fewer", "others", "the usual ones"],
)
def test_stored_figures_are_used_again_where_they_hold_all_scores_that_are_wanted(
    asking: Asking, wanted: tuple[str, ...], replayed: tuple[str, ...] | None, expected: Any
) -> None:
    known = Record(status="pass", token_ids=[1, 2], request="same", heads=HEADS)
    engine = Replaying()
    asking.client.submit(replace(DETECTION, scores=wanted), cells([0]))
    asking.remember({"0": known})
    found = asking.results(engine, Detecting(), "0")["0"]
    assert found.head_scores == expected
    assert engine.replayed == ({} if replayed is None else {"replay 0": replayed})


def test_a_score_that_is_not_measured_of_a_model_is_told(asking: Asking) -> None:
    asking.client.submit(replace(DETECTION, scores=("mass", "copy_by_value")), cells([0]))
    reason = "scores: copy_by_value cannot be measured of this model; copy, mass, query can"
    assert asking.results(Replaying(), Detecting(), "0") == {"0": Unanswered("error", reason)}


@pytest.mark.parametrize(("wanted", "first"), [(("copy", "mass"), 49), (("copy", "query"), 40), ((), 40)])
def test_the_questions_rows_are_computed_again_where_a_score_looks_from_them(
    asking: Asking, wanted: tuple[str, ...], first: int
) -> None:
    engine = Replaying()
    asking.client.submit(replace(DETECTION, scores=wanted), cells([0]))
    assert asking.results(engine, Detecting(), "0")["0"].head_scores
    assert engine.first_rows == {"replay 0": first}


class Keeping(Replaying):
    """Is told the rows that will be read."""

    keeps_rows = True

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Rows | None] = {}

    def add(self, request: str, ids: Sequence[int], *more: Any, rows: Rows | None = None, **options: Any) -> None:
        self.told[request] = rows
        self.waiting.append((request, ids))


def test_an_engine_that_keeps_rows_is_told_what_a_replay_will_read_at_most(asking: Asking) -> None:
    engine = Keeping()
    asking.client.submit(replace(DETECTION, scores=("copy", "mass")), cells([0]))
    asking.client.submit(PLAIN, cells([1]))
    results = asking.results(engine, Detecting(), "01")
    assert all(isinstance(result, Answered) for result in results.values())
    told = engine.told["0"]
    assert told is not None
    assert (told.first, told.answer, told.scores) == (40, (), ("copy", "mass")), (
        "the question's rows, whoever reads them"
    )
    assert engine.first_rows == {"replay 0": 49}, "which are the answer's alone in the end"
    assert engine.told["1"] is None


def test_jobs_of_a_run_that_goes_on_wait_until_its_earlier_answers_are_known(asking: Asking) -> None:
    asking._server.awaits_begin = True
    asking.client.submit(PLAIN, cells(range(3)))  # as a worker does, which may come before whoever begins
    with pytest.raises(queue.Empty):
        asking._server.waiting.get(block=False)
    asking.client.begin()
    assert [asking._server.waiting.get(block=False).rpartition(" ")[2] for _ in range(3)] == ["0", "1", "2"]
    asking.client.submit(PLAIN, cells([3]))
    assert asking._server.waiting.get(block=False).endswith("3")


class Calibrating(Replaying):
    """Has `qr`, of needles of two tokens; what its replays of other questions come to can be an error."""

    scores = ("copy", "qr")

    def __init__(self, failing: str = "") -> None:
        super().__init__()
        self.failing = failing
        self.hashed: dict[str, str | None] = {}

    def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str | None) -> None:
        super().replay(request, ids, rows, first_row, of=of or "")
        self.hashed[request] = of

    def step(self) -> list[Finished]:
        self.clock.now += STEPPING
        request, ids = self.waiting.pop(0)
        wanted = self.replayed.get(request)
        figures = {"copy": [[[0.5, 0.25]]], "qr": [[[0.5, 0.0]], [[0.25, 0.0]]]}
        scores = None if wanted is None else [row for name in wanted for row in figures[name]]
        error = "too bad" if request == self.failing else None
        return [Finished(request, "", [1, 2], "stop", len(ids), 16, 0.5, head_scores=scores, error=error)]


class Questioning(Detecting):
    """Knows what stands behind the context."""

    def query_span(self, request: Request, question: str) -> tuple[int, int]:
        assert question == "When?"
        return 38, 50

    def with_query(self, request: Request, question: str, other: str) -> list[int]:
        return [*range(38), 7, 7, 7]

    def request(self, question: Any, cell: Any, mask: Any) -> Request:
        return replace(super().request(question, cell, mask), expected=Expectation(question="When?", reference="x"))


CALIBRATION = replace(DETECTION, scores=("copy", "qr"))


def test_a_score_of_two_prompts_has_its_other_replay_counted_apart(asking: Asking) -> None:
    engine = Calibrating()
    asking.client.submit(CALIBRATION, cells([0, 1]))
    found = asking.results(engine, Questioning(), "01", clock=engine.clock)
    assert engine.replayed["replay 0"] == ("copy", "qr")
    assert engine.replayed["replay 1 of 0"] == ("qr",)
    assert engine.hashed["replay 0"] == "0"
    assert engine.hashed["replay 1 of 0"] is None, "another prompt has other blocks"
    for result in found.values():
        assert result.head_scores == {"copy": [[0.5, 0.25]], "qr": [[0.0, 0.0]]}
        assert result.replay.computed_tokens == 51 - 16
        assert {query: how.computed_tokens for query, how in result.other_replays.items()} == {"N/A": 41 - 16}
    done = asking.client.counters().done
    assert (done.other_replays, done.other_replay_tokens) == (2, 50)
    assert done.other_replay_seconds == 2 * STEPPING, "of the steps that ended one"
    assert done.prompt_tokens == 100, "of cells alone"


@pytest.mark.parametrize("failing", ["replay 0", "replay 1 of 0"])
def test_a_sample_of_which_a_replay_fails_is_in_error_once(asking: Asking, failing: str) -> None:
    asking.client.submit(CALIBRATION, cells([0, 1]))
    found = asking.results(Calibrating(failing), Questioning(), "01")
    assert found["0"] == Unanswered("error", "the heads were not scored: too bad")
    assert found["1"].head_scores.keys() == {"copy", "qr"}


def test_stored_figures_without_the_calibrated_score_are_not_those_of_a_suite_that_wants_it(asking: Asking) -> None:
    known = Record(status="pass", token_ids=[1, 2], request="same", heads={"copy": [[0.125, 1.0]]})
    engine = Calibrating()
    asking.client.submit(CALIBRATION, cells([0]))
    asking.remember({"0": known})
    assert asking.results(engine, Questioning(), "0")["0"].head_scores.keys() == {"copy", "qr"}


def test_heads_are_measured_on_a_text_that_no_suite_asks(asking: Asking) -> None:
    class Reading(Replaying):
        scores = ("copy", "induction", "echo")

        def replay(self, request: str, ids: Sequence[int], rows: Rows, first_row: int, *, of: str | None) -> None:
            assert (ids, rows.period, first_row, of) == ([5, 6, 7, 5, 6, 7], 3, 3, None)
            super().replay(request, ids, rows, first_row, of="")

    class Repeating(Builder):
        def repeated(self, text: RandomText) -> list[int]:
            if text.repeats > 2:
                raise PromptError("too long")
            return [5, 6, 7] * text.repeats

    asking.client.submit(PLAIN, cells([0]))
    asking.results(Reading(), Repeating(), "0", is_kept=True)
    text = RandomText(3, 2, 0, ("induction",))
    answered = asking.client.answer(FreeQuestion("", text=text))
    assert answered.head_scores == {"induction": [[0.5, 0.25]]}
    assert answered.replay == Replay(cached_tokens=0, computed_tokens=6, seconds=0.0)
    assert asking.client.counters().done.other_replay_tokens == 6
    with pytest.raises(EngineError, match="too long"):
        asking.client.answer(FreeQuestion("", text=replace(text, repeats=3)))
