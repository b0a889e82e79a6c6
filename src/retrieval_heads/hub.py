"""Whether there is a model of a name, told before anything is loaded: a folder, a packaged one, or one of the hub's.

Imports neither torch nor transformers. The hub is asked once for a name and not waited for long; libraries that load
a model ask it for every file, again and again where it cannot be reached.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from retrieval_heads.errors import EngineError
from retrieval_heads.models import PACKAGED, check_folder, packaged_folder
from retrieval_heads.plain import Fields

_PATIENCE = 8.0
"""Seconds that the hub has for its answer, name resolution and connection included."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")


@dataclass(frozen=True)
class _Answer:
    """What the hub said of a name; `has` is `None` where it could not be asked."""

    has: bool | None
    why: str = ""


def check_model(model: Fields) -> bool:
    """See that there is a model of the name that the settings say, and a chat template where they name its file.

    Args:
        model: The `model` section of the settings.

    Returns:
        Whether the hub's cache is all there is: the hub cannot be reached, or must not be asked.

    Raises:
        EngineError: There is not; one sentence with the name.
    """
    template = model.get("chat_template")
    if template and "{" not in template and not os.path.isfile(template):  # noqa: PTH113 - False for any text
        raise EngineError(f"model.chat_template: {template[:80]!r} cannot be read (no such file)")
    name = str(model["model"])
    if name in PACKAGED:
        packaged_folder(name)
        return False
    if check_folder(name) or "://" in name or ":" in name or os.environ.get("VLLM_USE_MODELSCOPE"):
        return False  # or a way of naming models that vLLM knows itself
    if not _HUB_NAME.fullmatch(name):
        raise EngineError(f"model.model: {name!r} is neither a folder nor a hub's name{_nearest(name)}")
    revision, token = model.get("revision"), model.get("hf_token")
    answer = _ask(name, revision, token if isinstance(token, str) else None)
    if answer.has:
        return False
    if answer.has is None:
        if _cached(name, revision) is not None:
            return True
        raise EngineError(
            f"model.model: {name!r} is no folder here and not in the hub's cache, and {answer.why}{_nearest(name)}"
        )
    raise EngineError(f"model.model: {answer.why}{_nearest(name)}")


def length_limit(model: Fields) -> int | None:
    """How many tokens of prompt and answer the model takes, as far as settings or a config.json on disk tell.

    Args:
        model: The `model` section of the settings.

    Returns:
        No less than the engine's own limit; `None` where only the engine can tell.
    """
    said = model.get("max_model_len")
    if said is not None:
        return said if isinstance(said, int) and said > 0 else None
    if model.get("hf_overrides") or model.get("rope_scaling"):
        return None
    file = _config_file(str(model["model"]), model.get("revision"))
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError):
        return None  # the engine will say what is wrong with it
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("factor") or rope.get("rope_type", "default") != "default":
        return None
    lengths = [text[key] for key in _LENGTHS if isinstance(text.get(key), int)]
    return max(lengths, default=None)


@functools.cache
def _ask(name: str, revision: str | None, token: str | None) -> _Answer:
    """Ask the hub for a model, in a thread: resolving a host's name knows no time-out."""
    try:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError:
        return _Answer(True)  # it comes with vLLM, which will be missed
    if constants.is_offline_mode():
        return _Answer(None, "HF_HUB_OFFLINE is set")
    found: list[_Answer] = []

    def ask() -> None:
        try:
            HfApi(token=token).model_info(name, revision=revision, timeout=_PATIENCE)
        except RevisionNotFoundError:
            found.append(_Answer(False, f"{name!r} has no revision {revision!r}"))
        except RepositoryNotFoundError:
            found.append(_Answer(False, f"{name!r} is no folder here, and the hub has no such model, or a private one"))
        except HfHubHTTPError:
            found.append(_Answer(True))  # it answers; what is the matter the engine will hear in full
        except Exception as error:  # of whichever HTTP client the hub's library uses
            found.append(_Answer(None, f"the hub cannot be reached ({_first_line(error)})"))
        else:
            found.append(_Answer(True))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found[0] if found else _Answer(None, f"the hub cannot be reached (no answer in {_PATIENCE:g} s)")


def _cached(name: str, revision: str | None) -> Path | None:
    """A model's config.json in the hub's cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _config_file(name: str, revision: str | None) -> Path | None:
    if name in PACKAGED:
        file = packaged_folder(name) / "config.json"
    elif check_folder(name):
        file = Path(name).expanduser() / "config.json"
    else:
        return _cached(name, revision) if _HUB_NAME.fullmatch(name) else None
    return file if file.is_file() else None


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name.rpartition("/")[2], PACKAGED, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected a folder, a hub's name or {', '.join(PACKAGED)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
