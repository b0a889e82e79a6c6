"""The command line: `retrieval-heads SUBCOMMAND`, and the predecessor's programs, such as `retrieval-heads.niah`."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retrieval_heads.commands.engine import Engine, engine
from retrieval_heads.commands.heads import Heads, heads
from retrieval_heads.commands.models import Models
from retrieval_heads.commands.reconstruct import Reconstruct
from retrieval_heads.commands.report import Report
from retrieval_heads.commands.session import Ablate, CodeEval, Compress, Detect, Matrix, Niah, Phonebook, run_session
from retrieval_heads.commands.validate import Validate, validate
from retrieval_heads.commands.visualize import Visualize, visualize
from retrieval_heads.errors import ConfigError, RetrievalHeadsError, printable
from retrieval_heads.files import write_whole
from retrieval_heads.gates.tolerance import DEFAULT_MAX_DROP
from retrieval_heads.kinds import KINDS
from retrieval_heads.namesake import refuse_predecessor
from retrieval_heads.version import __version__

_DESCRIPTION = "Needle-in-a-haystack suites and retrieval heads on vLLM, without typing pytest."
_STARTERS = ("configs", "suites")


@dataclass(frozen=True)
class Init:
    """Copy starter suites and configs into a project; files that are there already are kept.

    Example: retrieval-heads init my-project
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path()
    """Where `suites/` and `configs/` go; the working directory where it is left out."""

    def run(self) -> None:
        """Copy, and say what to type next."""
        try:
            copied = copy_starters(self.folder)
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot be written ({error.strerror})") from None
        for path in copied:
            print(f"wrote {path}")
        if not copied:
            print(f"nothing to do: every starter file is in {self.folder.resolve()} already")
        print("next: pytest suites/niah/classic.yaml --rh-config configs/qwen.yaml --rh-report")


@dataclass(frozen=True)
class Compare:
    """Judge a run against an earlier one, as `--rh-baseline` does; exit status 1 where a score fell or may have.

    Example: retrieval-heads compare reports/main reports/latest --max-drop 5%
    """

    baseline: Annotated[Path, tyro.conf.Positional]
    """The earlier run's folder, its results.jsonl, or a saved baseline."""
    current: Annotated[Path, tyro.conf.Positional]
    """The run to judge."""
    max_drop: tuple[str, ...] = (DEFAULT_MAX_DROP,)
    """How far a score may fall: 0.05, 5%, rougeL_recall:0.05 beside the default scores, only:rougeL_recall:0.05."""
    allow_new: bool = False
    """Leave out cells that the baseline lacks."""
    allow_removed: bool = False
    """Let go of the baseline's cells that the run to judge has not."""
    allow_skipped: bool = False
    """Leave out skipped cells."""
    allow_changed: bool = False
    """Compare cells that were asked something else: another text, wording or placement."""
    inconclusive: Literal["fail", "warn"] = "fail"
    """What a fall beyond the limit that noise can explain does to the exit status."""
    json: Path | None = None
    """Write the verdict there as JSON too."""

    def run(self) -> None:
        """Judge, and print a line for each number."""
        from retrieval_heads import gates

        before, after = gates.load_baseline(self.baseline), gates.load_baseline(self.current)
        verdict = gates.set_against(
            after.records,
            before,
            max_drop=gates.parse_max_drop(self.max_drop),
            meta=after.meta,
            selected={gates.cell_name(record) for record in after.records} if self.allow_removed else None,
            allow_new=self.allow_new,
            allow_skipped=self.allow_skipped,
            allow_changed=self.allow_changed,
        ).judged(self.inconclusive)
        shrunk = gates.shrinkage(before.records, gates.cells_of(after.records), {}, KINDS)
        verdict += gates.Verdict((), tuple(shrunk.lines()))
        for suite in sorted(before.heads.keys() & after.heads.keys()):
            verdict += gates.Verdict((), notes=tuple(gates.agreement(suite, after.heads[suite], before.heads[suite])))
        for line in gates.lines(verdict, shutil.get_terminal_size().columns):
            print(printable(line))
        if self.json is not None:
            write_whole(self.json, (json.dumps(gates.to_json(verdict), indent=2) + "\n").encode())
        if not verdict.passed:
            sys.exit(1)


