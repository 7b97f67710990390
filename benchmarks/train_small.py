"""A short CPT and SFT of the embedded 135M model on real data, and what it does to TREC-DL 2019.

    TSARANK_DATA=… python benchmarks/train_small.py WORK                 # writes the data, shows the commands
    TSARANK_DATA=… python benchmarks/train_small.py WORK --run           # and runs them, one after the other
    TSARANK_DATA=… python benchmarks/train_small.py WORK --run --fraction 0.01      # a rehearsal

CPT: weak pairs of all seven types in equal shares, lightly cleaned. SFT: the three MS MARCO samples three times,
WikiQA's training questions, and MedQuAD questions whose negatives BM25 finds among the other answers. No row comes
from a test collection: nothing under beir/ is read before the last commands measure.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.first_stages import build_index
from modeling_tsarank.eval.run_files import ranked


WEAK_TYPES = (
    "title_body",
    "title_abstract",
    "citation_reference",
    "post_comment",
    "entity_description",
    "question_answer",
    "summary_content",
)
# Bibliography strings instead of documents; summaries that are sentences of their articles, hundreds of words long.
UNUSABLE_SOURCES = ("unarXive", "bbc-news-summary")
QUERY_WORDS, DOCUMENT_WORDS = (1, 40), (12, 400)
MS_MARCO = ("msmarco_rankinggpt_100q", "msmarco_flagembedding_sample", "msmarco_splade_toy_triples")
MS_MARCO_REPEATS = 3
CPT_PAIRS, MEDQUAD_QUESTIONS = 20_000, 800
# The recipes' sizes, for the rehearsal.
CPT_ROWS, SFT_STEPS = 2400, 120
NEGATIVES = 7


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a gzipped JSON Lines file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def mended(text: str) -> str:
    """One line without markup; UTF-8 that was once read as Latin-1 is read again."""
    with contextlib.suppress(UnicodeEncodeError, UnicodeDecodeError):
        text = text.encode("latin-1").decode("utf-8")
    return " ".join(re.sub(r"</?[A-Za-z][\w.]{0,8}/?>", " ", text).split())


def cut(text: str, words: int) -> str:
    """The first so many words."""
    return " ".join(text.split()[:words])


# ---- weak pairs ------------------------------------------------------------------------------------


def usable_pair(row: dict[str, Any]) -> dict[str, str] | None:
    """A cleaned pair, or None where there is nothing to learn from it."""
    if row["source"].startswith(UNUSABLE_SOURCES):
        return None
    query, document = mended(row["query"]), mended(row["document"])
    if query.isupper():  # Reuters' headlines
        query = query.lower()
    words = len(query.split())
    if not QUERY_WORDS[0] <= words <= QUERY_WORDS[1] or len(document.split()) < DOCUMENT_WORDS[0]:
        return None
    if query.lower() in document.lower()[: len(query) + 20] and words > 3:  # the document repeats its title
        return None
    return {"type": row["type"], "query": query, "document": cut(document, DOCUMENT_WORDS[1])}


def weak_pairs(data: Path, count: int, generator: random.Random) -> list[dict[str, str]]:
    """Usable pairs of all types in equal shares, each query and each document of a type once, in random order."""
    chosen = []
    for name in tqdm(WEAK_TYPES, desc="weak pairs", unit="type"):
        rows = list(read(data / "weak_pairs" / f"{name}.jsonl.gz"))
        generator.shuffle(rows)
        seen: set[str] = set()
        kept = []
        for row in rows:
            pair = usable_pair(row)
            if pair is None or pair["query"] in seen or pair["document"] in seen:
                continue
            seen |= {pair["query"], pair["document"]}
            kept.append(pair)
            if len(kept) * len(WEAK_TYPES) >= count:
                break
        chosen += kept
    generator.shuffle(chosen)
    return chosen


# ---- labelled queries ------------------------------------------------------------------------------


def text_of(document: Any) -> str:
    """A document's text, cleaned; documents are texts or objects with a `text`."""
    return cut(mended(document["text"] if isinstance(document, dict) else document), DOCUMENT_WORDS[1])


def labelled(data: Path, name: str) -> list[dict[str, Any]]:
    """Queries of a file with at least one positive and one negative, no text on both sides."""
    rows = []
    for row in read(data / "supervised" / f"{name}.jsonl.gz"):
        positives = list(dict.fromkeys(map(text_of, row["positives"])))
        negatives = [text for text in dict.fromkeys(map(text_of, row["negatives"])) if text not in positives]
        if positives and negatives:
            rows.append({"query": mended(row["query"]).lstrip(")"), "positives": positives, "negatives": negatives})
    return rows


