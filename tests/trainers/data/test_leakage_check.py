"""What a test collection has, exactly or nearly, stays out of every kind of training data, and the counts are kept."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import render_card
from modeling_tsarank.trainers.data.commands import register_commands
from modeling_tsarank.trainers.data.filters_leakage import SimilarQueries
from modeling_tsarank.trainers.data.provenance import (
    recorded_origin,
    recorded_training_data,
    teacher_facts,
    write_report,
)
from modeling_tsarank.trainers.training_record import describe_data


TEST_QUERIES = [
    "how long does a flea live",
    "which bridges did the romans build over the river in the north of spain before the year 100",
    "define visceral",
]
TEST_PASSAGE = (
    "An adult flea lives for two to three months on a dog or a cat and lays up to fifty eggs a day in the fur of its "
    "host from where they fall to the ground and hatch after a week"
)
LEAKED_QUERIES = {
    "exact": "How long does a flea live?",
    "another order": "a flea: how long does live",
    "inflected": "how long do fleas live",
    "a short one, shorter": "visceral defined",
    "one word changed": TEST_QUERIES[1].replace("bridges", "aqueducts"),
    "one word in front": f"question {TEST_QUERIES[1]}",
    "a passage": TEST_PASSAGE,
}
LEAKED_PASSAGES = {
    "exact": TEST_PASSAGE.upper(),
    "near": TEST_PASSAGE.replace("fifty", "forty"),
    "inside a longer text": f"Of pets. {' '.join(f'word{n}' for n in range(60))} {TEST_PASSAGE} {'and so on ' * 30}",
    "a query": TEST_QUERIES[1],
}
CLEAN_QUERIES = [f"how many loaves of kind{n} bread{n} rise" for n in range(6)]
CLEAN_PASSAGES = [
    f"The bread{n} of kind{n} rises in oven{n} at {n} degrees, and loaves cool on rack{n}." for n in range(12)
]


def write_jsonl(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    folder = tmp_path / "fleas"
    write_jsonl(folder / "queries.jsonl", [{"_id": f"t{n}", "text": text} for n, text in enumerate(TEST_QUERIES)])
    passages = [TEST_PASSAGE, "Another passage of the test collection about the plague and its long history in towns."]
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"p{n}", "text": text} for n, text in enumerate(passages)])
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [*CLEAN_PASSAGES, *LEAKED_PASSAGES.values()]
    return write_jsonl(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)])


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    rows = [
        {"_id": f"q{n}", "text": text, "metadata": {"query_type": "cropped", "docid": f"d{n}"}}
        for n, text in enumerate([*CLEAN_QUERIES, *LEAKED_QUERIES.values()])
    ]
    return write_jsonl(tmp_path / "queries.jsonl", rows)


@pytest.fixture
def bi_encoder(make_bi_encoder: Any, tmp_path: Path) -> str:
    return f"dense:{make_bi_encoder(tmp_path)}"


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    register_commands(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def check_texts(texts: list[str]) -> None:
    assert texts
    for leaked in (LEAKED_QUERIES, LEAKED_PASSAGES):
        for how, text in leaked.items():
            assert text not in texts, how


def test_lists_have_no_query_and_no_passage_of_a_test_collection(tests, corpus, queries, bi_encoder, tmp_path, capsys):
    out = tmp_path / "lists"
    arguments = ["lists", "--corpus", corpus, "--queries", queries, "--output", out, "--list-size", 16]
    arguments += ["--teacher-scores", bi_encoder, "--device", "cpu", "--first-stages", bi_encoder]
    arguments += ["--index-cache", tmp_path / "indexes", "--validation-share", 0]
    assert run(*arguments) == 0
    unchecked = json.loads((out / "provenance.json").read_text())
    assert unchecked["leakage"] is None
    assert unchecked["splits"]["train"] == len(CLEAN_QUERIES) + len(LEAKED_QUERIES)
    assert "**not** checked" in render_card(unchecked)
    capsys.readouterr()

    assert run(*arguments, "--leakage", tests, "--teacher-trained-on", "MS MARCO") == 0
    assert "left out by --leakage: queries" in capsys.readouterr().out
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(out / "data" / "train-00000-of-00001.parquet").to_pylist()
    assert {row["query"] for row in rows} == set(CLEAN_QUERIES)
    check_texts([row["query"] for row in rows])
    documents = [document["text"] for row in rows for document in row["documents"]]
    check_texts(documents)
    assert set(documents) <= set(CLEAN_PASSAGES)
    record = json.loads((out / "provenance.json").read_text())
    leakage = record["leakage"]
    assert leakage["checked_against"] == {"fleas": {"queries": 3, "documents": 2}}
    assert leakage["queries_left_out"] == len(LEAKED_QUERIES)
    assert leakage["documents_left_out"] > 0
    assert sum(leakage["found"].values()) >= len(LEAKED_QUERIES) + 2
    assert {reason.partition("_")[0] for reason in leakage["found"]} >= {"exact", "near", "similar", "run"}
    assert record["teachers"] == [{"name": "bi-encoder", "trained_on": "MS MARCO"}]
    card = render_card(record)
    for part in (
        "fleas (3 queries, 2 documents)",
        f"{len(LEAKED_QUERIES)} queries got no list",
        "trained on MS MARCO",
    ):
        assert part in card
    assert recorded_origin(out / "data")["teachers"] == record["teachers"]
    assert describe_data(str(out / "data")).items() >= recorded_origin(out).items()
    assert "fleas" in describe_data(str(out / "data" / "train-00000-of-00001.parquet"))["leakage"]["checked_against"]

    only_leaked = [
        row for row in map(json.loads, queries.read_text().splitlines()) if row["text"] not in CLEAN_QUERIES
    ]
    arguments[4] = write_jsonl(tmp_path / "leaked.jsonl", only_leaked)
    with pytest.raises(InputError, match="all 7 queries are"):
        run(*arguments, "--leakage", tests)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows whose queries, positives or negatives leak, one way at a time, and clean ones."""
    clean = iter(CLEAN_PASSAGES * 10)
    made = [
        {"query": text, "positives": [next(clean)], "negatives": [next(clean)]} for text in LEAKED_QUERIES.values()
    ]
    for number, text in enumerate(LEAKED_PASSAGES.values()):
        query = CLEAN_QUERIES[number]
        made.append({"query": f"{query} positive", "positives": [text], "negatives": [next(clean)]})
        made.append({"query": f"{query} negative", "positives": [next(clean)], "negatives": [text]})
        made.append(
            {
                "query": f"{query} both",
                "positives": [next(clean), text],
                "negatives": [next(clean), CLEAN_PASSAGES[-1]],
            }
        )
    return write_jsonl(tmp_path / "rows.jsonl", made)


