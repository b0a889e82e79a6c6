"""What a replay needs of vLLM's scheduling: its last tokens out of the prefix cache's reach, its prompt's hashes, and
company.

A replay's prompt is a prompt and its answer, all of which the generation may have left in the cache; the rows that
are to be scored have to be computed. A request says in its `extra_args` how many tokens may be read from the cache.
Checked on vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

MAX_CACHED = "rh_max_cached_tokens"
"""How many of its tokens may be read from the cache."""

HASHED = "rh_hashed"
"""Of a request that will be replayed: a name for its prompt."""

HASHED_AS = "rh_hashed_as"
"""Of its replay: that name."""

SALTED = "rh_salted"
"""A salt, and the token from which on it tells a request's blocks from those of others."""

TOGETHER = 64
"""Replays that need not wait for more."""

PATIENCE = 32
"""Steps that a replay waits for others at most."""


class BlockHashes:
    """Hands the hashes of a prompt's blocks to its replay: 32,768 tokens have 2,048, some 5 ms to make again.

    A request whose keys are those of others up to some token has hashes of its own from there on: with vLLM's own
    `cache_salt` it would share nothing.

    Args:
        hasher: vLLM's, which gives the hashes that a request lacks of its full blocks.
    """

    def __init__(self, hasher: Callable[[Any], list[Any]]) -> None:
        self._hasher = hasher
        inside = inspect.getclosurevars(hasher).nonlocals if inspect.isfunction(hasher) else {}
        self.block_size: int | None = inside.get("hash_block_size", inside.get("block_size"))
        """Tokens that a hash is of; `None` where vLLM does not tell, and no salt can be of some blocks alone."""
        self._known: dict[str, list[Any]] = {}

    def __call__(self, request: Any) -> list[Any]:
        """vLLM's contract: the hashes that `request.block_hashes` is to be extended with."""
        asked = (request.sampling_params and request.sampling_params.extra_args) or {}
        if not request.block_hashes:
            request.block_hashes.extend(self._known.pop(asked.get(HASHED_AS, ""), ()))
        before, found = len(request.block_hashes), self._hasher(request)
        if SALTED in asked:
            salt, first = asked[SALTED]
            assert self.block_size is not None, "no request is salted so"
            shared = max(0, first // self.block_size - before)
            found = [*found[:shared], *(_salted(each, salt) for each in found[shared:])]
        if HASHED in asked and not request.num_output_tokens:
            self._known[asked[HASHED]] = found
        return found

    def forget(self, name: str) -> None:
        """Of a prompt whose replay will not come."""
        self._known.pop(name, None)


def _salted(block_hash: bytes, salt: str) -> bytes:
    return hashlib.sha256(block_hash + salt.encode()).digest()


class _Capped:
    """Limits what the KV cache manager finds for a request that asks for it, and has replays go together.

    While prompts wait, replays go at once: what they need is still in the cache, and on a GPU the step is long enough
    to hide the host's work for them. Once all prompts are in, steps decode and nothing else, a CUDA graph each, and one
    with a replay in it is launched kernel by kernel; nothing evicts what replays need. So they wait for each other.
    """

    kv_cache_manager: Any
    running: Any
    waiting: Any
    _pause_state: Any
    _held = 0
    """Steps that replays have been waiting for others."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        manager = self.kv_cache_manager
        find, get = manager.coordinator.find_longest_cache_hit, manager.get_computed_blocks
        unit = _copied_block(manager.coordinator)
        limit: int | None = None

        def find_capped(block_hashes: Any, max_cache_hit_length: int, *more: Any) -> Any:
            length = max_cache_hit_length if limit is None else min(max_cache_hit_length, -(-limit // unit) * unit)
            return find(block_hashes, length, *more)

        def get_capped(request: Any) -> Any:
            nonlocal limit
            parameters = request.sampling_params
            limit = ((parameters and parameters.extra_args) or {}).get(MAX_CACHED)
            try:
                blocks, tokens, *more = get(request)
                return blocks, tokens if limit is None else min(tokens, limit), *more
            finally:
                limit = None

        manager.coordinator.find_longest_cache_hit = find_capped
        manager.get_computed_blocks = get_capped
        # A metric that nobody reads here. vLLM counts it block by block in each group of layers, milliseconds of a long
        # request of a model with windows, while a GPU waits.
        manager.estimate_cached_tokens = lambda request: 0

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        """vLLM's step, without the replays that wait for others."""
        scheduler: Any = super()
        if not self._replays_can_wait():
            self._held = 0
            return scheduler.schedule(*arguments, **options)
        self._held += 1
        # Its setter writes to the log.
        before, self._pause_state = self._pause_state, max(self._pause_state, PauseState.PAUSED_NEW)
        try:
            return scheduler.schedule(*arguments, **options)
        finally:
            self._pause_state = before

    def _replays_can_wait(self) -> bool:
        """Whether nothing waits but replays, too few to go, and there is something else to do."""
        return (
            0 < len(self.waiting) < TOGETHER
            and self._held < PATIENCE
            and all(map(_is_replay, self.waiting))
            and not all(map(_is_replay, self.running))
        )


def _copied_block(coordinator: Any) -> int:
    """Tokens of a block of which a request may read the first tokens and compute the others, in a copy of its own: vLLM
    0.32 does so of a model whose layers all see everything. 1 where only whole blocks are read.
    """
    managers: Any = getattr(coordinator, "single_type_managers", ())
    if len(managers) == 1 and isinstance(managers[0], FullAttentionManager) and hasattr(managers[0], "_apply_cow"):
        return int(managers[0].block_size)
    return 1


def _is_replay(request: Any) -> bool:
    parameters = request.sampling_params
    return MAX_CACHED in ((parameters and parameters.extra_args) or {})


class CappedScheduler(_Capped, Scheduler):
    """vLLM's scheduler with the cap."""


class CappedAsyncScheduler(_Capped, AsyncScheduler):
    """vLLM's asynchronous scheduler with the cap: keeps the GPU fed while the host prepares the next step."""
