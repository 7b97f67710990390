"""All training files of a release from the raw folders, the development set, and a record of how they came about."""

from __future__ import annotations

import json
import logging
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.files.hashes import hash_file, hash_folder, hash_parts
from modeling_tsarank.files.reading import parse_yaml, read_json, read_text
from modeling_tsarank.files.writing import write_json, write_jsonl, write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.list_building import SourceQuery
from modeling_tsarank.trainers.data.provenance import COUNTS, describe_file, package_versions
from modeling_tsarank.trainers.data.query_files import write_queries
from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs
from modeling_tsarank.trainers.data.weak_recipe import Sampling, build_recipe, choose
from modeling_tsarank.trainers.data.weak_types import COLUMNS, Pair
from modeling_tsarank.trainers.recipes.release_sources import (
    SUFFIX,
    Gate,
    LabelledQuery,
    LabelledSource,
    Pool,
    choose_dev,
    group_pairs,
    read_files,
    write_collection,
)
from modeling_tsarank.trainers.training_sources import read_records


logger = logging.getLogger(__name__)

DATA_VARIABLE = "$TSARANK_DATA"
SETTINGS = "settings.json"
_PACKAGES = ("bm25s", "datasketch", "numpy", "PyStemmer", "xxhash")


@dataclass
class Plan:
    """What `data.yaml` says.

    Attributes:
        weak_recipe: Recipe of the weak pairs, beside the plan; its sampling is not used.
        leakage: Test collections that nothing may come from.
        cpt: Sampling of the pairs for CPT, see `Sampling`.
        sources: Labelled queries, see `LabelledSource`.
        sft_rows: Rows of a file for SFT.
        sft_words: Words of a document in these files; training reads fewer.
        mixes: By the file's name, the share of each source in it; sources with fewer rows are repeated.
        dev_depth: Candidates of a development query.
        pools: Sources whose documents become a corpus each, for queries to be generated from.
        distill_queries: Queries for lists that a teacher orders.
        distill_documents: Most documents of the corpus of those lists.
        seed: Of every draw.
    """

    weak_recipe: str
    leakage: tuple[str, ...] = ()
    sources: tuple[Any, ...] = ()
    mixes: dict[str, Any] = field(default_factory=dict)
    cpt: dict[str, Any] = field(default_factory=dict)
    sft_rows: int = 4000
    sft_words: int = 300
    dev_depth: int = 20
    pools: tuple[str, ...] = ()
    distill_queries: int = 1000
    distill_documents: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.weak_recipe, str):
            raise InputError(f"weak_recipe must name a file, got {self.weak_recipe!r:.60}")
        self.labelled = [
            build_options(LabelledSource, one, f"source {number}") for number, one in enumerate(self.sources, start=1)
        ]
        names = [one.name for one in self.labelled]
        if len(set(names)) < len(names):
            raise InputError(f"sources need different names, got {', '.join(names)}")
        if not self.leakage or not self.sources:
            raise InputError("a plan needs sources, and leakage must name the test collections")
        if self.dev_depth < 2 or self.sft_rows < 1 or self.sft_words < 1:
            raise InputError("dev_depth must be at least 2, sft_rows and sft_words at least 1")
        self.sampling = build_options(Sampling, {"seed": self.seed, **self.cpt}, "cpt")
        for mix, shares in self.mixes.items():
            if not re.fullmatch(r"[\w-]+", str(mix)):
                raise InputError(f"a mix's name is letters, digits, - and _, for it names a file; got {mix!r}")
            if not isinstance(shares, Mapping) or not shares or not all(_is_share(one) for one in shares.values()):
                raise InputError(f"the mix {mix} must give shares above 0 by source, got {shares!r:.80}")
            unknown = next((name for name in shares if name not in names), None)
            if unknown is not None:
                raise InputError(f"the mix {mix} names {unknown!r}; there are {', '.join(names)}")
        unknown = next((name for name in self.pools if name not in names), None)
        if unknown is not None:
            raise InputError(f"pools names {unknown!r}; there are {', '.join(names)}")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def read_plan(path: Path, data: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan of a file and the content of its weak recipe, `$TSARANK_DATA` replaced by `data`.

    Raises:
        InputError: a file is missing or not YAML, an option is unknown, or a value is wrong.
    """

    def content_of(file: Path) -> Any:
        content = parse_yaml(read_text(file).replace(DATA_VARIABLE, str(data)), str(file))
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise InputError(f"{file}: expected options by name")
        return content

    plan = build_options(Plan, {k: v for k, v in content_of(path).items() if not k.startswith("x-")}, str(path))
    return plan, content_of((path.parent / plan.weak_recipe).resolve())


def prepare(plan_file: Path, data: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    """Makes everything that the trainings and the development evaluation read.

    The output folder gets `weak/` (all clean weak pairs), `cpt/`, `sft/MIX.jsonl`, `dev/SOURCE/` (BEIR's layout,
    judged split `dev`, run `candidates`), `held_out/` (development queries and their positives, which no training
    file holds), `pools/SOURCE/` (a corpus), `distill/` (corpus and queries) and `counts.json`. The same plan over
    the same files gives the same bytes. An interrupted preparation goes on where it was: the weak pairs, which take
    most of the time, are kept.

    Args:
        plan_file: `data.yaml`.
        data: Folder with `weak_pairs`, `supervised` and `beir`.
        output: Folder to fill.
        limit: For rehearsals: only the first so many raw rows of every file; 0 takes all.

    Returns:
        The content of `counts.json`.

    Raises:
        InputError: the plan or a file is wrong, or `output` was filled with other settings.
    """
    plan, weak_content = read_plan(plan_file, data)
    _check_settings(output, plan, weak_content, limit, data)
    report: dict[str, Any] = {"limit": limit, "seed": plan.seed, "sources": {}, "leakage": {}}
    kept = _weak_pairs(weak_content, output / "weak", limit, report)
    with ExitStack() as stack:
        tests = stack.enter_context(closing(Gate("test_collections", plan.leakage)))
        # Again, whatever the recipe's own filters did: they may have looked before they mended.
        pairs = tests.pairs(kept)
        prepared = {
            source.name: _prepare_source(source, plan, data, pairs, tests, output, limit, report)
            for source in plan.labelled
        }
        held = _write_held_out(output / "held_out", [one for _, dev, _ in prepared.values() for one in dev])
        own: Gate | None = None
        if held is not None:
            # Without shared runs of words: answers and abstracts share formulas, and only copies give anything away.
            own = stack.enter_context(closing(Gate("held_out", [str(held)], run_words=0)))
        gates = [gate for gate in (tests, own) if gate is not None]
        training = {name: _passed(rows, gates) for name, (rows, _, _) in prepared.items()}
        for name, rows in training.items():
            report["sources"][name]["train"] = len(rows)
        _write_sft(plan, training, output / "sft", report)
        _write_cpt(plan, pairs, own, output / "cpt", report)
        _write_distill(plan, training, output / "distill", report)
        for name in plan.pools:
            report["sources"][name]["corpus"] = _write_pool(prepared[name][2], own, output / "pools" / name)
        report["leakage"] = {gate.name: gate.facts() for gate in gates}
    report["files"] = {
        str(path.relative_to(output)): {"rows": _lines(path), "sha256": hash_file(path)}
        for folder in ("cpt", "sft", "dev", "held_out", "pools", "distill")
        for path in sorted((output / folder).rglob("*.jsonl"))
    }
    report["versions"] = package_versions(_PACKAGES)
    write_json(output / COUNTS, report)
    return report


def _check_settings(output: Path, plan: Plan, weak_content: Any, limit: int, data: Path) -> None:
    """Refuses a folder that was filled with other settings: a kept part of it would not fit."""
    # The data's place may change between runs; what is in it is recorded by fingerprints in the counts.
    settings = json.loads(json.dumps({"plan": plan.__dict__, "weak": weak_content, "limit": limit}, default=vars))
    text = json.dumps(settings).replace(str(data), DATA_VARIABLE)
    path = output / SETTINGS
    if path.is_file() and read_json(path) != json.loads(text):
        raise InputError(f"{output} was filled with another plan or limit; choose another folder or remove it")
    write_text(path, json.dumps(json.loads(text), indent=1) + "\n")


def _weak_pairs(content: dict[str, Any], folder: Path, limit: int, report: dict[str, Any]) -> list[Pair]:
    """All clean weak pairs, made if they are not there."""
    content = {name: value for name, value in content.items() if name != "sampling"}
    if limit:
        content["sources"] = [{**one, "limit": limit} for one in content["sources"]]
    # Everything that they are made from, and they themselves, by content: raw files are corrected, too.
    made = folder.with_name(f"{folder.name}.json")
    sources = {path: hash_folder(path, deep=True) if path.is_dir() else hash_file(path) for path in _paths_in(content)}
    text = json.dumps(content, sort_keys=True, default=str)
    for path in sorted(sources, key=lambda path: -len(str(path))):
        text = text.replace(json.dumps(str(path))[1:-1], sources[path])
    wanted = {"made_from": hash_parts([text])}
    if not made.is_file() or read_json(made) != {**wanted, "made": _folder_hash(folder)}:
        if folder.exists():
            logger.warning("the weak pairs in %s are not those of these files, and are made again", folder)
        build_weak_pairs(build_recipe(content), folder, overwrite=folder.exists())
        write_json(made, {**wanted, "made": _folder_hash(folder)})
    facts = read_json(folder / "provenance.json")
    report["weak"] = {"read": sum(one["pairs"] for one in facts["inputs"]), "kept_by_type": facts["kept_by_type"]}
    report["inputs"] = {one["file"]["name"]: one["file"] for one in facts["inputs"]}
    pairs = []
    for path in sorted((folder / "data").glob("*.parquet")):
        pairs += [Pair(**{name: record[name] for name in COLUMNS}) for _, record in read_records(path)]
    return pairs


def _folder_hash(folder: Path) -> str | None:
    return hash_folder(folder, deep=True) if folder.is_dir() else None


def _paths_in(value: Any) -> set[Path]:
    """All files and folders that are named anywhere in a recipe."""
    if isinstance(value, Mapping):
        return set().union(*map(_paths_in, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_paths_in, value))
    return {Path(value)} if isinstance(value, str) and os.sep in value and Path(value).exists() else set()


def _prepare_source(
    source: LabelledSource,
    plan: Plan,
    data: Path,
    pairs: Sequence[Pair],
    tests: Gate,
    output: Path,
    limit: int,
    report: dict[str, Any],
) -> tuple[list[LabelledQuery], list[LabelledQuery], Pool]:
    """Training and development queries of a source, whose collection is written, and the source's documents."""
    generator = random.Random(f"{plan.seed}/{source.name}")
    lost: Counter[str] = Counter()
    folder = data / "supervised"
    own = [pair for pair in pairs if source.takes(pair)]
    if source.files:
        rows = tests.rows(read_files(source, folder, source.files, limit, lost))
    else:
        rows = group_pairs(source, own, lost)
    for name in (*source.files, *source.dev_files):
        report["inputs"][f"{name}{SUFFIX}"] = describe_file(folder / f"{name}{SUFFIX}")
    texts = [text for row in rows for text in (*row.positives, *row.negatives)]
    cache = output / ".indexes"
    pool = Pool(source.name, [*texts, *(pair.document for pair in own)], cache)
    dev_rows, dev_pool = rows, pool
    if source.dev_files:
        dev_rows = tests.rows(read_files(source, folder, source.dev_files, limit, lost))
        dev_texts = [text for row in dev_rows for text in (*row.positives, *row.negatives)]
        dev_pool = Pool(f"{source.name}-dev", dev_texts, cache)
    dev, run = choose_dev(dev_rows, dev_pool, source.dev, plan.dev_depth, source.dev_hard, generator)
    if dev:
        judged = {row.query_id: dict.fromkeys(row.positives, 1) for row in dev}
        write_collection(output / "dev" / source.name, dev_pool, {row.query_id: row.query for row in dev}, judged, run)
    taken = {row.query_id for row in dev}
    rest = [row for row in rows if row.query_id not in taken]
    if source.queries and len(rest) > source.queries:
        rest = generator.sample(rest, source.queries)
    rest = pool.with_negatives(rest, source.mining_options(plan.seed), lost) if rest else []
    report["sources"][source.name] = {
        "usable": len(rows),
        "pool": len(pool.documents),
        "dev": len(dev),
        "with_negatives": len(rest),
        "left_out": dict(sorted(lost.items())),
    }
    return rest, dev, pool


def _passed(rows: Sequence[LabelledQuery], gates: Sequence[Gate]) -> list[LabelledQuery]:
    left = list(rows)
    for gate in gates:
        left = gate.rows(left)
    return [row for row in left if row.negatives]


# ---- writing ---------------------------------------------------------------------------------------


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _write_held_out(folder: Path, rows: Sequence[LabelledQuery]) -> Path | None:
    """Development queries and positives in a form that the filter `leakage` reads."""
    if not rows:
        return None
    texts = dict.fromkeys(text for row in rows for text in row.positives)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"p{number}", "text": text} for number, text in enumerate(texts)])
    write_jsonl(folder / "queries.jsonl", [{"_id": row.query_id, "text": row.query} for row in rows])
    return folder


