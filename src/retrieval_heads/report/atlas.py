"""An atlas: the head scores of one run in a folder that can be published, and rebuilt from what its card says.

`heads.parquet` holds every score of every head with its interval and each sample's figure, `samples.jsonl` what each
sample was, `suite.yaml` what asks them again, `atlas.json` what measured them and the hash of each file, and
`README.md` says it to people. The same measurement gives the same bytes: no file holds a time, a path of a machine or
a secret.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, Final

import yaml

from retrieval_heads.errors import ResultsError
from retrieval_heads.gates import META_KEYS
from retrieval_heads.heads.clusters import cluster_of, clusters_of
from retrieval_heads.heads.detection import Detection, aggregate
from retrieval_heads.heads.formats import read_table
from retrieval_heads.heads.formats.format import FORMATS, HeadFile, Samples, Wanted
from retrieval_heads.heads.formats.heads import measured_texts
from retrieval_heads.heads.order import order_of
from retrieval_heads.heads.score import head_scores
from retrieval_heads.heads.table import rectangle
from retrieval_heads.redaction import without_secrets
from retrieval_heads.report.stored_run import StoredRun, load_run
from retrieval_heads.runs.identity import Identities
from retrieval_heads.runs.layers import Layer
from retrieval_heads.runs.record import Record
from retrieval_heads.settings.yaml_reading import parse
from retrieval_heads.version import __version__

SCHEMA: Final = "retrieval-heads-atlas/1"

CARD: Final = "README.md"
CONTENT: Final = "atlas.json"
_HEADS, _SAMPLES, _SUITE = "heads.parquet", "samples.jsonl", "suite.yaml"
_PICTURES: Final = ("detect_heatmap.png", "head_scores.png")

_LEFT_OUT: Final = frozenset(
    {"output_dir", "report", "gates", "expect", "verdict", "allow_skipped", "calculate_device"}
)
"""What a suite says that changes no figure."""
_BEST: Final = 20


def atlas_of(folder: Path, suite: str | None = None) -> dict[str, bytes]:
    """The files of a run's atlas, by their names.

    Args:
        folder: That of a run with a detect suite.
        suite: Its name, where there are several.

    Raises:
        ResultsError: There is no such run or suite, or its heads were not scored.
        ConfigError: pyarrow is not installed.
    """
    run = load_run(folder)
    name = _suite_of(run, suite)
    mine = [record for record in run.records if (record.kind, record.suite) == ("detect", name)]
    records = sorted((record for record in mine if record.status != "spared"), key=lambda record: record.cell)
    texts = [text for file in _files_of(folder, name) for text in measured_texts(file)]
    detection = aggregate(records, [Layer(**layer) for layer in run.facts.get("layers", ())], texts)
    facts = {key: _portable(run.facts[key]) for key in META_KEYS if key in run.facts}
    scores = [detection.ranking, *(each for each in detection.estimates if each != detection.ranking)]
    table = detection.table(name, facts)
    heads = HeadFile(table, _figures(detection, scores))
    files = dict(FORMATS.find("parquet").output(heads, Wanted(scores, name=_HEADS)).files)
    files[_SAMPLES] = "".join(f"{json.dumps(_sample(each), ensure_ascii=False)}\n" for each in records).encode()
    settings = _settings(run, name)
    files[_SUITE] = yaml.safe_dump(settings, allow_unicode=True).encode()
    files |= _pictures(replace(table, facts={}), " · ".join(filter(None, (str(facts.get("model", "")), name))))
    content = _content(run, records, detection, scores, settings, facts, asked=(len(records), len(mine)))
    content["files"] = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(files.items())}
    files[CONTENT] = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    files[CARD] = card(content).encode()
    return files


def _files_of(folder: Path, suite: str) -> Iterator[Path]:
    """The file of a suite's heads."""
    yield from (file for file in sorted(folder.glob("heads*.json")) if read_table(file).suite == suite)


def _suite_of(run: StoredRun, suite: str | None) -> str:
    found = list(dict.fromkeys(record.suite for record in run.records if record.kind == "detect"))
    if suite is not None and suite not in found:
        raise ResultsError(f"--suite {suite}: there is no detect suite of that name; there are {', '.join(found)}")
    if suite is None and len(found) != 1:
        told = f"detect suites {', '.join(found)}; name one with --suite" if found else "no sample of one"
        raise ResultsError(f"{run.name}: an atlas is of one detect suite, and the run holds {told}")
    return suite or found[0]


