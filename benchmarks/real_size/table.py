"""The table of what was measured: a row for each target, told to be not run where nothing was."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Lines = Sequence[dict[str, Any]]


def table(lines: Lines, cells: int, tokens: int) -> Iterator[str]:
    """Lines of text.

    Args:
        lines: What the phases told.
        cells: Of the grid: the paper's algorithm and the predecessor run on some of them alone.
        tokens: Of all prompts of the grid.
    """
    found = Found(lines, cells, tokens)
    for phases, name, target, result in ROWS:
        told = result(found)
        if told is None:
            ended = [line for line in lines if line["what"] == "phase" and line["phase"] in phases.split()]
            why = "".join(f": {line['why']}" for line in ended if line["why"])
            told = f"not run{why} (--only {phases})"
        yield f"{name:<54} {target:<14} {told}"


class Found:
    """What the phases told, by what the rows ask."""

    def __init__(self, lines: Lines, cells: int, tokens: int) -> None:
        self._lines, self._cells, self._tokens = lines, cells, tokens

    def of(self, what: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of a kind that have these values."""
        return [line for line in self._lines if line["what"] == what and fields.items() <= line.items()]

    def median(self, what: str, **fields: Any) -> float | None:
        """Of the seconds."""
        seconds = [line["seconds"] for line in self.of(what, **fields)]
        return statistics.median(seconds) if seconds else None

    def to_bare(self, way: str) -> float | None:
        """Median of the rounds' own ratios to the bare run beside them."""
        bare = {line["round"]: line["seconds"] for line in self.of("bare", beside=way)}
        ratios = [line["seconds"] / bare[line["round"]] for line in self.of(way) if line["round"] in bare]
        return statistics.median(ratios) if ratios else None

    def whole_grid(self, what: str) -> tuple[float, list[int]] | None:
        """Seconds of the grid extrapolated, in proportion to tokens, from one cell of each length or of some; which."""
        measured = self.of(what)
        if not measured:
            return None
        lengths = [line["length"] for line in measured]
        return sum(line["seconds"] for line in measured) / sum(lengths) * self._tokens, lengths

    def ratio(self, what: str) -> str | None:
        """Another way's whole grid against detection."""
        ours, theirs = self.median("detect"), self.whole_grid(what)
        if ours is None or theirs is None:
            return None
        seconds, lengths = theirs
        cells = ", ".join(f"{length:,}" for length in lengths)
        return f"{seconds / ours:.1f} ({seconds:.0f} s, extrapolated from cells of {cells} tokens to {self._cells})"


def _sweep(found: Found) -> str | None:
    return _ratio(found.to_bare("sweep"), found.median("sweep"))


def _single(found: Found) -> str | None:
    one, together = found.median("single"), found.median("sweep")
    return _ratio(one / together, one) if one and together else None


def _detection(found: Found, detecting: str, sweeping: str) -> str | None:
    detect, sweep = found.to_bare(detecting), found.to_bare(sweeping)
    return _ratio(detect / sweep, found.median(detecting)) if detect and sweep else None


def _samples(found: Found) -> str | None:
    niah, detect = found.median("samples", kind="niah"), found.median("samples", kind="detect")
    counts = {line["count"] for line in found.of("samples")}
    return f"{_ratio(detect / niah, detect)} of {counts}" if niah and detect else None


def _stream(found: Found) -> str | None:
    """Each way to the round without, on one engine."""
    none = {line["round"]: line["seconds"] for line in found.of("stream", way="none")}
    told = []
    for way in ("behind the context", "every row"):
        ratios = [line["seconds"] / none[line["round"]] for line in found.of("stream", way=way)]
        if ratios and (ratio := _ratio(statistics.median(ratios), found.median("stream", way=way))):
            told.append(f"{way} {ratio}")
    return "; ".join(told) or None


def _memory(found: Found) -> str | None:
    return next((f"{line['more_mb']:.0f} MB" for line in found.of("memory")), None)


def _long(found: Found) -> str | None:
    lengths = [line["length"] for line in found.of("sample")]
    if not lengths:
        return None
    length = max(lengths)
    niah, detect = (found.of("sample", kind=kind, length=length) for kind in ("niah", "detect"))
    ratio = statistics.median(two["seconds"] / one["seconds"] for one, two in zip(niah, detect, strict=False))
    return f"{_ratio(ratio, found.median('sample', kind='detect', length=length))} at {length:,} tokens"


def _kernel(found: Found) -> str | None:
    shares = [f"{line['rows']} rows, {line['tokens']:,} keys: {line['of_roof']:.0%} of {line['roof']}"
              for line in found.of("kernel", measured="speed") if "of_roof" in line]  # fmt: skip
    right = found.of("kernel", measured="correct")
    return "; ".join(shares) or (f"{sum(line['ok'] for line in right)} of {len(right)} shapes right" if right else None)


def _start(found: Found) -> str | None:
    told = [
        f"{'traced' if line['traced'] else 'plain'} {line['ready_seconds'] + line['first_result_seconds']:.1f} s: "
        + ", ".join(f"{part} {seconds:.1f}" for part, seconds in (line["start_seconds"] | line["by_vllm"]).items())
        + f", first result {line['first_result_seconds']:.1f} (second {line['second_result_seconds']:.1f})"
        for line in found.of("start")
    ]
    return "; ".join(dict.fromkeys(told)) or None


