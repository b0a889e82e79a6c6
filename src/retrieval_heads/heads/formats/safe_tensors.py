"""A safetensors file: for each score the tensors `NAME.mean`, `.low` and `.high` `[layers, heads]`, and `.samples`.

float64, NaN where there is no figure; `layers` holds the numbers of the rows. The rest stands in the file's metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrieval_heads.errors import ConfigError
from retrieval_heads.heads.formats.figures import Nonsense
from retrieval_heads.heads.formats.format import HeadFile, HeadFormat, Output, Samples, Source, Wanted
from retrieval_heads.heads.formats.whole import (
    KEY,
    PARTS,
    described,
    description,
    samples_of_description,
    table_of_description,
)
from retrieval_heads.heads.table import Estimate, HeadTable

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SafeTensors(HeadFormat):
    """Every score as tensors."""

    name = "safetensors"
    file = "heads.safetensors"
    score = None
    binary = True

    def table(self, source: Source) -> HeadTable:
        """All but the samples."""
        content, tensors = _read(source)
        numbers = [layer["number"] for layer in content["layers"]]
        if tensors["layers"].tolist() != numbers:
            raise Nonsense(f"the tensor layers holds {tensors['layers'].tolist()}, and its metadata {numbers}")
        return table_of_description(
            content, {name: Estimate(*(tensors[f"{name}.{part}"] for part in PARTS)) for name in content["scores"]}
        )

    def samples(self, source: Source, table: HeadTable) -> Samples:
        """Where the file has them."""
        content, tensors = _read(source)
        named = {name: f"{name}.samples" for name in content["scores"]}
        figures = {name: tensors[key] for name, key in named.items() if key in tensors}
        return samples_of_description(content, figures, table)

    def output(self, heads: HeadFile, wanted: Wanted) -> Output:
        """The scores that are named."""
        import numpy as np

        numpy = _library()[0]
        tensors = {"layers": np.array([layer.number for layer in heads.table.layers], dtype=np.int64)}
        for name in wanted.scores:
            tensors |= {f"{name}.{part}": _dense(getattr(heads.table.estimates[name], part)) for part in PARTS}
            if name in heads.samples.figures:
                tensors[f"{name}.samples"] = _dense(heads.samples.figures[name])
        return Output({self.file: numpy.save(tensors, metadata={KEY: described(heads, wanted)})})


FORMAT = SafeTensors()


def _dense(values: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    dense: NDArray[Any] = np.ascontiguousarray(values, dtype=np.float64)
    return dense


def _read(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    numpy, safe_open, broken = _library()
    try:
        tensors = numpy.load(source.content)
        with safe_open(source.path, framework="np") as file:
            metadata = file.metadata() or {}
    except broken as error:
        raise Nonsense(f"is no safetensors file ({error})") from None
    return description(metadata.get(KEY)), tensors


def _library() -> tuple[Any, Any, type[Exception]]:
    try:
        from safetensors import SafetensorError, numpy, safe_open
    except ImportError:
        raise ConfigError("safetensors is not installed; pip install 'pytest-retrieval-heads[files]'") from None
    return numpy, safe_open, SafetensorError
