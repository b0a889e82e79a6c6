"""Which heads had no say in an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_heads.plain import Json, JsonObject, Plain


@dataclass(frozen=True, slots=True)
class Mask(Plain):
    """Heads that are masked while a prompt is answered (ablation).

    Args:
        mode: How; see `retrieval_heads.ablation.arms.MODES`.
        heads: Each (layer, head).
        reference: Of the mode `mean`, the SHA-256 of the haystack whose mean stands in for a head's output. Records do
            not hold it: it is that of their recipe.
    """

    mode: str
    heads: tuple[tuple[int, int], ...]
    reference: str = ""

    def to_json(self) -> JsonObject:
        """Plain builtins that mean the same; without a reference where there is none."""
        heads: list[Json] = [[layer, head] for layer, head in self.heads]
        data: JsonObject = {"mode": self.mode, "heads": heads}
        if self.reference:
            data["reference"] = self.reference
        return data

    @property
    def as_stored(self) -> Mask:
        """As a record holds it."""
        return replace(self, reference="")