def _write_sft(plan: Plan, training: Mapping[str, list[LabelledQuery]], folder: Path, report: dict[str, Any]) -> None:
    report["sft"] = {}
    for mix, shares in plan.mixes.items():
        generator = random.Random(f"{plan.seed}/{mix}")
        present = {name: share for name, share in shares.items() if training[name]}
        if not present:
            raise InputError(f"the mix {mix} is empty: none of {', '.join(shares)} has a training query left")
        drawn: list[dict[str, Any]] = []
        counts = {}
        for name, share in present.items():
            wanted = max(round(plan.sft_rows * share / sum(present.values())), 1)
            order: list[LabelledQuery] = []
            while len(order) < wanted:  # every row as often as any other, give or take one
                order += generator.sample(training[name], min(len(training[name]), wanted - len(order)))
            drawn += [row.row(name, plan.sft_words) for row in order]
            counts[name] = {"rows": wanted, "queries": len({row.query_id for row in order})}
        generator.shuffle(drawn)
        write_jsonl(folder / f"{mix}.jsonl", drawn)
        report["sft"][mix] = counts


def _write_cpt(plan: Plan, pairs: Sequence[Pair], own: Gate | None, folder: Path, report: dict[str, Any]) -> None:
    """The sampled pairs without those held out, in random order; the first ones are for validation."""
    by_type: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_type[pair.type].append(pair)
    sampling = plan.sampling
    counts = {name: len(one) for name, one in by_type.items()}
    places = choose(counts, sampling.allocate(counts), sampling.seed)
    drawn = sorted(
        ((int(places[name][number]), name, number) for name in places for number in np.flatnonzero(places[name] >= 0)),
    )
    left = [by_type[name][number] for _, name, number in drawn]
    left = left if own is None else own.pairs(left)
    held = min(sampling.validation, len(left) // 2)
    write_jsonl(folder / "validation.jsonl", [pair.row() for pair in left[:held]])
    write_jsonl(folder / "train.jsonl", [pair.row() for pair in left[held:]])
    report["cpt"] = {
        "drawn": len(drawn),
        "train": len(left) - held,
        "validation": held,
        "types": dict(sorted(Counter(pair.type for pair in left[held:]).items())),
    }


def _write_pool(pool: Pool, own: Gate | None, folder: Path) -> int:
    """A source's documents as a corpus, without the development queries' positives; their number."""
    texts = list(pool.ids)
    if own is not None:
        keeps = own.keeps([Pair("", text, "question_answer", "") for text in texts])
        texts = [text for text, good in zip(texts, keeps, strict=True) if good]
    rows = [{"_id": f"{pool.name}-p{number}", "text": text} for number, text in enumerate(texts)]
    write_jsonl(folder / "corpus.jsonl", rows)
    return len(rows)


def _write_distill(
    plan: Plan, training: Mapping[str, list[LabelledQuery]], folder: Path, report: dict[str, Any]
) -> None:
    """Corpus and queries for `tsarank data lists`: documents of training rows, an even share of each source."""
    generator = random.Random(f"{plan.seed}/distill")
    sources = [rows for rows in training.values() if rows]
    texts: dict[str, None] = {}
    for rows in sources:
        own = list(dict.fromkeys(text for row in rows for text in (*row.positives, *row.negatives)))
        generator.shuffle(own)
        texts |= dict.fromkeys(own[: plan.distill_documents // len(sources)])
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"c{number}", "text": text} for number, text in enumerate(texts)])
    seen: set[str] = set()
    queries = []
    for rows in sources:
        order = generator.sample(rows, min(len(rows), plan.distill_queries // len(sources)))
        for row in order:
            if row.query not in seen:
                seen.add(row.query)
                queries.append(SourceQuery(row.query_id, row.query, "labelled"))
    write_queries(folder / "queries.jsonl", queries, {"taken": len(queries)})
    report["distill"] = {"documents": len(texts), "queries": len(queries)}
