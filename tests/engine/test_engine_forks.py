"""A copy of the process that has imported vLLM is set up as a new process; what it computes: `test_foreign_run.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENVIRONMENT, engine_forks
from forks import ADDRESS, Forked, Popen

pytestmark = pytest.mark.engine

TELL = """
import json, os, sys
import numpy, torch, torch._dynamo.config
from torch import nn
torch.manual_seed(3)
layer = nn.Linear(64, 64)
print(json.dumps({
    "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
    "openmp": torch.__config__.parallel_info(),
    "cores": sorted(os.sched_getaffinity(0)),
    "seed": torch.initial_seed(),
    "computed": layer(torch.randn(128, 64)).sum().item(),
    "dtype": str(torch.get_default_dtype()),
    "gradients": torch.is_grad_enabled(),
    "compiles": not torch._dynamo.config.disable,
    "environment": {key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR_")},
}))
"""


@pytest.mark.parametrize("settings", [{}, {"TORCH_COMPILE_DISABLE": "1"}], ids=["as it is", "nothing compiled"])
def test_libraries_are_set_up_as_in_a_new_process(settings: dict[str, str], tmp_path: Path) -> None:
    environment, told = {**ENVIRONMENT, **settings, ADDRESS: engine_forks().address}, []
    for popen in (Popen, subprocess.Popen):
        process = popen([sys.executable, "-c", TELL], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
        assert isinstance(process, Forked) == (popen is Popen)
        assert process.stdout is not None
        with process.stdout as printed:
            told.append(json.loads(printed.read()))
        assert process.wait() == 0
    assert told[0] == told[1]
    assert told[0]["compiles"] is not bool(settings)


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "HF_HUB_OFFLINE"])
def test_what_libraries_would_read_otherwise_is_a_new_process(name: str) -> None:
    environment = {**ENVIRONMENT, name: "7", ADDRESS: engine_forks().address}
    process = Popen([sys.executable, "-c", "pass"], env=environment)
    assert isinstance(process, subprocess.Popen)
    assert process.wait() == 0