def test_scored_rows_have_no_text_of_a_test_collection(tests, rows, bi_encoder, tmp_path):
    out = tmp_path / "scored.jsonl"
    arguments = ["scores", rows, "--teacher", bi_encoder, "--device", "cpu", "--output", out]
    assert run(*arguments, "--leakage", tests) == 0
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["query"] for row in kept] == [f"{query} both" for query in CLEAN_QUERIES[:4]]
    check_texts([row["query"] for row in kept])
    check_texts([document["text"] for row in kept for side in ("positives", "negatives") for document in row[side]])
    assert all(len(row["positives"]) == len(row["positive_scores"]) == 1 for row in kept)
    report = json.loads((tmp_path / "scored.report.txt").read_text())
    assert report["rows"] == 4
    assert report["rows_before"] == 7 + 12
    origin = recorded_origin(out)
    assert origin["leakage"]["checked_against"] == {"fleas": {"queries": 3, "documents": 2}}
    assert origin["teachers"] == [{"name": "bi-encoder", "trained_on": None}]

    # What was checked once stays recorded when the rows are scored again, and goes when they are changed.
    again = tmp_path / "again.jsonl"
    assert run("scores", out, "--teacher", bi_encoder, "--device", "cpu", "--output", again) == 0
    assert recorded_origin(again)["leakage"] == origin["leakage"]
    again.write_text(again.read_text() + "\n")
    assert recorded_origin(again) == {"teachers": None, "leakage": None}
    with pytest.raises(InputError, match="rows are left out because of the test collections"):
        run(
            "scores",
            write_jsonl(tmp_path / "few.jsonl", [json.loads(rows.read_text().splitlines()[0])]),
            *arguments[2:],
            "--leakage",
            tests,
        )


def test_mined_rows_have_no_text_of_a_test_collection(tests, corpus, queries, tmp_path):
    out = tmp_path / "mined.jsonl"
    arguments = ["mine", "--corpus", corpus, "--queries", queries, "--depth", 15, "--count", 5, "--sampling", "top"]
    assert run(*arguments, "--index-cache", tmp_path / "i", "--output", out, "--leakage", tests) == 0
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["query"] for row in kept} == set(CLEAN_QUERIES)
    check_texts([document["text"] for row in kept for side in ("positives", "negatives") for document in row[side]])
    report = json.loads((tmp_path / "mined.report.txt").read_text())
    assert report["rows"] == len(kept)
    assert report["negatives"] == sum(len(row["negatives"]) for row in kept)
    assert report["rows"] + sum(report["lost"].values()) == report["queries"]
    assert recorded_origin(out)["leakage"]["found"]


