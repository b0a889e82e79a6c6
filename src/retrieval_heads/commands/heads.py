"""`retrieval-heads heads`: head scores to and from other tools' files, and side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from retrieval_heads.commands.agree import Agree
from retrieval_heads.commands.atlas import Atlas
from retrieval_heads.commands.head_files import head_file
from retrieval_heads.commands.head_table import Table
from retrieval_heads.errors import ConfigError, EngineError, printable
from retrieval_heads.files import write_whole
from retrieval_heads.heads.clusters import Clusters, clusters_of_cells
from retrieval_heads.heads.formats import form_of, read_heads
from retrieval_heads.heads.formats.figures import Nonsense, is_known_share, named_score, scored_heads
from retrieval_heads.heads.formats.format import FORMATS, HeadFile, HeadFormat, Samples, Source, Wanted
from retrieval_heads.heads.groups import WITH_KV_HEADS, by_query_head
from retrieval_heads.heads.score import RANKING
from retrieval_heads.heads.table import Estimate, HeadTable
from retrieval_heads.intervals import mean_intervals
from retrieval_heads.models import PACKAGED, packaged_folder
from retrieval_heads.reading import read_bytes, read_object

_UNSAID: Final = "no intervals: the file does not say which needle and text its samples are of"


@dataclass(frozen=True)
class Export:
    """Write head scores in a format that another tool reads; docs/heads.md has the formats and what each loses.

    Example: retrieval-heads heads export reports/latest --to duo --score copy --kv-heads 3
    """

    heads: Annotated[Path, tyro.conf.Positional]
    """A run's folder, or any file of heads."""
    to: str
    """duo, headkv, qrhead, retrieval-head, locos, kvpress, parquet, safetensors or heads."""
    score: str | None = None
    """The score; left out, the one that the format is about where it was measured, else that which heads are ranked by;
    all of them where the format holds all."""
    kv_heads: int | None = None
    """KV heads of a layer; left out, as the run says, or the config.json of a model in a folder."""
    top: int = 16
    """How many best heads, where a format lists some."""
    sink: int = 128
    """First tokens that a streaming head keeps (duo, kvpress)."""
    recent: int = 256
    """Last tokens that it keeps (duo, kvpress)."""
    output: Path | None = None
    """The file, or for duo the folder; left out, the format's own name in the working directory."""
    overwrite: bool = False
    """Replace files that stand there."""

    def run(self) -> None:
        """Write, and say what was lost, where ties begin, and which files were written."""
        form, path = FORMATS.find(self.to), head_file(self.heads)
        heads = read_heads(path)
        if heads.kv_heads and not form.kv_heads:
            raise ConfigError(
                f"{path}: holds KV heads, and {form.name} query heads; import it with --query-heads first"
            )
        if self.kv_heads is not None and not form.kv_heads:
            raise ConfigError(f"--kv-heads: {form.name} holds query heads; `heads table` shows KV heads by every score")
        if self.top < 1:
            raise ConfigError(f"--top {self.top}: at least 1 head is expected")
        if self.sink < 0 or self.recent < 1:
            raise ConfigError(
                f"--sink {self.sink} --recent {self.recent}: at least 0 and at least 1 token are expected"
            )
        target = self.output or Path(form.name if form.is_folder else form.file)
        if target.name in ("", "..") and not form.is_folder:
            raise ConfigError(f"--output {str(self.output)!r}: the name of a file is expected")
        scores = _chosen(heads.table, self.score, form, path)
        heads = replace(heads, table=_of_these(heads.table, scores))
        kv_heads = self.kv_heads
        if kv_heads is None and form.kv_heads and not heads.kv_heads:
            kv_heads = _kv_heads_of(heads.table)
        output = form.output(heads, Wanted(scores, kv_heads, self.top, target.name, self.sink, self.recent))
        names = list(output.files)
        paths = [target / name for name in names] if form.is_folder else [target, *map(target.with_name, names[1:])]
        if len(set(paths)) < len(paths):
            raise ConfigError(f"--output {target}: {form.name} writes {names[1]} beside it; give it another ending")
        for note in output.notes:
            print(printable(f"{', '.join(scores)}: {note}"))
        _write(dict(zip(paths, output.files.values(), strict=True)), overwrite=self.overwrite)


@dataclass(frozen=True)
class Import:
    """Read heads from another tool's file into a heads.json, which suites mask (`ablate: {heads: FILE}`), draw and
    compare. Of a file with several scores, --score chooses the one that heads are ranked by.

    Example: retrieval-heads heads import duo/full_attention_heads.tsv --query-heads 32 --model Llama-3.1-8B-Instruct
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The file, or a folder of a run or of DuoAttention."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Its format, one of those of export; left out, the first that it looks like (headkv looks like retrieval-head)."""
    score: str | None = None
    """The score to keep; what to call it, where the file does not say."""
    query_heads: int | None = None
    """Query heads of a layer, for files of KV heads: each is given the score of its KV head."""
    model: str | None = None
    """The model that the heads are of; a suite that masks them in another one warns."""
    output: Path = Path("heads.json")
    """Where to write."""
    overwrite: bool = False
    """Replace a file that stands there."""

    def run(self) -> None:
        """Read, write, and say what was read."""
        path = head_file(self.file)
        form = form_of(Source(path)) if self.from_ is None else FORMATS.find(self.from_)
        heads = read_heads(path, form.name)
        if heads.kv_heads:
            if self.query_heads is None:
                raise ConfigError(f"{path}: holds KV heads; give --query-heads, the query heads of a layer")
            heads = HeadFile(by_query_head(heads.table, self.query_heads))
        heads = _named(heads, self.score, form, path)
        facts = dict(heads.table.facts)
        facts |= {"model": self.model} if self.model else {}
        facts["imported"] = {
            "format": form.name,
            "file": path.name,
            "sha256": hashlib.sha256(read_bytes(path)).hexdigest(),
        }
        heads = replace(heads, table=_with_intervals(replace(heads.table, facts=facts), heads.samples))
        scores = list(heads.table.estimates)
        output = FORMATS.find("heads").output(heads, Wanted(scores))
        _write({self.output: next(iter(output.files.values()))}, overwrite=self.overwrite)
        count = sum(layer.heads for layer in heads.table.layers)
        print(printable(f"{count} heads, ranked by {heads.table.ranking}; read as {form.name}"))
        if intervals := heads.table.facts.get("intervals"):
            print(printable(str(intervals)))


