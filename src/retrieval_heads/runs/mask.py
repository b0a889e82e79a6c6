"""Which heads had no say in an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_heads.plain import Json, JsonObject, Plain

STREAM = "stream"
"""The mode in which heads see sinks and a recent window alone."""


@dataclass(frozen=True, slots=True)
class Stream(Plain):
    """What heads that stream see: the first tokens and the last ones.

    Args:
        sink: How many of the first.
        recent: How many of the last, the row's own among them.
        anchor: Which last ones: those before each `row`, or those at the end of the `context` with all that follows.
        prefill: Whether rows of the context stream as well; else those behind it alone.
        context: Of a request, where its context ends. Records do not hold it.
    """

    sink: int
    recent: int
    anchor: str = "row"
    prefill: bool = False
    context: int = 0

    @property
    def first_row(self) -> int:
        """Position of the first row that streams."""
        return 0 if self.prefill else self.context

    @property
    def oldest(self) -> int | None:
        """Position of the oldest key beside the sinks; `None` where it moves with the row."""
        return max(0, self.context - self.recent) if self.anchor == "context" else None


@dataclass(frozen=True, slots=True)
class Mask(Plain):
    """Heads that are masked while a prompt is answered (ablation).

    Args:
        mode: How; see `retrieval_heads.ablation.arms.MODES`.
        heads: Each (layer, head).
        reference: Of the mode `mean`, the SHA-256 of the haystack whose mean stands in for a head's output. Records do
            not hold it: it is that of their recipe.
        stream: Of the mode `stream`, what the heads see.
    """

    mode: str
    heads: tuple[tuple[int, int], ...]
    reference: str = ""
    stream: Stream | None = None

    def to_json(self) -> JsonObject:
        """Plain builtins that mean the same; without what the mode has none of."""
        heads: list[Json] = [[layer, head] for layer, head in self.heads]
        data: JsonObject = {"mode": self.mode, "heads": heads}
        if self.reference:
            data["reference"] = self.reference
        if self.stream is not None:
            data["stream"] = self.stream.to_json()
        return data

    @property
    def as_stored(self) -> Mask:
        """As a record holds it."""
        return replace(self, reference="", stream=self.stream and replace(self.stream, context=0))
