"""Prompts that are built in other processes while the engine steps: those whose text no other prompt shares.

A long text of a sample's own is drawn and tokenized for it alone, which takes a second and more. Only a few are built
ahead at once, so that memory does not grow with the number of samples.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from retrieval_heads.engine.jobs import CellQuestion
from retrieval_heads.errors import RetrievalHeadsError
from retrieval_heads.prompts.requests import Request
from retrieval_heads.runs.place import LENGTH
from retrieval_heads.tasks.builder import CellBuilder
from retrieval_heads.tasks.task import TASKS, OwnTexts

FEWEST_TOKENS = 8192
"""A shorter prompt is built sooner than it crosses."""

MOST_WORKERS = 4

_builder: CellBuilder | None = None
"""In a worker: what it builds with."""


class Ahead:
    """Builds prompts of cells before it is their turn.

    Args:
        builder: Builds them; each worker has a copy, made when the first such cell is seen.
        workers: Processes; none builds nothing ahead. By default all cores but one, of those this process may use.
    """

    def __init__(self, builder: CellBuilder, workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._workers = min(MOST_WORKERS, cores - 1) if workers is None else workers
        self._builder = builder
        self._pool: ProcessPoolExecutor | None = None
        self._building: dict[str, Future[Request]] = {}

    @property
    def reach(self) -> int:
        """How many jobs are looked at before it is their turn; 0 where nothing is built ahead."""
        return 2 * self._workers

    def offer(self, key: str, asked: CellQuestion) -> None:
        """Begin with a cell, if its prompt is one of those."""
        if not self._workers:
            return
        try:
            if _is_worth_it(asked):
                self._building[key] = self._made_pool().submit(_build, asked)
        except RetrievalHeadsError:
            return  # said when it is built
        except Exception as error:  # the pool, or a tokenizer that does not cross
            self._give_up(error)

    def is_ready(self, key: str, seconds: float = 0.0) -> bool:
        """Whether a cell need not be waited for: it is built, or not built here. Waits so long at most."""
        future = self._building.get(key)
        if future is None:
            return True
        try:
            future.exception(timeout=seconds)
        except NotYet:
            return False
        return True

    def take(self, key: str) -> Request | None:
        """A cell's prompt, once; `None` where it was not built here.

        Raises:
            CellSkipped: As `CellBuilder.request` does; so do the others.
            PromptError: It cannot be built.
        """
        future = self._building.pop(key, None)
        if future is None:
            return None
        try:
            return future.result()
        except BrokenProcessPool as error:
            self._give_up(error)
            return None

    def drop(self, key: str) -> None:
        """Forget a cell that nobody asks any more."""
        if (future := self._building.pop(key, None)) is not None:
            future.cancel()

    def _made_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            print(f"long prompts are built ahead by {self._workers} other process(es)", file=sys.stderr, flush=True)
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _prepare, (self._builder,)
            )
        return self._pool

    def close(self) -> None:
        """End the workers; what they build is lost."""
        self._building.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _give_up(self, error: Exception) -> None:
        """What is left is built by the engine's process itself: a worker was killed, or could not be started."""
        print(f"no prompt is built ahead any more: {type(error).__name__}: {error}", file=sys.stderr)
        self._workers = 0
        self._building.clear()


def _is_worth_it(asked: CellQuestion) -> bool:
    length = asked.cell.place.get(LENGTH)
    if asked.is_masked or asked.cell.stored is not None or not isinstance(length, int) or length < FEWEST_TOKENS:
        return False
    task = TASKS.find(asked.question.task)
    return isinstance(task, OwnTexts) and task.has_own_text(asked.question, asked.cell.place)


def _prepare(builder: CellBuilder) -> None:
    global _builder
    _builder = builder
    threading.Thread(target=_end_with_engine, daemon=True).start()


def _end_with_engine() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _build(asked: CellQuestion) -> Request:
    assert _builder is not None
    return _builder.request(asked.question, asked.cell)