def _figures(detection: Detection, scores: Sequence[str]) -> Samples:
    import numpy as np

    figures = {
        name: np.array([rectangle(record.heads[name]) for record in detection.counted if record.heads], dtype=float)
        for name in scores
        if all(record.heads and name in record.heads for record in detection.counted)
    }
    cells = tuple(record.cell for record in detection.counted)
    return Samples(figures, cells, clusters_of(detection.counted).of)


def _sample(record: Record) -> dict[str, object]:
    """What a sample was: enough to find it again, and to see whether a rerun was the same."""
    needle, text = cluster_of(record)
    recipe = record.recipe
    return {
        "cell": record.cell,
        "status": record.status,
        "counted": bool(record.passed and record.heads is not None),
        "needle": needle,
        "text": text,
        "place": dict(record.place.axes),
        "seed": record.seed,
        "prompt_tokens": record.prompt_tokens,
        "needle_span": record.needle_span,
        "prompt_sha256": recipe.prompt_hash if recipe else None,
        "haystack_sha256": recipe.hash if recipe else None,
        "template_sha256": recipe.template_hash if recipe else None,
        "answer": without_secrets(record.text),
        "answer_tokens": len(record.token_ids),
        "answer_sha256": hashlib.sha256(json.dumps(record.token_ids).encode()).hexdigest(),
    }


def _settings(run: StoredRun, suite: str) -> dict[str, Any]:
    """The suite's settings that change a figure, without paths of the machine."""
    said = parse(run.config, f"{run.name}/config.yaml") if run.config else None
    if not isinstance(said, dict):
        raise ResultsError(f"{run.name}: has no config.yaml that says what was asked")
    suites = said.get("suites")
    own = suites.get(f"detect/{suite}") if isinstance(suites, dict) else said
    if not isinstance(own, dict):
        raise ResultsError(f"{run.name}/config.yaml: does not say what the suite detect/{suite} asked")
    kept: dict[str, Any] = _portable({key: value for key, value in own.items() if key not in _LEFT_OUT})
    return {"kind": "detect", **kept, "verdict": "none"}


def _portable(value: Any) -> Any:
    """A setting or fact without secrets, of a path of this machine its last name alone."""
    if isinstance(value, Mapping):
        return {key: _portable(each) for key, each in without_secrets(dict(value)).items()}
    if isinstance(value, list | tuple):
        return [_portable(each) for each in value]
    if isinstance(value, str):
        text = without_secrets(value)
        is_path = text.startswith(("/", "~")) and len(text.split()) == 1 and len(text) > 1
        return PurePath(text).name if is_path else text
    return value


def _pictures(table: Any, title: str) -> dict[str, bytes]:
    from retrieval_heads.report.pictures import draw_heads

    with tempfile.TemporaryDirectory() as folder:
        draw_heads(table, Path(folder) / _PICTURES[0], title)
        return {name: (Path(folder) / name).read_bytes() for name in _PICTURES}


def _content(
    run: StoredRun,
    records: Sequence[Record],
    detection: Detection,
    scores: Sequence[str],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    asked: tuple[int, int],
) -> dict[str, Any]:
    """What `atlas.json` says, but for the files' hashes."""
    known = Identities.of_facts(run.facts)
    identities = {"model": known.model_of(records[0]), "engine": known.engine_of(records[0])}
    prompts = sorted(f"{record.cell} {record.recipe.prompt_hash if record.recipe else ''}\n" for record in records)
    table = detection.table(records[0].suite, facts)
    order = order_of(table, detection.ranking)
    best = [[*head, round(value, 6), *_ends(detection, head)] for head, value in detection.ranked()[:_BEST]]
    definitions = head_scores()
    return {
        "schema": SCHEMA,
        "suite": records[0].suite,
        **facts,
        **{f"{part}_identity": _portable(dict(one.fields)) for part, one in identities.items() if one is not None},
        "versions": {
            "retrieval-heads": __version__,
            "python": run.facts.get("python"),
            **{name: version(name) for name in ("numpy", "scipy", "pyarrow", "matplotlib")},
        },
        "haystack": settings.get("haystack"),
        "haystack_sha256": sorted({record.recipe.hash for record in records if record.recipe and record.recipe.hash}),
        "prompts_sha256": hashlib.sha256("".join(prompts).encode()).hexdigest(),
        "cells": asked[1],
        "asked": asked[0],
        "measured": len(detection.samples),
        "counted": len(detection.counted),
        "intervals": detection.clusters.note,
        "stability_top_10": detection.stability(),
        "heads": sum(layer.heads for layer in detection.layers),
        "layers": len(detection.layers),
        "ranked_by": detection.ranking,
        "ties": order.note,
        "texts": [{**text.text.to_json(), "heads": text.heads} for text in detection.texts],
        "best": best,
        "scores": {
            name: {"definition": definitions[name].definition, "is_share": definitions[name].is_share}
            for name in scores
        },
    }


