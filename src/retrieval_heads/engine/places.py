"""Where the replicas of one host compute: GPUs or processor cores of its own for each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from retrieval_heads.engine.messages import Devices
from retrieval_heads.errors import ConfigError
from retrieval_heads.plain import Fields


def gpus_each(model: Fields) -> int:
    """How many GPUs one engine takes."""
    return int(model.get("tensor_parallel_size") or 1) * int(model.get("pipeline_parallel_size") or 1)


def places(replicas: int | str, model: Fields, gpus: Sequence[str] | None) -> list[Devices]:
    """Where the replicas of a model compute.

    Args:
        replicas: How many, or `auto`: as many as the visible GPUs hold, and one on a CPU.
        model: The `model` section of the settings; an engine takes `tensor_parallel_size` GPUs for each of its
            pipeline's stages.
        gpus: Those that can be seen; `None` where replicas share out processor cores.

    Raises:
        ConfigError: There are too few GPUs or cores.
    """
    if gpus is None:
        return _cpu_places(1 if replicas == "auto" else int(replicas))
    each = gpus_each(model)
    count = max(1, len(gpus) // each) if replicas == "auto" else int(replicas)
    if count > 1 and count * each > len(gpus):
        raise ConfigError(
            f"engine.replicas: {count} replicas of {_counted(each, 'GPU')} need {count * each}, "
            f"and {_counted(len(gpus), 'GPU')} can be seen"
        )
    taken = [",".join(gpus[number * each : (number + 1) * each]) for number in range(count)]
    return [Devices(f"GPU {ids}", {"CUDA_VISIBLE_DEVICES": ids}) for ids in taken]


def _cpu_places(count: int) -> list[Devices]:
    # Threads of one core, and cores of one socket, stay together: replicas would slow each other down.
    cores = sorted(os.sched_getaffinity(0), key=_where)
    if count > len(cores):
        raise ConfigError(
            f"engine.replicas: {count} replicas need a core each, and {_counted(len(cores), 'core')} can be used"
        )
    bounds = [number * len(cores) // count for number in range(count + 1)]
    shares = [sorted(cores[start:end]) for start, end in pairwise(bounds)]
    return [Devices(f"core {','.join(map(str, share))}", cores=tuple(share)) for share in shares]


def _where(core: int) -> tuple[int, ...]:
    folder = Path(f"/sys/devices/system/cpu/cpu{core}/topology")
    files = [folder / name for name in ("physical_package_id", "core_id")]
    return (*(int(file.read_text()) for file in files if file.exists()), core)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
