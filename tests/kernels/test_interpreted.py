"""The tests of the Triton kernels in Triton's interpreter, where no GPU runs them.

In processes of their own, side by side: Triton reads the variable once, for every kernel of a process.
`quick_interpreter.py` has a launch cost half of what it would.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("files", "tests"),
    [(["test_attention_rows.py"], "triton or cut"), (["test_written.py", "test_streamed.py"], "kernel")],
)
@pytest.mark.parametrize("marked", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_kernels_pass_in_the_interpreter(files: list[str], tests: str, marked: str) -> None:
    pytest.importorskip("triton")
    child = interpreted(files, tests, marked)
    if child.returncode < 0:
        # Seen once, SIGSEGV, and in none of nine runs after it. Every address that the kernels of these tests read or
        # wrote lay in a tensor that was there, when each was checked; so it is the interpreter's or numpy's. The
        # warning says where, and a second death fails.
        warnings.warn(f"the interpreter died by signal {-child.returncode}: {child.stderr[:3000]}", stacklevel=1)
        child = interpreted(files, tests, marked)
    assert child.returncode == 0, child.stdout[-6000:] + child.stderr[:3000]
    assert "passed" in child.stdout


def interpreted(files: list[str], tests: str, marked: str) -> subprocess.CompletedProcess[str]:
    """A process of pytest's that has ended, with the interpreter in place of a GPU."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    named = [str(UNIT / file) for file in files]
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *named,
            "-q",
            "-k",
            tests,
            "-m",
            marked,
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
        ],
        env={**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