def _reuse(found: Found) -> str | None:
    return _share(found, "cached_tokens", "reusable_tokens")


def _gap(found: Found) -> str | None:
    return _share(found, "feed_gap_seconds", "step_seconds")


def _share(found: Found, part: str, whole: str) -> str | None:
    told = []
    for way in ("sweep", "detect"):
        lines = found.of(way)
        if lines and sum(line[whole] for line in lines):
            told.append(f"{way} {sum(line[part] for line in lines) / sum(line[whole] for line in lines):.1%}")
    return ", ".join(told) or None


def _recomputed(found: Found) -> str | None:
    return next((f"{line['at_most']} tokens, block {line['block_size']}" for line in found.of("recomputed")), None)


def _growth(found: Found) -> str | None:
    return ", ".join(f"{line['against']}: {line['exponent']:.2f}" for line in found.of("exponent")) or None


def _replicas(found: Found) -> str | None:
    told = []
    for kind in ("niah", "detect"):
        one = found.median("replicas", replicas=1, kind=kind)
        for count in (2, 4, 8):
            several = found.median("replicas", replicas=count, kind=kind)
            if one and several:
                told.append(f"{kind} {count}: {one / several:.2f} ({several:.1f} s)")
    return ", ".join(told) or None


def _ray(found: Found) -> str | None:
    told = []
    for count in (1, 2, 4, 8):
        for kind in ("niah", "detect"):
            ours = found.median("ray", by="processes", replicas=count, kind=kind)
            rays = found.median("ray", by="ray", replicas=count, kind=kind)
            if ours and rays:
                told.append(f"{kind} {count}: {rays / ours:.3f} ({rays:.2f} s)")
    return ", ".join(told) or None


def _ranks(found: Found) -> str | None:
    told = [
        f"{line['dtype']}, {line['ranks']} against {line['against']}: argmax {line['argmax_equal']:.3%} equal, "
        f"mass {line['mass_apart']:.1e} apart"
        for line in found.of("ranks")
    ]
    return "; ".join(told) or None


def _both(found: Found) -> str | None:
    return _beside(found, "both")


def _big(found: Found) -> str | None:
    return _beside(found, "big")


def _beside(found: Found, what: str) -> str | None:
    """Detection to the sweep on one engine, the warm-up left out."""
    rounds: dict[int, dict[str, float]] = {}
    for line in found.of(what):
        rounds.setdefault(line["round"], {})[line["kind"]] = line["seconds"]
    ratios = [both["detect"] / both["niah"] for number, both in rounds.items() if number >= 0 and len(both) == 2]
    return _ratio(statistics.median(ratios), found.median(what, kind="detect")) if ratios else None


def _ratio(ratio: float | None, seconds: float | None) -> str | None:
    return None if ratio is None or seconds is None else f"{ratio:.3f} ({seconds:.2f} s)"


ROWS: list[tuple[str, str, str, Callable[[Found], str | None]]] = [
    ("sweep", "sweep to bare vLLM", "≤ 1.03", _sweep),
    ("sweep detect", "prefix reuse reached, of the best possible", "reported", _reuse),
    ("sweep detect", "time between steps, to the steps'", "reported", _gap),
    ("sweep single", "one cell at a time to the sweep", "≥ 2", _single),
    (
        "sweep detect",
        "detection to the sweep, each by its bare run",
        "≤ 1.02",
        lambda found: _detection(found, "detect", "sweep"),
    ),
    (
        "short_sweep short_detect",
        "the same of 102 short samples",
        "≤ 1.15",
        lambda found: _detection(found, "short_detect", "short_sweep"),
    ),
    (
        "windows",
        "the same where layers have windows",
        "≤ 1.05",
        lambda found: _detection(found, "windows_detect", "windows_sweep"),
    ),
    ("samples", "600 samples, detection to generation", "reported", _samples),
    ("detect", "recomputed by a replay at most", "block + answer", _recomputed),
    ("detect paper", "the paper's algorithm on transformers to detection", "≥ 12", lambda found: found.ratio("paper")),
    (
        "detect predecessor",
        "PyPI's retrieval-heads 0.1.2 to detection",
        "reported",
        lambda found: found.ratio("predecessor"),
    ),
    ("stream", "longest prompts, half of the heads streaming to none", "≤ 1.15", _stream),
    ("memory", "extra memory of detection", "≤ 256 MB", _memory),
    ("long", "longest sample, detection to generation", "≤ 1.05", _long),
    ("kernel", "scoring kernel, share of the roof that binds", "≥ 60 %, 50 %", _kernel),
    ("start", "engine start to first result", "reported", _start),
    ("long growth", "exponents of time", "reported", _growth),
    ("replicas", "throughput of 2, 4 and 8 replicas to one", "≥ 1.95, 3.8, 7.4", _replicas),
    ("ray", "Ray's replicas to as many processes", "reported", _ray),
    ("ranks ranks_bfloat16", "head scores of several ranks to one", "the same", _ranks),
    ("both", "two replicas of several ranks, detection to the sweep", "reported", _both),
    ("big", "70 billion parameters, detection to the sweep", "≤ 1.03", _big),
]