def test_made_queries_are_none_of_a_test_collection(tests, tmp_path):
    texts = [
        f"Some words of kind{n}. {text}. And other words of kind{n} follow."
        for n, text in enumerate(LEAKED_QUERIES.values())
    ]
    texts += [f"The first sentence{n} of many. Bread{n} rises slowly in the warm oven{n}." for n in range(10)]
    corpus = write_jsonl(tmp_path / "passages.jsonl", [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)])
    arguments = ["queries", "cropped", "--corpus", corpus, "--count", 60, "--max-words", 60, "--per-passage", 3]
    assert run(*arguments, "--output", tmp_path / "all.jsonl") == 0
    assert run(*arguments, "--output", tmp_path / "clean.jsonl", "--leakage", tests) == 0
    made = {
        name: {json.loads(line)["text"] for line in (tmp_path / f"{name}.jsonl").open()} for name in ("all", "clean")
    }
    assert any("flea" in text for text in made["all"])
    assert not [text for text in made["clean"] if "flea" in text or "romans" in text or "visceral" in text]
    assert any("Bread" in text for text in made["clean"])
    report = json.loads((tmp_path / "clean.report.txt").read_text())
    assert report["rejected"]["in a test collection"] >= 5
    assert report["leakage"]["checked_against"] == {"fleas": {"queries": 3, "documents": 2}}


WORDS = [f"word{n}" for n in range(12)]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([0.5, 0.6, 0.7, 0.75, 1.0]), st.integers(0, 10_000))
def test_similar_queries_are_those_that_comparing_each_with_each_finds(threshold, seed):
    generator = random.Random(seed)
    remembered = [generator.sample(WORDS, generator.randint(1, 7)) for _ in range(15)]
    index = SimilarQueries(threshold)
    index.add([" ".join(words) for words in remembered], 3)
    for _ in range(15):
        words = generator.sample(WORDS, generator.randint(1, 7))
        shares = [len({*words} & {*other}) / len({*words} | {*other}) for other in remembered]
        assert index.find(words) == (3 if max(shares) >= threshold - 1e-9 else None)


def test_a_teacher_is_recorded_with_what_it_was_trained_on(tmp_path):
    assert teacher_facts(["ce:a", "folder/b"], ["MS MARCO", ""]) == [
        {"name": "a", "trained_on": "MS MARCO"},
        {"name": "b", "trained_on": None},
    ]
    with pytest.raises(InputError, match="one text per teacher: 1 teachers, 2 texts"):
        teacher_facts(["a"], ["x", "y"])
    (tmp_path / "README.md").write_text("---\ndatasets:\n- ms_marco\n- s2orc\n---\n# A card\n")
    assert recorded_training_data(str(tmp_path)) == "ms_marco, s2orc"
    (tmp_path / "README.md").write_text("---\ndatasets: [\n---\n")
    assert recorded_training_data(str(tmp_path)) is None
    first = {"data": {"name": "pairs.jsonl"}, "started_from": {"training": None}}
    second = {"data": {"name": "lists", "teachers": [{"name": "big"}]}, "started_from": {"training": first}}
    (tmp_path / "training_run.json").write_text(json.dumps(second))
    assert recorded_training_data(str(tmp_path)) == "pairs.jsonl, big, lists"
    assert "train.jsonl" in recorded_training_data("tsarank-smollm2-135m")
    assert recorded_training_data("org/never-downloaded") is None
    assert recorded_training_data("not a name at all?") is None


def test_records_that_are_damaged_or_of_another_file_say_nothing(tmp_path):
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"query": "q"}])
    nothing = {"teachers": None, "leakage": None}
    assert recorded_origin(rows) == nothing
    write_report(rows, {"teachers": [{"name": "t"}], "leakage": None})
    assert recorded_origin(rows) == {"teachers": [{"name": "t", "trained_on": None}], "leakage": None}
    for content in ("{", "[1]", '{"file": 3}', '{"file": {"sha256": "x"}}'):
        (tmp_path / "rows.report.txt").write_text(content)
        assert recorded_origin(rows) == nothing
    (tmp_path / "provenance.json").write_text("no JSON")
    assert recorded_origin(tmp_path) == nothing
    (tmp_path / "provenance.json").write_text(json.dumps({"teachers": "t", "filters": [{"filter": "length"}]}))
    assert recorded_origin(tmp_path) == nothing