@dataclass(frozen=True)
class Heads:
    """Head scores to and from other tools' files, side by side, and to be published: `heads table`, `export`, `import`,
    `agree`, `atlas`.

    Example: retrieval-heads heads export reports/latest --to headkv
    """


def heads(arguments: Sequence[str], program: str) -> None:
    """Do what the arguments say.

    Args:
        arguments: The command line behind `heads`.
        program: What it was called as, for `--help`.

    Raises:
        RetrievalHeadsError: A file cannot be read or written, or a format not hold what is asked for.
    """
    kinds: dict[str, Any] = {"table": Table, "export": Export, "import": Import, "agree": Agree, "atlas": Atlas}
    tyro.extras.subcommand_cli_from_dict(kinds, prog=program, args=list(arguments), description=Heads.__doc__).run()


def _chosen(table: HeadTable, score: str | None, form: HeadFormat, path: Path) -> list[str]:
    """The scores to write."""
    if score is not None and score not in table.estimates:
        raise ConfigError(f"--score {score}: {path} has no such score; it has {', '.join(table.estimates)}")
    if score is not None:
        return [score]
    if form.score is None:
        return [table.ranking, *(name for name in table.estimates if name != table.ranking)]
    return [form.score if form.score in table.estimates else table.ranking]


def _named(heads: HeadFile, score: str | None, form: HeadFormat, path: Path) -> HeadFile:
    """With one score alone where one is named; a file's only score takes the name, where the format has none."""
    table = heads.table
    if score is None:
        return heads
    only = score if score in table.estimates else next(iter(table.estimates))
    if only != score and form.score is None:
        raise ConfigError(f"--score {score}: {path} has no such score; it has {', '.join(table.estimates)}")
    for (layer, head), value in scored_heads(table, only):
        try:
            named_score(value, f"head {layer}-{head}", score)
        except Nonsense as error:
            raise ConfigError(f"--score {score}: {path} does not hold it: {error}") from None
    figures = {score: heads.samples.figures[only]} if only in heads.samples.figures else {}
    return HeadFile(
        replace(_of_these(table, [score]), estimates={score: table.estimates[only]}),
        Samples(figures, heads.samples.cells, heads.samples.clusters),
        heads.kv_heads,
    )


def _of_these(table: HeadTable, scores: Sequence[str]) -> HeadTable:
    """Without what is said of `copy` alone, where that is not among the scores."""
    if RANKING in scores:
        return table
    facts = {name: value for name, value in table.facts.items() if name != "retrieval_heads"}
    return replace(table, facts=facts, stability=None)


def _with_intervals(table: HeadTable, samples: Samples) -> HeadTable:
    """With the intervals that the file lacks, of shares: the scale of other scores is not known.

    Samples whose file does not say which needle and text they are of may share them, and have none.
    """
    import numpy as np

    estimates, facts = dict(table.estimates), dict(table.facts)
    clusters = Clusters(samples.clusters or clusters_of_cells(samples.cells))
    for name, figures in samples.figures.items():
        if is_known_share(name) and np.isnan(estimates[name].low).all():
            is_said = len(clusters.of) == len(figures)
            facts["intervals"] = clusters.note if is_said else _UNSAID
            if is_said:
                estimates[name] = Estimate(estimates[name].mean, *mean_intervals(figures, 1, clusters.groupings))
    counted = table.counted if table.counted is not None else max(map(len, samples.figures.values()), default=None)
    return replace(table, estimates=estimates, counted=counted, facts=facts)


def _kv_heads_of(table: HeadTable) -> int | None:
    """KV heads of a layer, as the run says, or the config.json in the model's folder; `None` where neither does."""
    said = {layer.kv_heads for layer in table.layers if layer.heads and layer.kind == WITH_KV_HEADS}
    if len(said) == 1 and None not in said:
        return said.pop()
    model = str(table.facts.get("model") or "")
    try:
        folder = packaged_folder(model) if model in PACKAGED else Path(model).expanduser()
    except (EngineError, RuntimeError):
        return None
    file = folder / "config.json"
    if not model or not file.is_file():
        return None
    config = read_object(file)
    text = config.get("text_config", config)
    number = text.get("num_key_value_heads", text.get("num_attention_heads")) if isinstance(text, dict) else None
    if not isinstance(number, int):
        return None
    print(printable(f"{number} KV heads a layer, as {file} says"))
    return number


def _write(files: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write files, none where one of them stands there already."""
    there = {path for path in files if path.exists() and not path.is_char_device() and not path.is_fifo()}
    if there and not overwrite:
        names = ", ".join(sorted(map(str, there)))
        raise ConfigError(f"{names}: stands there already; give --output another name, or --overwrite")
    for path, content in files.items():
        write_whole(path, content)
        print(printable(f"{'overwrote' if path in there else 'wrote'} {path}"))
