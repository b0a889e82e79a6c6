"""A copy that the server of forks makes is what a new process would be; where it would not, it is refused."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import is_gone, until

import forks
from forks import ADDRESS, Forked, Popen, Server

TELL = """
import faulthandler, json, os, resource, signal, sys, tempfile, threading, warnings
print(json.dumps({
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),
    "environment": dict(os.environ),
    "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "path": [path for path in sys.path if path != ""],
    "session": os.getsid(0),
    "group": os.getpgrp(),
    "limits": resource.getrlimit(resource.RLIMIT_FSIZE),
    "signals": {str(int(one)): str(signal.getsignal(one)) for one in signal.valid_signals()},
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": [one.name for one in threading.enumerate()],
    "filters": [str(one) for one in warnings.filters],
    "faulthandler": faulthandler.is_enabled(),
    "finders": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path],
    "temporary": tempfile.gettempdir(),
    "main": __name__,
    "input": sys.stdin.read(),
    "hooks": [hook.__module__ for hook in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
    "tests": [name for name in sys.modules if name.partition(".")[0] in ("conftest", "project")],
}))
"""


@pytest.fixture
def launch(forks: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts a program in a copy, or with `is_real` in a new process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ADDRESS, forks.address)

    def started(code: str, *arguments: str, is_real: bool = False, **options: Any) -> Any:
        made = (subprocess.Popen if is_real else Popen)(
            [sys.executable, "-c", textwrap.dedent(code), *arguments], **options
        )
        assert isinstance(made, subprocess.Popen if is_real else Forked)
        return made

    return started


def told(launch: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """What a process says of itself."""
    options.setdefault("env", dict(os.environ))  # else a new one also gets what readline has set behind Python's back
    process = launch(TELL, "one", "", "zwei ü\n", stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    process.stdin.write("read ü".encode())
    process.stdin.close()
    with process.stdout as printed:
        found: dict[str, Any] = json.loads(printed.read())
    assert process.wait(60) == 0
    return found


@pytest.mark.parametrize("command", [["-u", "there/telling.py"], ["-m", "there.telling"], ["-mthere.telling"]])
def test_a_script_and_a_module_find_what_they_would(
    launch: Callable[..., Any], tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "there").mkdir()
    code = "import __main__, sys; print(__name__, __file__, __main__.__file__, sys.argv, sys.path[0], what, sep='\\n')"
    (tmp_path / "there" / "telling.py").write_text(f"what = 3\n{code}")
    found = []
    for popen in (Popen, subprocess.Popen):
        process = popen([sys.executable, *command, "x"], stdout=subprocess.PIPE)
        assert isinstance(process, Forked) == (popen is Popen)
        assert process.stdout is not None
        with process.stdout as printed:
            found.append(printed.read().decode().replace(str(tmp_path / "there"), "there"))
        assert process.wait(60) == 0
    assert found[0] == found[1] != ""


def test_it_is_as_a_new_process(launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RH_ANY", "\udce4 any")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**9, limits[1]))
    try:
        copy, new = told(launch), told(launch, is_real=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGHUP, before)
    assert "AssertionRewritingHook" not in copy.pop("finders"), "pytest's, which the server's warm-up had"
    del new["finders"]  # libraries that are imported may have their own
    assert copy == new
    assert copy["group"] == os.getpgrp()
    assert copy["limits"][0] == 10**9
    assert copy["signals"]["1"] == str(signal.SIG_IGN)


def test_another_folder_environment_and_session(launch: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    # What libraries read as they are imported stays as it is: with another value no copy is made.
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "TERM")} | {"RH_ONLY": "this"}
    options = {"cwd": tmp_path / "there", "env": environment, "start_new_session": True}
    copy, new = told(launch, **options), told(launch, is_real=True, **options)
    for found in (copy, new):
        assert found.pop("session") == found.pop("group") != os.getpgrp()
        assert found["folder"] == str(tmp_path / "there")
        assert found["environment"]["RH_ONLY"] == "this"
        del found["finders"]
    assert copy == new


@pytest.mark.parametrize(
    ("code", "status", "printed"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('a sentence')", 1, "a sentence\n"),
        ("import os; os._exit(7)", 7, ""),
        ("raise ValueError('a fault')", 1, "Traceback *ValueError: a fault\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "Traceback *KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM, ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import atexit; atexit.register(print, 'at the end'); print('first')", 0, "first\nat the end\n"),
        ("import threading, time; threading.Timer(0.2, print, ['a thread']).start()", 0, "a thread\n"),
        ("import sys; sys.stdout.write('no newline')", 0, "no newline"),
    ],
)
@pytest.mark.parametrize("is_real", [False, True], ids=["copy", "new"])
def test_how_it_ends(launch: Callable[..., Any], code: str, status: int, printed: str, is_real: bool) -> None:
    process = launch(code, is_real=is_real, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process.stdout as stream:
        text = stream.read().decode()
    assert process.wait(60) == status
    assert process.poll() == process.returncode == status
    begin, _, end = printed.partition("*")
    assert text.startswith(begin)
    assert text.endswith(end)
    assert "*" in printed or text == printed
    assert is_gone(process.pid)


def test_it_can_be_waited_for_and_ended(launch: Callable[..., Any]) -> None:
    process = launch("import time; time.sleep(600)")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == -signal.SIGTERM
    process.kill()  # is nobody's any more


def test_its_process_id_is_its_own_until_somebody_has_waited_for_it(launch: Callable[..., Any]) -> None:
    process = launch("pass")
    until(lambda: is_gone(process.pid))
    assert Path(f"/proc/{process.pid}").exists(), "a zombie, as a child is"
    assert process.wait(60) == 0
    until(lambda: not Path(f"/proc/{process.pid}").exists())


def test_one_whose_asker_is_gone_ends_by_itself(launch: Callable[..., Any]) -> None:
    """As the engine of a killed session: it reads the end of its standard input."""
    code = """
    import os, subprocess, sys
    made = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    print(type(made).__name__, made.pid, flush=True)
    os.kill(os.getpid(), 9)
    """
    process = launch(code, stdout=subprocess.PIPE)
    with process.stdout as stream:
        kind, number = stream.read().decode().split()
    assert kind == "Forked"
    assert process.wait(60) == -signal.SIGKILL
    assert is_gone(int(number))
    until(lambda: not Path(f"/proc/{number}").exists())


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["true"], {}),
        ([sys.executable, "-I", "-c", "pass"], {}),
        ([sys.executable, "-"], {"stdin": subprocess.DEVNULL}),
        ([sys.executable], {"stdin": subprocess.DEVNULL}),
        ([sys.executable, "-c", "pass"], {"preexec_fn": os.getpid}),
        ([sys.executable, "-c", "pass"], {"text": True}),
        ([sys.executable, "-c", "pass"], {"env": {"PYTHONOPTIMIZE": "1"}}),
        ([sys.executable, "-c", "pass"], {"cwd": "shadows"}),
        ([sys.executable, "-c", "pass"], {"env": {"PYTHONPATH": "shadows"}}),
    ],
)
def test_what_a_copy_cannot_be_is_a_new_process(
    launch: Callable[..., Any], tmp_path: Path, command: list[str], options: dict[str, Any]
) -> None:
    (tmp_path / "shadows" / "yaml").mkdir(parents=True)
    (tmp_path / "shadows" / "yaml" / "__init__.py").touch()
    if "env" in options:
        options = {"env": {**os.environ, **options["env"]}}
    process = Popen(command, **options)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


def test_one_that_must_share_a_process_group_it_cannot_join_is_a_new_process(launch: Callable[..., Any]) -> None:
    """As the workers and replicas of whoever has a session of its own: a kill of the group is to reach them."""
    code = """
    import os, subprocess, sys
    tell = "import os; print(os.getpgrp())"
    made = subprocess.Popen([sys.executable, "-c", tell], stdout=subprocess.PIPE)
    print(type(made).__name__, int(made.stdout.read()) == os.getpgrp() == os.getpid())
    """
    process = launch(code, stdout=subprocess.PIPE, start_new_session=True)
    with process.stdout as stream:
        assert stream.read().decode().split() == ["Popen", "True"]


def test_without_the_variable_nothing_is_copied(launch: Callable[..., Any]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != ADDRESS}
    process = Popen([sys.executable, "-c", "pass"], env=environment)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


def test_many_at_once(launch: Callable[..., Any]) -> None:
    """Each has its own pipes: one that holds another's open would keep it waiting for ever."""
    processes = [
        launch("import sys; print(sys.stdin.read())", stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(20)
    ]
    for number, process in enumerate(processes):
        process.stdin.write(str(number).encode())
        process.stdin.close()
        assert process.stdout.read().decode() == f"{number}\n"
        process.stdout.close()
        assert process.wait(60) == 0


def test_another_core_is_a_new_process(launch: Callable[..., Any]) -> None:
    """Libraries choose by them how many threads they have, when they are imported."""
    mine = os.sched_getaffinity(0)
    if len(mine) == 1:
        pytest.skip("there is no other")
    os.sched_setaffinity(0, {min(mine)})
    try:
        process = Popen([sys.executable, "-c", "pass"])
    finally:
        os.sched_setaffinity(0, mine)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


@pytest.fixture
def server() -> Iterator[Server]:
    """One that a test may spoil."""
    made = Server(["json"])
    yield made
    made.end()


def test_a_server_that_says_nothing_is_told(
    server: Server, launch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, server.address)
    process = launch("import time; time.sleep(600)")
    monkeypatch.setattr(forks, "FORK_PATIENCE", 0.3)
    os.kill(server.process, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"the server of forks is silent for 0\.3 s"):
        launch("pass")
    monkeypatch.setattr(forks, "FORK_PATIENCE", 60)
    os.kill(server.process, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the server of forks ended before"):
        process.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ConnectionError):
        launch("pass")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start()",
            "2 threads run",
        ),
        ("raise ImportError('this one')", "exit status 1"),
    ],
)
def test_why_a_server_did_not_start_is_told(
    code: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "what_it_imports.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeError, match=f"the server of forks did not start: .*{why}"):
        Server(["what_it_imports"])
