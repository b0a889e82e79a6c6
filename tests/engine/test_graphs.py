"""A traced engine whose decode steps are CUDA graphs says and scores what an eager one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no CUDA graphs without a CUDA device"),
]


def found(folder: Path, dtype: str, how: str) -> dict[str, Any]:
    out = folder / f"{how}.json"
    script = Path(__file__).with_name("graphs_run.py")
    done = subprocess.run([sys.executable, script, out, dtype, how], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told: dict[str, Any] = json.loads(out.read_text())
    return told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_change_nothing_and_masks_hold_in_every_decode_step(dtype: str, tmp_path: Path) -> None:
    eager, graphs = (found(tmp_path, dtype, how) for how in ("eager", "graphs"))
    assert (eager["is_eager"], graphs["is_eager"]) == (True, False)
    assert graphs["answers"] == eager["answers"]
    for name in ("1", "4"):
        length = len(graphs["answers"][name])
        assert graphs["answers"][f"masked {name}"][:length] != graphs["answers"][name]
    assert graphs["scores"].keys() == eager["scores"].keys() == {f"replay {number}" for number in range(12)}
    for name, scores in eager["scores"].items():
        numpy.testing.assert_allclose(graphs["scores"][name], scores, rtol=0, atol=1e-4)
