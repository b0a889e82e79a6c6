"""Heads step by step: one compressed file beside a run, and how far the heads of two steps of an answer agree."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from retrieval_heads.errors import ResultsError
from retrieval_heads.files import write_whole
from retrieval_heads.heads.copy_reference import needle_tokens
from retrieval_heads.heads.detection import Detection
from retrieval_heads.heads.top_heads import top_heads
from retrieval_heads.runs.folder import Facts
from retrieval_heads.runs.record import Record

if TYPE_CHECKING:
    from numpy import bool_, float32, float64, int16
    from numpy.typing import NDArray

TOP: Final = 10
"""Heads of a step that are compared by `mass`."""


@dataclass(frozen=True)
class StepAgreement:
    """How far the heads of two steps of an answer agree, mean over the pairs of an answer's steps, then over samples.

    Two steps agree by the share of the larger set of heads that both have; steps of which neither has any are no pair.

    Args:
        copy: Of the heads that copied at a step; `None` where no two steps had any.
        mass: Of the `TOP` heads by the weight on the needle; `None` where there are no two steps.
        samples: Samples that were counted and have their steps.
        lacking: Those that were counted and have not.
    """

    copy: float | None
    mass: float | None
    samples: int
    lacking: int

    @property
    def note(self) -> str:
        """In a sentence."""
        shares = [
            f"{100 * share:.0f} % of {heads}"
            for share, heads in ((self.copy, "the heads that copy"), (self.mass, f"the top {TOP} by mass"))
            if share is not None
        ]
        told = f"two steps of an answer share {' and '.join(shares)}" if shares else "no two steps can be compared"
        return told + (f"; {self.lacking} counted samples have no steps" if self.lacking else "")


def write_steps(detection: Detection, file: Path, facts: Facts) -> StepAgreement:
    """Write the steps of every sample that counts; nothing where none has them.

    Args:
        detection: What was measured.
        file: An npz file; see docs/heads.md for the arrays in it.
        facts: What it says of the run.

    Raises:
        FileError: It cannot be written.
    """
    import numpy as np

    having = [(record, own) for record in detection.counted if (own := _arrays(record)) is not None]
    layers = [layer for layer in detection.layers if layer.heads]
    arrays: dict[str, NDArray[Any]] = {
        "facts": np.array(json.dumps(dict(facts), ensure_ascii=False)),
        "cells": np.array([record.cell for record, _ in having], dtype=np.str_),
        "needle_tokens": np.array([needle_tokens(record) for record, _ in having], dtype=np.int64),
        "layers": np.array([layer.number for layer in layers], dtype=np.int64),
        "heads": np.array([layer.heads for layer in layers], dtype=np.int64),
    }
    agreements: dict[str, list[float]] = {"copy": [], "mass": []}
    for number, (record, (copied, mass)) in enumerate(having):
        by_mass = overlaps(_top(mass))
        arrays |= {
            f"copied.{number}": copied,
            f"mass.{number}": mass,
            f"tokens.{number}": np.array(record.token_ids[-len(copied) :], dtype=np.int64),
            f"overlap.{number}": by_mass,
        }
        for name, matrix in (("copy", overlaps(copied.reshape(len(copied), -1) > 0)), ("mass", by_mass)):
            pairs = matrix[np.triu_indices(len(matrix), 1)]
            if not np.isnan(pairs).all():
                agreements[name].append(float(np.nanmean(pairs)))
    if having:
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **arrays)
        write_whole(file, content.getvalue())
    means = {name: float(np.mean(values)) if values else None for name, values in agreements.items()}
    return StepAgreement(means["copy"], means["mass"], len(having), len(detection.counted) - len(having))


def _arrays(record: Record) -> tuple[NDArray[int16], NDArray[float32]] | None:
    """A sample's steps; `None` where its record has none, or something else in their place."""
    try:
        return None if record.steps is None else record.steps.arrays()
    except ResultsError:
        return None


def figures_of(copied: NDArray[int16], mass: NDArray[float32], needle: int) -> dict[str, NDArray[float64]]:
    """The head scores that a sample's steps come to, `[layers, heads]` each, as its record has them.

    Args:
        copied: `[steps, layers, heads]`, see `Steps`.
        mass: Of the same shape.
        needle: Tokens of the needles that are asked for.
    """
    import numpy as np

    tokens = np.arange(1, needle + 1)[:, None, None]
    distinct = sum((copied == token).any(0).astype(np.float32) for token in tokens)
    counted = (copied > 0).sum(0).astype(np.float32)
    found = {"copy": distinct, "copy_reference": counted}
    # As they were measured: in float32, and stored to eight digits.
    shares = {name: (values / np.float32(needle)).astype(np.float64).round(8) for name, values in found.items()}
    return {**shares, "mass": mass.mean(0, dtype=np.float64).round(8)}


def overlaps(members: NDArray[bool_]) -> NDArray[float32]:
    """How far sets agree, `[sets, sets]` of `[sets, heads]`: what both have over the larger; NaN where none has any."""
    import numpy as np

    shared = members.astype(np.float32) @ members.astype(np.float32).T
    larger = np.maximum.outer(shared.diagonal(), shared.diagonal())
    found: NDArray[float32] = np.divide(shared, larger, out=np.full_like(shared, np.nan), where=larger > 0)
    return found


def _top(mass: NDArray[float32]) -> NDArray[bool_]:
    """The best heads of each step, as far as they stand out, `[steps, heads]`."""
    import numpy as np

    flat = np.nan_to_num(mass.reshape(len(mass), -1), nan=0.0)
    members = np.zeros(flat.shape, dtype=bool)
    count = min(TOP + 1, flat.shape[1])
    for step, values in enumerate(flat):
        best: Sequence[int] = np.argpartition(values, -count)[-count:].tolist()
        members[step, list(top_heads(((head, float(values[head])) for head in best), TOP).heads)] = True
    return members
