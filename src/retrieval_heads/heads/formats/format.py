"""The formats of files that hold heads: the contract of one, and all that there are.

A format is one object in a file of its own. To add one, write the file and name it below, or name it in another
distribution's entry points: `[project.entry-points."retrieval_heads.head_formats"]`, `NAME = "module:OBJECT"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.clusters import Cluster
from retrieval_heads.heads.table import HeadTable
from retrieval_heads.reading import parse_json, read_bytes, read_text
from retrieval_heads.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Source:
    """A file that may hold heads."""

    path: Path

    @cached_property
    def content(self) -> bytes:
        """All of it."""
        return read_bytes(self.path)

    @cached_property
    def text(self) -> str:
        """All of it, which is UTF-8."""
        return read_text(self.path)

    @cached_property
    def json(self) -> Any:
        """The document of JSON that it is."""
        return parse_json(self.text, str(self.path), "JSON")

    @property
    def is_object(self) -> bool:
        """Whether it is an object of JSON that holds something."""
        return isinstance(self.json, dict) and bool(self.json)


@dataclass(frozen=True)
class Samples:
    """The figures of each counted sample.

    Args:
        figures: By score, each `[samples, layers, heads]`, in the order of a table's layers.
        cells: The cell of each sample; empty where the file does not say.
        clusters: The needle and the text of each sample; empty where the file does not say.
    """

    figures: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    clusters: tuple[Cluster, ...] = ()


@dataclass(frozen=True)
class HeadFile:
    """All that a file says of heads.

    Args:
        table: Means, intervals and layers.
        samples: Each sample's figures, where the file has them.
        kv_heads: Whether its heads are KV heads.
    """

    table: HeadTable
    samples: Samples = field(default_factory=Samples)
    kv_heads: bool = False


@dataclass(frozen=True)
class Wanted:
    """What an export is to hold.

    Args:
        scores: The scores; where a format holds one, the first.
        kv_heads: KV heads of a layer; `None` where it is not known.
        top: How many best heads, where a format lists some.
        name: What the first file will be called.
        sink: First tokens that a streaming head keeps, where a format says so; as the published patterns have them.
        recent: Last tokens, likewise.
    """

    scores: Sequence[str]
    kv_heads: int | None = None
    top: int = 16
    name: str = ""
    sink: int = 128
    recent: int = 256

    @property
    def score(self) -> str:
        """The one score."""
        return self.scores[0]

    @property
    def known_kv_heads(self) -> int:
        """KV heads of a layer.

        Raises:
            ConfigError: Their number is not known.
        """
        if self.kv_heads is None:
            raise ConfigError(
                "--kv-heads: how many KV heads a layer has is not known; give num_key_value_heads of the model"
            )
        return self.kv_heads


@dataclass(frozen=True)
class Output:
    """What an export comes to.

    Args:
        files: Contents by file name, the format's own first.
        notes: What was lost or changed, a sentence each.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()


class HeadFormat(Protocol):
    """One format."""

    name: str
    """As `--to` and `--from` call it; the name that it is registered by."""
    file: str
    """What its file is called where nothing else is said; of several, the one that holds the scores."""
    score: str | None
    """The score that is written where none is named, if it was measured, and that a file without a name is read as;
    `None` for a format that holds all scores by name."""
    is_folder: bool = False
    """Whether it is a folder of files with fixed names."""
    kv_heads: bool = False
    """Whether its heads are KV heads."""
    binary: bool = False
    """Whether a file of it is no text: it is recognised before anything is read as text."""

    def recognises(self, source: Source) -> bool:
        """Whether a file is of this format: by its ending, where a format says no more.

        Not asked of files that are no JSON, unless `binary`.
        """
        return source.path.suffix == Path(self.file).suffix

    def table(self, source: Source) -> HeadTable:
        """Means and layers.

        Raises:
            ValueError: It is of another form, or a figure cannot be a head's.
        """

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Each sample's figures; none where the file has none.

        Raises:
            ValueError: A figure cannot be a head's.
        """
        return Samples()

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The files that hold these heads.

        Raises:
            ConfigError: The format cannot hold them.
        """
        raise ConfigError(f"--to {self.name}: the format is read only")


GROUP: Final = "retrieval_heads.head_formats"
"""Of entry points."""

BUILT_IN: Final = {
    name: f"retrieval_heads.heads.formats.{module}:FORMAT"
    for name, module in {
        "parquet": "parquet",
        "safetensors": "safe_tensors",
        "duo": "duo",
        "kvpress": "kvpress",
        "heads": "heads",
        "locos": "locos",
        "qrhead": "qrhead",
        "detected": "detected",
        "retrieval-head": "head_score",
        "headkv": "headkv",
    }.items()
}
"""Our own, in the order in which a file is tried; the last two look alike, and the first of them is taken."""

FORMATS: Final = Registry[HeadFormat](GROUP, "head format", BUILT_IN)
