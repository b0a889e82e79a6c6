"""`retrieval-heads engine`: an engine that stays in the background, for every run that needs one like it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from retrieval_heads.engine.start import StartedWith, hello_of
from retrieval_heads.engine.warm import Order, Warm, check_gpus, new_log, others, start, starting, warm_engines
from retrieval_heads.errors import ConfigError, EngineError, printable
from retrieval_heads.suites.reading import overlay, overrides, read_settings, resolve
from retrieval_heads.suites.settings import Settings


@dataclass(frozen=True)
class Start:
    """Start an engine that stays: each run whose model and engine are the same asks it.

    It ends by itself: after `engine.idle` seconds without a run (900), or once a file that it was started from has
    changed.

    Example: retrieval-heads engine start --config configs/qwen.yaml
    """

    config: Path | None = None
    """YAML config: the model, and the engine's settings."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Override one setting, as `--rh-set` does; may be given again."""
    traced: bool = False
    """One that scores and masks heads, for suites of kind detect and ablate."""

    def run(self) -> None:
        """Start it, or say that there is one."""
        settings = _settings(self.config, self.set)
        if settings.model.model is None:
            raise ConfigError(f"{self.config or 'engine start'}: names no model; expected `model: {{model: NAME}}`")
        model = settings.model.model_dump()
        with starting(_say):
            engines, needed = warm_engines(), StartedWith.of(model, settings.engine, traced=self.traced)
            for engine in engines:
                if not engine.started.differences(needed):
                    _say(f"{engine.name} is there already")
                    return
            check_gpus(engines, model, settings.engine)
            hello, log, began = hello_of(model, settings.engine, traced=self.traced), new_log(), time.monotonic()
            _say(f"starting the engine, log {log}")
            config = str(self.config) if self.config else None
            warm = start(Order.of(hello, needed, settings.engine, log, config, self.set))
        _say(f"{warm.model} is ready in {time.monotonic() - began:.1f} s ({_where(warm)})")
        _say(
            f"process {warm.process}; it ends with `retrieval-heads engine stop`, or {_lasting(warm.idle)} after a run"
        )


@dataclass(frozen=True)
class Stop:
    """Stop warm engines, also in the middle of a run; exit status 1 where there is none.

    Example: retrieval-heads engine stop
    """

    process: int | None = None
    """The one of this process alone, as `status` tells it."""

    def run(self) -> None:
        """Stop them, and say so."""
        engines = [one for one in warm_engines() if self.process in (None, one.process)]
        if not engines:
            raise EngineError(f"there is no warm engine{f' of process {self.process}' if self.process else ''}")
        for engine in engines:
            if not engine.stop():
                raise EngineError(f"{engine.name} does not end; its log is {engine.log}")
            _say(f"{engine.name} is stopped")


@dataclass(frozen=True)
class Status:
    """List the warm engines: what each was started with, who uses it, and when it ends; exit status 1 without one.

    Example: retrieval-heads engine status
    """

    def run(self) -> None:
        """Print them."""
        engines = warm_engines()
        for engine in engines:
            for line in _lines(engine):
                _say(line)
        for owner in others():
            _say(f"another user, {owner}, keeps one that nobody else can use")
        if not engines:
            raise EngineError("there is no warm engine")


@dataclass(frozen=True)
class Engine:
    """An engine that stays in the background, for every run that needs one like it: `engine start`, `stop`, `status`.

    Example: retrieval-heads engine start --config configs/qwen.yaml
    """


def engine(arguments: Sequence[str], program: str) -> None:
    """The command `retrieval-heads engine`.

    Args:
        arguments: The command line behind it.
        program: What it was called as, for `--help`.

    Raises:
        RetrievalHeadsError: The settings cannot be used, an engine does not start, or there is none.
    """
    kinds: dict[str, Any] = {"start": Start, "stop": Stop, "status": Status}
    tyro.extras.subcommand_cli_from_dict(kinds, prog=program, args=list(arguments), description=Engine.__doc__).run()


def _settings(config: Path | None, sets: Sequence[str]) -> Settings:
    data = read_settings(config) if config else {}
    return resolve(overlay(data, overrides(sets)), str(config or "--set"))


def _lines(warm: Warm) -> list[str]:
    use = warm.use()
    since = time.strftime("%H:%M", time.localtime(warm.began))
    kind = "traced" if warm.started.said["traced"] else "plain"
    lines = [f"{warm.model}: process {warm.process}, {kind}, since {since} ({_where(warm)})"]
    if use is None:
        lines.append("  is ending")
    elif use.failure:
        lines.append(f"  has failed: {use.failure}")
    else:
        lines += [f"  used by {run}" for run in use.runs]
        if not use.runs:
            left = max(0.0, warm.idle - use.idle_seconds)
            lines.append(f"  used by nobody for {_lasting(use.idle_seconds)}, ends in {_lasting(left)}")
        lines += [f"  asleep: {use.asleep}"] if use.asleep else []
    lines += [f"  holds GPU {', '.join(warm.gpus)}"] if warm.gpus else []
    lines.append(f"  log {warm.log}")
    return lines


def _where(warm: Warm) -> str:
    facts = warm.facts
    return f"{facts.get('dtype')} on {facts.get('device')}, {facts.get('engine')}"


def _lasting(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def _say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(printable(line), flush=True)
