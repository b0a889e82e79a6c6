"""Are two runs of the same suites equal, field by field and float for float, all but times and versions?

    python tests/equal_runs.py BEFORE AFTER

Each is a run's folder, or a folder of several of the same names. Compared are records, head files, gates, ablations and
the resolved settings. A change to the house is behaviour held still where this says so of runs before and after it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TIMES = frozenset(
    {"seconds", "began", "answer_seconds", "engine_start_seconds", "start_seconds", "step_seconds", "feed_gap_seconds"}
    | {"engine_seconds", "queued_seconds"}
)
OF_A_RUN = frozenset({"output_dir"})
"""What names the run itself."""
FILES = (
    "results.jsonl",
    "heads*.json",
    "detected*.json",
    "head_score*.json",
    "ablation*.json",
    "gates.json",
    "config.yaml",
)


def main() -> int:
    """Compare two folders; the exit status says whether they are equal."""
    before, after = (Path(argument) for argument in sys.argv[1:3])
    runs = [(before, after)]
    if not (before / "results.jsonl").exists():
        runs = [(file.parent, after / file.parent.name) for file in sorted(before.glob("*/results.jsonl"))]
    if not runs:
        print(f"{before}: holds no run")
        return 2
    found = 0
    for old, new in runs:
        compared = 0
        for pattern in FILES:
            for name in sorted({file.name for folder in (old, new) for file in folder.glob(pattern)}):
                compared += 1
                for difference in differences(read(old / name), read(new / name), name):
                    found += 1
                    print(f"{old.name}: {difference}")
        print(f"{old.name}: {compared} files compared")
    print(f"{found} differences")
    return 1 if found else 0


def read(file: Path) -> Any:
    """A file's content; records, and samples of heads, by their cell, whatever order they came in."""
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        return {f"{record['kind']}/{record['suite']} {record['cell']}": record for record in records}
    content = yaml.safe_load(text) if file.suffix == ".yaml" else json.loads(text)
    if isinstance(content, dict) and isinstance(samples := content.get("samples"), list):
        content["samples"] = {sample["cell"]: sample for sample in samples}
    return content


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Each field that differs, with its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys(), key=str):
            if key not in TIMES | OF_A_RUN:
                yield from differences(old.get(key), new.get(key), f"{where}: {key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{where}[{at}]")
    elif old != new:
        yield f"{where}: {old!r:.80} before, {new!r:.80} after"


if __name__ == "__main__":
    sys.exit(main())
