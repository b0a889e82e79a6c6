"""`retrieval-heads reconstruct`: the exact prompt of a record, rebuilt with the model's tokenizer alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_heads.errors import ResultsError, printable
from retrieval_heads.plain import Fields
from retrieval_heads.report import pick_records
from retrieval_heads.runs.folder import read_facts
from retrieval_heads.runs.record import Record, read_records
from retrieval_heads.suites.reading import read_settings

_LISTED = 10


@dataclass(frozen=True)
class Reconstruct:
    """Print the exact prompt of a record, special tokens and all.

    Example: retrieval-heads reconstruct reports/latest --cell len_4096/depth_50
    """

    results: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or its results.jsonl."""
    cell: str = ""
    """The cell's name or a part of it that no other has; may be left out where there is one record."""
    config: Path | None = None
    """A config that names the model, where the run's own run.json does not."""
    ids: bool = False
    """Print the token ids as JSON in place of the text."""

    def run(self) -> None:
        """Rebuild, check against the record's hash, and print."""
        file = self.results / "results.jsonl" if self.results.is_dir() else self.results
        record = find_record(pick_records(read_records(file, torn_last_line=True)), self.cell)
        model = self._model(file.parent, record)
        from retrieval_heads.prompts.tokenizer import load_tokenizer
        from retrieval_heads.tasks.builder import CellBuilder

        tokenizer = load_tokenizer(model)
        sent = CellBuilder(tokenizer, model, {}, sys.maxsize).stored(record).ids
        text = json.dumps(sent) if self.ids else tokenizer.decode(sent)
        # Exact where it goes into a file or a pipe; a terminal obeys what a needle may hold.
        print(printable(text) if sys.stdout.isatty() else text)

    def _model(self, folder: Path, record: Record) -> Fields:
        model: Fields = read_facts(folder).get("engine_args") or {}
        if self.config is not None:
            said = read_settings(self.config).get("model")
            model = said if isinstance(said, dict) else {}
        if not model.get("model"):
            raise ResultsError(
                f"{folder / 'run.json'}: names no model; give --config FILE with `model: {{model: NAME}}`"
            )
        if record.status == "skipped":
            raise ResultsError(f"cell {record.cell!r} was skipped, so it has no prompt: {record.reason}")
        return model


def find_record(records: Sequence[Record], cell: str) -> Record:
    """A record of the cell that is named in full or in part.

    Raises:
        ResultsError: No record has that name, or several that were given different prompts.
    """
    found = [record for record in records if cell == record.cell] or [
        record for record in records if f"{cell}/" in f"{record.cell}/" or cell in record.cell.split("/")
    ]
    found = found or [record for record in records if cell in record.cell]
    prompts = {record.recipe.prompt_hash if record.recipe else record.prompt for record in found}
    if len(found) == 1 or (len(prompts) == 1 and None not in prompts):
        return found[0]  # a needle and a detect suite may have asked the same
    listed = "\n  ".join(record.cell for record in (found or list(records))[:_LISTED])
    count = f"{len(found)} cells are" if found else "no cell is"
    raise ResultsError(f"{count} named by --cell {cell!r}; there are, among others:\n  {listed}")