def filled(rows: list[dict[str, Any]], generator: random.Random) -> list[dict[str, Any]]:
    """The rows with at least `NEGATIVES` negatives each; what is missing are other queries' positives."""
    pool = [text for row in rows for text in row["positives"]]
    for row in rows:
        own = {*row["positives"], *row["negatives"]}
        while len(row["negatives"]) < NEGATIVES:
            text = generator.choice(pool)
            if text not in own:
                own.add(text)
                row["negatives"].append(text)
    return rows


def medquad(data: Path, count: int, generator: random.Random, cache: Path) -> list[dict[str, Any]]:
    """MedQuAD questions with their answers; negatives are the answers BM25 puts at ranks 4 to 30."""
    pairs = [
        row for row in read(data / "weak_pairs" / "question_answer.jsonl.gz") if row["source"].startswith("medquad")
    ]
    texts = list(dict.fromkeys(text_of(row["document"]) for row in pairs))
    ids = [f"a{number}" for number in range(len(texts))]
    index = build_index("bm25", ids, texts, str(cache))
    answers = dict(zip(ids, texts, strict=True))
    chosen = generator.sample(pairs, min(count, len(pairs)))
    run = index.search({f"q{number}": mended(row["query"]) for number, row in enumerate(chosen)}, 30)
    rows = []
    for number, row in enumerate(chosen):
        positive = text_of(row["document"])
        found = [answers[document_id] for document_id in ranked(run[f"q{number}"])[3:]]
        negatives = [text for text in found if text != positive]
        if negatives:
            rows.append({"query": mended(row["query"]), "positives": [positive], "negatives": negatives})
    return rows


def supervised(data: Path, fraction: float, generator: random.Random, cache: Path) -> list[dict[str, Any]]:
    """All labelled queries in random order."""
    rows = []
    for name in MS_MARCO:
        rows += filled(labelled(data, name), generator) * MS_MARCO_REPEATS
    rows += filled(labelled(data, "wikiqa_train"), generator)
    rows += filled(medquad(data, int(MEDQUAD_QUESTIONS * fraction) or 1, generator, cache), generator)
    generator.shuffle(rows)
    return rows[: max(int(len(rows) * fraction), 16)]


# ---- files and commands ----------------------------------------------------------------------------


def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes JSON Lines, whole or not at all; returns the number of rows."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    os.replace(temporary, path)
    return count


def commands(data: Path, work: Path, fraction: float) -> list[list[str]]:
    """CPT, SFT of its result, and the measurement before and after."""
    python = [sys.executable, "-m"]
    evaluate = [*python, "modeling_tsarank.cli", "evaluate"]
    resume = ["--resume_from_checkpoint", "auto"]
    collection = data / "beir" / "trec-dl-19"
    measure = ["--dataset", str(collection), "--first-stage", str(collection / "runs" / "bm25.top100.trec")]
    if fraction < 1:
        measure += ["--limit-queries", "1", "--top-k", "10"]
    rows, steps = max(int(CPT_ROWS * fraction), 16), max(int(SFT_STEPS * fraction), 2)
    ranker = work / "sft-model"
    cpt = ["--config", "smollm2-135m-cpt-cpu", "--max_train_rows", str(rows), *resume]
    cpt += ["--train_data", str(work / "cpt.jsonl"), "--output_dir", str(work / "cpt-model")]
    sft = ["--config", "smollm2-135m-sft-cpu", "--max_steps", str(steps), *resume]
    sft += ["--model_name_or_path", str(work / "cpt-model")]
    sft += ["--train_data", str(work / "sft.jsonl"), "--output_dir", str(ranker)]
    return [
        [*python, "modeling_tsarank.trainers.cpt", *cpt],
        [*python, "modeling_tsarank.trainers.sft", *sft],
        [*evaluate, "--model", str(ranker), *measure, "--output", str(work / "trained")],
        [*evaluate, *measure, "--output", str(work / "zero-shot")],
    ]


def main() -> int:
    """Writes the data, shows the commands and, if asked to, runs them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for data and models")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the data and of the updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", action="store_true", help="run the commands")
    args = parser.parse_args()
    if not os.environ.get("TSARANK_DATA"):
        parser.error("the environment variable TSARANK_DATA must name the folder of data")
    if not 0 < args.fraction <= 1:
        parser.error(f"--fraction must lie in 0 (excluded) to 1, got {args.fraction}")
    data, generator = Path(os.environ["TSARANK_DATA"]).resolve(), random.Random(args.seed)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    pairs = write(work / "cpt.jsonl", weak_pairs(data, max(int(CPT_PAIRS * args.fraction), 70), generator))
    rows = write(work / "sft.jsonl", supervised(data, args.fraction, generator, work / "indexes"))
    sys.stdout.write(f"cpt.jsonl: {pairs} pairs; sft.jsonl: {rows} queries\n")
    for command in commands(data, work, args.fraction):
        sys.stdout.write(f"\n{shlex.join(command)}\n")
        sys.stdout.flush()
        if args.run:
            started = time.monotonic()
            subprocess.run(command, check=True)
            sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
