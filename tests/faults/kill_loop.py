"""Kills of a running session, each resumed: what was written stays, each cell's once, and nothing is asked again.

By command: `python tests/faults/kill_loop.py --rounds 1000` (the stand-in engine), `--engine real --rounds 20` (vLLM
and SmolLM2). A round starts a session and kills something of it: pytest, its whole process group, a worker of xdist, or
the engine, by SIGKILL, SIGTERM or SIGINT, once a drawn number of records stands on disk or at a drawn moment of its
start. The next round resumes it, and is killed too, until a suite is answered; then another folder begins.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

_HERE = Path(__file__).parent
sys.path += [str(_HERE.parent / "plugin"), str(_HERE.parent)]

from stand_in_engine import FERRY, VARIABLE, Behaviour  # noqa: E402

from forks import ADDRESS, Forked, Popen, Server  # noqa: E402
from retrieval_heads.runs.record import Record, parse_record  # noqa: E402

ANSWERED = ("pass", "low")
PATIENCE = 120.0 if "real" not in sys.argv else 900.0
"""Seconds in which every process must be gone after a kill: a hang is told from a slow machine."""
MARK = "RH_KILL_LOOP"
_CONFTEST = """\
from retrieval_heads.engine.backends import backend
from retrieval_heads.registry import Registry

backend.BACKENDS = Registry(backend.GROUP, "backend", {"vllm": "stand_in_engine:StandIn"})
"""

Process = subprocess.Popen[bytes] | Forked
Target = Literal["pytest", "group", "worker", "engine"]
TARGETS: tuple[Target, ...] = ("pytest", "group", "worker", "engine")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Lost(AssertionError):
    """A promise that a kill has broken."""


@dataclass
class Tally:
    """What the rounds came to."""

    rounds: int = 0
    where: Counter[str] = field(default_factory=Counter)
    """Kills by how far the run was: before the first record, in the middle, after the last."""
    what: Counter[str] = field(default_factory=Counter)
    """Kills by what was killed, and how."""
    torn: int = 0
    """Files whose last line was incomplete after a kill."""
    answered: int = 0
    """Suites that were answered to the end."""
    records: int = 0
    """Answers of these."""

    @property
    def in_the_middle(self) -> int:
        """Kills between a session's first record and its last."""
        return self.where["in the middle"]

    def lines(self) -> list[str]:
        """For a reader."""
        return [
            f"{self.rounds} rounds: {sum(self.where.values())} kills, {self.in_the_middle} in the middle of a run "
            f"({', '.join(f'{count} {where}' for where, count in sorted(self.where.items()))})",
            ", ".join(f"{count} {what}" for what, count in sorted(self.what.items())),
            f"{self.answered} suites answered to the end, {self.records} answers: 0 lost, 0 doubled, 0 asked again; "
            f"{self.torn} last lines torn and dropped; 0 hangs, 0 orphan processes, 0 temporary folders left",
        ]


