"""Command lines for the fuzz: a valid one for every command, and ways to make one odd."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path


# `@name` is a valid file, `%name` something in the output folder; every other word stands as it is.
_MODEL = "--model @model --device cpu --dtype float32"
_PLACE = "--device cpu --dtype float32"
COMMANDS = {
    "rank": [
        f"--query bread --documents @documents.jsonl {_MODEL}",
        f"--query bread --documents @documents.jsonl.gz --json {_MODEL}",
        f"--query bread --documents @documents.txt --store @store {_MODEL}",
        f"--query bread --documents @documents.txt --calibration @calibration.json --threshold 0.5 {_MODEL}",
        "--candidates @a.trec --queries @beir/queries.jsonl --documents @beir/corpus.jsonl --fusion @fusion.json "
        f"--output %out {_MODEL}",
    ],
    "index": [
        f"--documents @documents.txt --store %store {_MODEL}",
        f"--documents @documents.txt --store @store {_MODEL}",
    ],
    "score": [
        f"--pairs @pairs.jsonl --output %out --keep id {_MODEL}",
        f"--pairs @pairs.parquet @pairs.jsonl --output %out {_MODEL}",
    ],
    "serve": [
        f"--port 0 --max-documents 10 --timeout 5 --max-body 1MB {_MODEL}",
        f"--port 0 --host 127.0.0.1 --store @store {_MODEL}",
        f"--port 0 --documents @documents.txt --store %store {_MODEL}",
    ],
    "doctor": [f"--json {_MODEL}", f"--timeout 0.5 {_MODEL}"],
    "export": [f"--output %out {_MODEL}"],
    "describe": [f"@model {_PLACE}", f"@model --json {_PLACE}"],
    "evaluate": [
        f"--dataset @beir --top-k 4 --output %out --quiet {_MODEL}",
        f"--dataset @beir --first-stage @a.trec --top-k 4 --output %out --quiet --interpolate @fusion.json {_MODEL}",
        "--corpus @beir/corpus.jsonl --queries @beir/queries.jsonl --qrels @beir/qrels/test.tsv --top-k 3 "
        f"--measures ndcg@10 map --output %out --quiet {_MODEL}",
    ],
    "compare": [
        "@a.trec @b.trec --qrels @beir/qrels/test.tsv --resamples 200",
        "--pair one @a.trec @b.trec @beir/qrels/test.tsv --json --measure map --resamples 50",
    ],
    "tune-fusion": ["@a.trec @b.trec --qrels @beir/qrels/test.tsv --steps 3 --output %fusion.json"],
    "calibrate": ["@a.trec --qrels @beir/qrels/test.tsv --output %calibration.json --plot %plot.svg"],
    "frontier": ["@results --output %frontier.json --plot %frontier.svg"],
    "data weak-pairs": [
        "--config @weak.yaml --output %out",
    ],
    "data queries cropped": ["--corpus @passages.jsonl --count 3 --min-words 1 --output %queries.jsonl"],
    "data queries generated": [
        "--corpus @beir/corpus.jsonl --count 1 --min-words 1 --max-new-tokens 3 --model @model --output %q.jsonl "
        f"{_PLACE}"
    ],
    "data lists": [
        "--corpus @passages.jsonl --queries @cropped.jsonl --list-size 3 --teacher-url SERVER --teacher-model m "
        "--teacher-options tries=1 timeout=0.3 --output %out",
        "--corpus @passages.jsonl --queries @cropped.jsonl --list-size 3 --teacher-scores @model --output %out "
        f"{_PLACE}",
    ],
    "data scores": [f"@sft.jsonl --teacher @model --output %scored.jsonl {_PLACE}"],
    "data mine": [
        "--dataset @beir --split test --depth 6 --count 2 --output %mined.jsonl",
        "--corpus @passages.jsonl --queries @cropped.jsonl --depth 6 --count 2 --output %mined.jsonl",
    ],
    "recipe prepare": [
        "@raw/plan.yaml --data @raw --output %out",
        "@raw/development.yaml --data @raw --output %out",
    ],
    "recipe release": ["--adapters @adapter --ranker @model --output %release"],
    "train cpt": [
        "--model_name_or_path @model --train_data @cpt.jsonl --output_dir %out --max_steps 1 --use_cpu true "
        "--report_to none"
    ],
    "train sft": [
        "--model_name_or_path @model --train_data @sft.jsonl --output_dir %out --max_steps 1 --use_cpu true "
        "--report_to none --num_negatives 2"
    ],
    "train distill": [
        "--model_name_or_path @model --train_data @distill.jsonl --output_dir %out --max_steps 1 --use_cpu true "
        "--report_to none --family query_likelihood"
    ],
    "publish model": [
        "@model me/ranker --dry-run --license mit",
        "@model me/ranker --dry-run --license mit --results @results",
    ],
    "publish dataset": ["@weak-set me/pairs --dry-run", "@sft.jsonl me/pairs --dry-run --license mit"],
    "publish metric": ["me/ndcg --dry-run"],
    "publish space": ["me/space --dry-run"],
}
OUTPUTS = ("--output", "--store", "--output_dir", "--card", "--cache", "--cache-dir", "--index-cache")
ODD_WORDS = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "-1",
    "0",
    "1",
    "1.5",
    "1e999",
    "9" * 5000,
    "x" * 5000,
    "\ud800",
    "a\0b",
    "\x1b[31m",
    "\u202e",
    "é" * 300,
    "{}",
    "[]",
    "null",
    "'",
    '"',
    "%s",
    "{0}",
    "--",
    "-",
    "=",
    "*",
    "~",
    "~nobody/x",
    "$HOME",
    ":",
    "bm25",
    "dense:",
    "rrf:",
    "splade:nowhere",
    "rerank:",
    "ce:",
    "dense:nowhere",
    "ir_datasets:x",
    "me/x",
    "nowhere/nothing",
    "http://127.0.0.1:9/v1",
    "http://a b/",
    "ftp://x",
    "http://[::1",
    "//x",
    "ndcg@",
    "ndcg@-1",
    "map@x",
    "ndcg@" + "9" * 400,
    "P@1e9",
    "float8",
    "int8",
    "cuda:99",
    "meta",
    "en",
    "xx",
    "defaults",
    "last",
    "auto",
    "0.5,0.5",
    "2026-13-01",
    "\uff21\uff22",
    "1_000",
    "+1",
    "0x10",
    "a=b=c",
    "./",
    "a/b/c/d",
    "a" * 97 + "/b",
]


def leaf_parsers(parser: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that runs, by its words."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, one in action.choices.items():
            yield from leaf_parsers(one, f"{words} {name}".strip())


def odd_words(words: list[str], parser: argparse.ArgumentParser, generator: random.Random, out: Path) -> list[str]:
    """A command line with one or two things made odd."""
    words = list(words)
    for _ in range(generator.choice([1, 1, 1, 2])):
        place = generator.randrange(len(words)) if words else 0
        how = generator.random()
        before = words[place - 1] if place else ""
        if how < 0.5 and words and not words[place].startswith("--") and before != "--tries":
            writes = before in OUTPUTS or words[place].startswith(str(out))
            words[place] = _odd_output(out, generator) if writes else generator.choice(ODD_WORDS)
        elif how < 0.8:
            options = [
                a
                for a in parser._actions
                if a.option_strings and a.dest not in ("help", "debug", "model", "public", "tries")
            ]
            if options:
                option = generator.choice(options)
                words += [option.option_strings[-1]]
                if option.nargs != 0:
                    writes = option.option_strings[-1] in OUTPUTS
                    words += [_odd_output(out, generator) if writes else generator.choice(ODD_WORDS)]
        elif how < 0.9 and words and before != "--model" and not words[place].endswith(("--model", "/model")):
            del words[place]
        elif how < 0.95:
            words.insert(place, generator.choice(["--nonsense", "-x", "--", "extra", "-", "--top-k=", "--help-all"]))
        else:
            words += words[place : place + 2]
    return [word for word in words if word != "--help-all"]


def _odd_output(out: Path, generator: random.Random) -> str:
    """A place where no output can or should go; nothing outside of the case's own folder."""
    (out.parent / "file").write_text("already here\n")
    names = [
        "file",
        "file/x",
        "a/b/c",
        "x" * 300,
        "a\0b",
        "\udcff",
        "é \n",
        " ",
        "out/.",
        "",
        "deep/" * 40 + "x",
        "null",
    ]
    return (
        str(out.parent / "places" / generator.choice(names))
        if generator.random() < 0.5
        else str(out.parent / generator.choice(["file", "file/x", "file/x/y"]))
    )