def _ends(detection: Detection, head: tuple[int, int]) -> list[float | None]:
    row = next(number for number, layer in enumerate(detection.layers) if layer.number == head[0])
    estimate = detection.estimates[detection.ranking]
    ends = (float(estimate.low[row, head[1]]), float(estimate.high[row, head[1]]))
    return [round(end, 6) if end == end else None for end in ends]


def card(content: Mapping[str, Any]) -> str:
    """The card of an atlas, in Markdown: `atlas.json` for people."""
    return "\n".join(_card(content)) + "\n"


def _card(content: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# Retrieval heads of {content.get('model', 'a model')}: {content['suite']}", "")
    yield (
        f"Head scores of {content['heads']} attention heads in {content['layers']} layers, measured inside the engine "
        f"on {content['counted']} samples whose answer held the needle ({content['measured']} measured, "
        f"{content['asked']} of {content['cells']} cells asked). Made by "
        "[retrieval-heads](https://pypi.org/project/pytest-retrieval-heads/)."
    )
    yield from ("", f"![mean scores by layer and head]({_PICTURES[0]})", "")
    yield from (f"![distribution of the scores]({_PICTURES[1]})", "", "## Best heads", "")
    yield from (f"By `{content['ranked_by']}`; {content['intervals']}; {content['ties']}.", "")
    yield from ("| head | mean | 95 % interval |", "|---|---|---|")
    for layer, head, mean, low, high in content["best"]:
        yield f"| {layer}-{head} | {mean:.3f} | {'none' if low is None else f'{low:.3f} – {high:.3f}'} |"
    if content["stability_top_10"] is not None:
        yield from ("", f"The top 10 of random halves of the samples agree on {content['stability_top_10']:.0%}.")
    yield from ("", "## Scores", "", "| score | definition | range |", "|---|---|---|")
    for score, said in content["scores"].items():
        yield f"| `{score}` | {said['definition']} | {'0 to 1' if said['is_share'] else 'open'} |"
    yield from ("", "## What was measured", "", "| | |", "|---|---|")
    for key in (*META_KEYS, "haystack", "haystack_sha256", "prompts_sha256"):
        if content.get(key):
            yield f"| {key.replace('_', ' ')} | {_cell(content[key])} |"
    for library, number in content["versions"].items():
        yield f"| {library} | {number} |"
    for part in ("model_identity", "engine_identity"):
        if content.get(part):
            yield from ("", f"<details><summary>{part.replace('_', ' ')}</summary>", "", "```json")
            yield from (json.dumps(content[part], indent=2, ensure_ascii=False), "```", "", "</details>")
    yield from ("", "## Files", "", "| file | SHA-256 |", "|---|---|")
    yield from (f"| [{file}]({file}) | `{digest}` |" for file, digest in content["files"].items())
    yield from ("", "## Measure it again", "", "```", f"pytest {_SUITE}")
    yield from ("retrieval-heads heads atlas reports/latest --check .", "```", "")
    yield (
        "The second line compares every file's hash. Figures are the same where model, engine, device and versions "
        "are, and the engine computes alike whatever it batches together; a haystack or model that is named without a "
        "place must be put where `suite.yaml` says."
    )


def _cell(value: object) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    return "`" + json.dumps(value, ensure_ascii=False) + "`"