def copy_starters(folder: Path) -> list[Path]:
    """Copy the starter suites and configs.

    Returns:
        The files that were written; one that exists is left as it is.

    Raises:
        OSError: The folder cannot be written.
    """
    copied = []
    for name in _STARTERS:
        root = _starter_folder(name)
        for source in sorted(root.rglob("*.yaml")):
            target = folder / name / source.relative_to(root)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                copied.append(target)
    return copied


def _starter_folder(name: str) -> Path:
    """In an installed wheel beside this module; in a source checkout at its top level."""
    packaged = Path(str(files("retrieval_heads"))) / "starter" / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / name


_COMMANDS: dict[str, Any] = {
    "init": Init,
    "niah": Niah,
    "detect": Detect,
    "ablate": Ablate,
    "compress": Compress,
    "code-eval": CodeEval,
    "phonebook": Phonebook,
    "matrix": Matrix,
    "visualize": Visualize,
    "compare": Compare,
    "reconstruct": Reconstruct,
    "validate": Validate,
    "report": Report,
    "heads": Heads,
    "engine": Engine,
    "models": Models,
}
_DISPATCHED: dict[str, Callable[[Sequence[str], str], None]] = {
    "niah": partial(run_session, "niah"),
    "detect": partial(run_session, "detect"),
    "ablate": partial(run_session, "ablate"),
    "compress": partial(run_session, "compress"),
    "code-eval": partial(run_session, "code-eval"),
    "phonebook": partial(run_session, "phonebook"),
    "matrix": partial(run_session, "matrix"),
    "validate": validate,
    "visualize": visualize,
    "heads": heads,
    "engine": engine,
}
"""Those that read their arguments themselves: every setting is a flag of theirs, or they have subcommands."""


def main(arguments: Sequence[str] | None = None, program: str = "retrieval-heads") -> None:
    """The program `retrieval-heads`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _refuse_empty(given)
        if given == ["--version"]:
            print(f"retrieval-heads {__version__}")
            return
        refuse_predecessor()
        if given and given[0] in _DISPATCHED:
            _DISPATCHED[given[0]](given[1:], f"{program} {given[0]}")
            return
        tyro.extras.subcommand_cli_from_dict(_COMMANDS, prog=program, args=given, description=_DESCRIPTION).run()
    except RetrievalHeadsError as error:
        sys.exit(f"retrieval-heads: {error}")
    except OSError as error:  # a file that cannot be written, or a path that none can have
        sys.exit(f"retrieval-heads: {RetrievalHeadsError(f'{error.filename}: {error.strerror}')}")


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An argument without a value is a variable that nobody set, not one left out."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    for before, argument in zip(["", *ours], ours, strict=False):
        if not argument.strip() or (argument.startswith("--") and argument.endswith("=")):
            name = argument.rstrip("= ") or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{name} is given without a value (a variable that is not set?); leave it out")


def main_niah() -> None:
    """The program `retrieval-heads.niah`, as the predecessor calls it."""
    main(["niah", *sys.argv[1:]])


def main_detect() -> None:
    """The program `retrieval-heads.detect`."""
    main(["detect", *sys.argv[1:]])


def main_visualize() -> None:
    """The program `retrieval-heads.visualize`."""
    main(["visualize", *sys.argv[1:]])


def main_code_eval() -> None:
    """The program `retrieval-heads.code-eval`."""
    main(["code-eval", *sys.argv[1:]])


def main_phonebook() -> None:
    """The program `retrieval-heads.phonebook`."""
    main(["phonebook", *sys.argv[1:]])


def main_report() -> None:
    """The program `retrieval-heads.report`."""
    main(["report", *sys.argv[1:]])