class KillLoop:
    """Rounds of kills in a folder.

    Args:
        folder: An empty one.
        seed: Draws what is killed, how and when.
        engine: `stand-in` or `real`.
        cells: Of the suite.
        forks: Makes sessions and stand-in engines copies; workers never are: they share their session's process group.
    """

    def __init__(
        self, folder: Path, *, seed: int, engine: str = "stand-in", cells: int = 24, forks: Server | None = None
    ) -> None:
        self.folder = folder
        self.tally = Tally()
        self._draw = random.Random(seed)
        self._engine = engine
        self._cells = cells
        self._forks = forks
        self._distributed = 0.1 if forks else 0.3
        self._mark = str(folder)
        self._run = 0
        self._seen: dict[str, tuple[str, str]] = {}
        """Of the run at hand: request and answer of each cell that was on disk after an earlier kill."""
        self._expected: dict[str, str] | None = None
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True)
        self._write_project()

    def _write_project(self) -> None:
        if self._engine == "stand-in":
            model: dict[str, object] = {"model": "toy"}
            haystack, needle = "tales", FERRY
            lengths, tokens = [128], 16
            (self.folder / "tales").mkdir()
            tale = "Once upon a time there was a boat. It sailed far away. Nobody saw it again.\n" * 20
            (self.folder / "tales" / "a.txt").write_text(tale)
            (self.folder / "conftest.py").write_text(_CONFTEST)
        else:
            model = {"model": "SmolLM2-135M-Instruct", "max_model_len": 1024, "enforce_eager": True}
            haystack, needle = "pydoc", FERRY
            lengths, tokens = [256, 512], 16
        suite = {
            "kind": "niah",
            "haystack": haystack,
            "needles": [{"needle": needle, "question": "When does the ferry to Oslo leave?"}],
            "sweep": {
                "context_lengths": lengths,
                "document_depths": {"min": 0, "max": 100, "intervals": self._cells // len(lengths) - 1},
            },
            "generation": {"max_tokens": tokens},
            "verdict": "none",
        }
        (self.folder / "tale.yaml").write_text(yaml.safe_dump(suite))
        (self.folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))

    @property
    def _out(self) -> Path:
        return self.folder / f"run-{self._run}"

    @property
    def _results(self) -> Path:
        return self._out / "results.jsonl"

    def round(self) -> None:
        """Start or resume the run, kill something of it, and see what is left.

        Raises:
            Lost: A promise was broken.
        """
        self.tally.rounds += 1
        is_distributed = self._draw.random() < self._distributed
        target = self._draw.choice(TARGETS if is_distributed else (*TARGETS[:2], "engine"))
        number = self._draw.choice(SIGNALS)
        before = len(self._seen)
        # Most kills wait for a record of this session; some hit its start.
        records = (
            before + self._draw.randint(1, max(1, (self._cells - before) // 2)) if self._draw.random() < 0.8 else 0
        )
        moment = self._draw.uniform(0, 0.05 if records else 2.5)
        session = self._start(is_distributed)
        self._wait_for(session, records)
        time.sleep(moment)
        is_running = session.poll() is None
        reached = self._count()
        if is_running:
            for process in self._processes(session, target):
                try:
                    os.killpg(process, number) if target == "group" else os.kill(process, number)
                except ProcessLookupError:
                    is_running = target != "pytest"
        self._wait_for_end(session, f"{number.name} to {target} after {reached} records")
        if is_running:
            self.tally.what[f"{number.name} to {target}{' with -n 2' if is_distributed else ''}"] += 1
            done = "before the first record" if reached == before else "in the middle"
            self.tally.where["after the last record" if reached >= self._cells else done] += 1
        self._check(is_running)
        if len(self._seen) == self._cells:
            self._finish()

    def finish(self) -> None:
        """Answer what is open, and see that nothing is left behind.

        Raises:
            Lost: A promise was broken.
        """
        self._finish()
        if left := list(self._temporary.glob("rh-*")):
            raise Lost(f"temporary folders left: {left}")

    def _finish(self) -> None:
        """Resume without a kill: every cell answered, as if undisturbed."""
        session = self._start(is_distributed=False)
        self._wait_for_end(session, "nothing")
        if session.returncode != 0:
            raise Lost(f"the resumed run failed: {self._printed()}")
        self._check(False)
        answers = {cell: text for cell, (_, text) in self._seen.items()}
        self._expected = self._expected or answers
        if len(answers) != self._cells or answers != self._expected:
            raise Lost(f"{len(answers)} of {self._cells} cells, or other answers than those of an earlier run")
        if len(self._lines()) != self._cells:
            raise Lost(f"{len(self._lines())} lines for {self._cells} cells")
        facts = json.loads((self._out / "run.json").read_text())
        if facts["status"] != "finished":
            raise Lost(f"run.json says {facts['status']!r}")
        if parts := list(self._out.glob(".*.part")):
            raise Lost(f"half-written files left: {parts}")
        self.tally.answered += 1
        self.tally.records += len(answers)
        shutil.rmtree(self._out)
        self._run += 1
        self._seen = {}

    def _start(self, is_distributed: bool) -> Process:
        served = self.folder / "served"
        served.unlink(missing_ok=True)
        behaviour = Behaviour(delay=0.02, served=str(served), start_seconds=0.05)
        arguments = ["tale.yaml", "--rh-config", "config.yaml", "--rh-set", f"output_dir={self._out}"]
        arguments += ["--rh-resume", "-q", *(["-n", "2"] if is_distributed else [])]
        for plugin in ("cacheprovider", "hypothesispytest", "typeguard", "anyio"):
            arguments += ["-p", f"no:{plugin}"]
        paths = [str(_HERE), str(_HERE.parent / "plugin"), str(_HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            VARIABLE: behaviour.environment(),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TMPDIR": str(self._temporary),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            MARK: self._mark,
        }
        for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "CI", "GITHUB_STEP_SUMMARY"):
            environment.pop(variable, None)
        options: dict[str, Any] = {"cwd": self.folder, "env": environment, "start_new_session": True}
        if self._forks:
            environment[ADDRESS] = self._forks.address
        else:
            # As from a terminal: whoever runs this in the background has Ctrl-C ignored, which is inherited.
            options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        with (self.folder / "printed").open("wb") as printed:
            options |= {"stdin": subprocess.DEVNULL, "stdout": printed, "stderr": subprocess.STDOUT}
            return Popen([sys.executable, "-m", "pytest", *arguments], **options)

    def _wait_for(self, session: Process, records: int) -> None:
        give_up = time.monotonic() + PATIENCE
        while session.poll() is None and self._count() < records:
            if time.monotonic() > give_up:
                raise Lost(f"a hang: {self._count()} of {records} records after {PATIENCE} s\n{self._printed()}")
            time.sleep(0.005)

    def _wait_for_end(self, session: Process, killed: str) -> None:
        try:
            session.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost(f"a hang after {killed}\n{self._printed()}") from None
        give_up = time.monotonic() + PATIENCE
        while orphans := self._alive():
            if time.monotonic() > give_up:
                raise Lost(f"orphans after {killed}: {orphans}")
            time.sleep(0.05)

    def _count(self) -> int:
        try:
            return self._results.read_bytes().count(b"\n")
        except OSError:
            return 0

    def _processes(self, session: Process, target: Target) -> list[int]:
        """Whom the signal goes to; pytest where what was drawn is not there yet."""
        if target in ("pytest", "group"):
            return [session.pid]
        others = [(process, command) for process, command in self._alive() if process != session.pid]
        marks = ("fork_server", "retrieval_heads.engine.process")  # of a copy, and of a process of its own
        engines = [process for process, command in others if any(mark in command for mark in marks)]
        workers = [process for process, command in others if process not in engines and "tracker" not in command]
        return (engines if target == "engine" else workers)[:1] or [session.pid]

    def _alive(self) -> list[tuple[int, str]]:
        """Processes of this loop's sessions, however far from them by now, with their command lines."""
        found = []
        mark, here = f"{MARK}={self._mark}".encode(), self.folder.resolve()
        own = {os.getpid(), *([self._forks.process] if self._forks else [])}
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) in own:
                continue
            try:
                # A copy shows the environment with which its server was started, and is in the session's folder.
                is_marked = mark in (process / "environ").read_bytes().split(b"\0")
                if not is_marked and (process / "cwd").readlink() != here:
                    continue
                if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                found.append((int(process.name), (process / "cmdline").read_text()))
            except OSError:
                continue  # it ended meanwhile, or is somebody else's
        return found

    def _check(self, was_killed: bool) -> None:
        lines = self._lines()
        answers: dict[str, tuple[str, str]] = {}
        for record in lines:
            if record.status in ANSWERED:
                if record.cell in answers:
                    raise Lost(f"{record.cell} is doubled")
                answers[record.cell] = (record.request, record.text)
        if lost := {cell for cell, answer in self._seen.items() if answers.get(cell) != answer}:
            raise Lost(f"{len(lost)} answers lost or changed: {sorted(lost)[:3]}")
        if self._engine == "stand-in" and (self.folder / "served").exists():
            served = {line.partition("\t")[2].partition("::")[2] for line in self._served()}
            if again := served & self._seen.keys():
                raise Lost(f"{len(again)} cells asked again: {sorted(again)[:3]}\n{self._printed()}")
        self._seen = answers
        folders = list(self._temporary.glob("rh-*"))
        if len(folders) > (1 if was_killed else 0):
            raise Lost(f"{len(folders)} temporary folders: that of an earlier session was not removed")

    def _served(self) -> list[str]:
        return (self.folder / "served").read_text().splitlines()

    def _lines(self) -> list[Record]:
        try:
            content = self._results.read_bytes()
        except FileNotFoundError:
            return []
        whole, _, torn = content.rpartition(b"\n")
        self.tally.torn += bool(torn)
        lines = whole.decode().split("\n") if whole else []
        return [parse_record(line, f"{self._results}:{number}") for number, line in enumerate(lines, 1)]

    def _printed(self) -> str:
        return (self.folder / "printed").read_text(errors="replace")[-3000:]


def main() -> None:
    """Run rounds and say what they came to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--engine", choices=["stand-in", "real"], default="stand-in")
    parser.add_argument("--fork", action="store_true", help="start sessions as copies of one process: faster")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-loop-"))
    os.environ[MARK] = str(folder)  # a copy shows the environment with which the server was started
    forks = Server() if options.fork else None
    cells = 24 if options.engine == "stand-in" else 12
    loop = KillLoop(folder, seed=options.seed, engine=options.engine, cells=cells, forks=forks)
    began = time.monotonic()
    try:
        for number in range(options.rounds):
            loop.round()
            if (number + 1) % 50 == 0:
                print(f"after {time.monotonic() - began:.0f} s: {loop.tally.lines()[0]}", flush=True)
        loop.finish()
    except Lost as error:
        sys.exit(f"round {loop.tally.rounds} of seed {options.seed}, in {folder}: {error}")
    if forks:
        forks.end()
    print("\n".join([*loop.tally.lines(), f"{time.monotonic() - began:.0f} s"]))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
