"""The table of models that the tests cover; run as a script, it is written into docs/models.md."""

from __future__ import annotations

import re
from pathlib import Path

from models_run import MODELS, MODELS_IN_BFLOAT16, UNSCORED

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
EXACT = "equal: every clear argmax, `copy`, and weights within 1e-4"


def table() -> str:
    """The table's lines, in Markdown."""
    rows = ["| model | vLLM's class | layers | against transformers in float32, eager |", "|---|---|---|---|"]
    for name, model in MODELS.items():
        kind = "latent attention" if "latent" in name else "attention"
        masked = "" if model.is_maskable else "; not masked"
        rows.append(f"| {name} | `{model.architecture}` | {kind} | {EXACT}{masked} |")
    for name, model in MODELS_IN_BFLOAT16.items():
        kinds = "gated delta, attention"
        rows.append(f"| {name} | `{model.architecture}` | {kinds} | in bfloat16: shares within 5 %, see below |")
    for name, (model, kinds) in UNSCORED.items():
        others = ", ".join(f"`{kind}`" for kind in dict.fromkeys(kinds) if kind != "attention")
        scored = "attention scored, " if "attention" in kinds else ""
        rows.append(f"| {name} | `{model.architecture}` | {scored}{others} named as not scored | config alone |")
    return "\n".join(rows)


def main() -> None:
    """Replace the document's table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = re.split(r"^\| model \|.*?(?=\n\n)", text, maxsplit=1, flags=re.DOTALL | re.MULTILINE)
    DOCUMENT.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
