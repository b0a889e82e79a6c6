"""Two runs at one engine: each asks under its own name, gets its own answers, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retrieval_heads.engine.client import Address, EngineClient, EngineDied
from retrieval_heads.engine.jobs import FreeQuestion
from retrieval_heads.engine.results import Answered
from retrieval_heads.engine.server import Server
from retrieval_heads.errors import EngineError
from retrieval_heads.runs.answer import Answer
from retrieval_heads.runs.place import Place
from retrieval_heads.tasks.task import Ablation, Cell, Question

PLAIN = Question("tale", "niah")
CELLS = {"tale::1": Cell("", "1", Place((), 1)), "tale::2": Cell("", "2", Place((), 2))}


class Shared:
    """A server, and clients of it."""

    def __init__(self, folder: str) -> None:
        self.server = Server("key")
        self.path = f"{folder}/engine.sock"
        self.server.listen(self.path)

    def client(self, run: str) -> EngineClient:
        return EngineClient(Address(self.path, "key", run))

    def answer(self, count: int, said: str) -> list[str]:
        """Answer the next jobs; their names."""
        names = [self.server.waiting.get() for _ in range(count)]
        for name in names:
            self.server.finish(name, Answered(Answer(f"{said} {name}", [], "stop", 1, 0, 0.0)))
        return names

    def end(self, client: EngineClient, run: str) -> None:
        """Hang up, and wait until the server has heard."""
        client.close()
        with self.server.changed:
            assert self.server.changed.wait_for(lambda: run not in self.server.runs, timeout=30)


@pytest.fixture
def shared() -> Iterator[Shared]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Shared(folder)


def test_the_same_cells_of_two_runs_are_two_jobs(shared: Shared) -> None:
    first, second = shared.client("first"), shared.client("second")
    first.begin()
    second.begin()
    first.submit(PLAIN, CELLS)
    second.submit(Question("tale", "niah", boundary="token"), CELLS)  # other contents under the same keys
    assert shared.answer(4, "said") == ["first tale::1", "second tale::1", "first tale::2", "second tale::2"]
    for run, client in (("first", first), ("second", second)):
        results, _ = client.finished(0)
        assert [key for key, _ in results] == list(CELLS)
        assert all(isinstance(one, Answered) and one.answer.text == f"said {run} {key}" for key, one in results)
        assert client.counters().submitted == client.counters().finished == 2
        client.close()


def test_clients_of_one_run_share_its_jobs(shared: Shared) -> None:
    controller, workers = shared.client("run"), [shared.client("run"), shared.client("run")]
    controller.begin()
    for worker in workers:
        worker.submit(PLAIN, CELLS)
    shared.answer(2, "said")
    assert {worker.result("tale::1").to_json()["answer"]["text"] for worker in workers} == {"said run tale::1"}  # type: ignore[index,call-overload]
    controller.close()


def test_a_run_that_is_gone_leaves_nothing(shared: Shared) -> None:
    gone, stays = shared.client("gone"), shared.client("stays")
    gone.begin()
    stays.begin()
    gone.submit(PLAIN, CELLS)
    in_hand = shared.server.waiting.get()
    shared.end(gone, "gone")
    (run,) = shared.server.dropped()
    assert sorted(run.jobs) == list(CELLS)
    assert shared.server.jobs == {}
    shared.server.finish(in_hand, Answered(Answer("too late", [], "stop", 1, 0, 0.0)))
    stays.submit(PLAIN, CELLS)
    assert shared.answer(2, "said") == ["stays tale::1", "stays tale::2"]
    assert shared.server.dropped() == []
    stays.close()


def test_whoever_waits_for_a_run_that_is_gone_is_told(shared: Shared) -> None:
    owner, worker = shared.client("run"), shared.client("run")
    owner.begin()
    owner.submit(PLAIN, CELLS)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(worker.result, "tale::1")
        while worker.counters().submitted != 2:
            pass
        shared.end(owner, "run")
        with pytest.raises(EngineDied, match="the run run is over"):
            waits.result(30)
    with pytest.raises(EngineDied, match="the run run is over"):
        worker.submit(PLAIN, CELLS)
    with pytest.raises(EngineDied, match="the run run is over"):
        worker.answer(FreeQuestion("When?"))


def test_heads_that_a_run_awaits_are_found_by_its_own_samples(shared: Shared) -> None:
    client = shared.client("run")
    client.begin()
    ablate = Ablation("zero", awaits=("found::1",))
    client.submit(Question("masked", "ablate", ablate=ablate), CELLS)
    question = shared.server.jobs["run tale::1"].ask.question  # type: ignore[union-attr]
    assert question.ablate is not None
    assert question.ablate.awaits == ("run found::1",)
    client.close()


def test_an_earlier_run_that_cannot_be_read_is_told_to_whoever_begins(shared: Shared, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("no JSON\n")
    client = shared.client("run")
    with pytest.raises(EngineError, match=r"results\.jsonl"):
        client.begin(str(tmp_path / "results.jsonl"))
