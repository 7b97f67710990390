"""`tsarank rank --candidates` and `rank(first_stage_scores=)` give the run that `tsarank evaluate --fusion` gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_tsarank import load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.eval.run_files import ranked, read_run


@pytest.mark.parametrize("fusion", [[], ["--fusion", "0.3"], ["--fusion", "fusion.json"]])
def test_the_same_run_as_an_evaluation(
    small_folder: Path, tiny_llama: Path, tmp_path: Path, fusion: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fusion.json").write_text('{"weight": 0.6, "normalization": "zscore"}')
    model = ["--model", str(tiny_llama), "--device", "cpu", "--dtype", "float32"]
    evaluated = ["evaluate", "--dataset", str(small_folder), "--output", "out", "--top-k", "8", "--quiet"]
    assert main([*evaluated, *model, *fusion, "--cache-dir", "cache"]) == 0
    folder = tmp_path / "out" / small_folder.name
    files = ["--queries", str(small_folder / "queries.jsonl"), "--documents", str(small_folder / "corpus.jsonl")]
    candidates = folder / "first_stage.trec"
    assert main(["rank", *files, "--candidates", str(candidates), "--output", "new.trec", *model, *fusion]) == 0
    expected, found, first = (read_run(path) for path in (folder / "run.trec", tmp_path / "new.trec", candidates))
    assert found.keys() == expected.keys()
    for query, scores in expected.items():
        assert found[query].keys() == scores.keys()
        names = list(scores)
        np.testing.assert_allclose([found[query][one] for one in names], list(scores.values()), atol=1e-4)
        if len({round(score, 4) for score in scores.values()}) == len(scores):
            assert ranked(found[query]) == ranked(scores)

    if fusion:
        from modeling_tsarank.eval.collections import load_collection

        collection, ranker = load_collection(str(small_folder)), load_ranker(str(tiny_llama), dtype="float32")
        query = next(iter(expected))
        names = ranked(first[query])
        how: Any = {"weight": 0.3} if fusion[1] == "0.3" else {"fusion": fusion[1]}
        texts = [collection.documents[one].full_text for one in names]
        rows = ranker.rank(
            collection.queries[query], texts, first_stage_scores=[first[query][one] for one in names], **how
        )
        own = {names[row["corpus_id"]]: row["score"] for row in rows}
        np.testing.assert_allclose([own[one] for one in names], [expected[query][one] for one in names], atol=1e-4)


def test_what_does_not_belong_together_is_one_line(small_folder: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run.trec"
    run.write_text("q0 Q0 nowhere 1 3.0 x\n")
    files = ["rank", "--documents", str(small_folder / "corpus.jsonl")]
    many = ["--queries", str(small_folder / "queries.jsonl"), "--candidates", str(run)]
    for arguments, message in (
        ([], "give either --query, or --candidates for many queries"),
        (["--query", "a", *many], "give either --query, or --candidates"),
        (many, "--candidates and --output need each other"),
        (["--query", "a", *many[:2], "--output", "o"], "--candidates and --output need each other"),
        ([*many[2:], "--output", "o"], "give --query with --documents, or --candidates alone"),
        ([*many, "--output", "o"], "the document 'nowhere' is not in"),
        ([*many, "--output", "o", "--json"], "--json has no effect on --candidates"),
        (["--query", "a", *many[:2]], "--queries has no effect on --query"),
        (["--query", "a", "--fusion", "0.5"], "has no first_stage_score (or score), which --fusion needs"),
        (["--query", "a", "--fusion", "nowhere.json"], "no such file: nowhere.json"),
    ):
        assert main([*files, *arguments]) == 2, arguments
        assert message in capsys.readouterr().err

    assert main(["rank", "--candidates", str(run), "--output", "o"]) == 2
    assert f"{run} holds no texts; give --queries and --documents" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["rank_llm", "pyserini"])
def test_candidates_that_bring_their_texts(tiny_llama: Path, tmp_path: Path, layout: str, capsys: Any) -> None:
    """rank_llm's requests, and its older form out of Pyserini's hits."""
    texts = {"d1": "the matter of bread", "d2": "how a flea jumps", "d3": "a pilot"}
    lists = {"q1": ("how does bread matter", ["d1", "d2"]), "q2": ("flea", ["d3", "d2"])}
    with (tmp_path / "run.jsonl").open("w") as file:
        for query, (text, names) in lists.items():
            if layout == "rank_llm":
                rows = [
                    {"docid": one, "score": 9.0 - at, "doc": {"contents": texts[one]}} for at, one in enumerate(names)
                ]
                record: Any = {"query": {"text": text, "qid": query}, "candidates": rows}
            else:
                hits = [
                    {"qid": query, "docid": one, "rank": at + 1, "content": texts[one]} for at, one in enumerate(names)
                ]
                record = {"query": text, "hits": hits}
            file.write(json.dumps(record) + "\n")
    model = ["--model", str(tiny_llama), "--device", "cpu", "--dtype", "float32"]
    run = ["rank", "--candidates", str(tmp_path / "run.jsonl"), "--output", str(tmp_path / "new.trec"), *model]
    assert main(run) == 0
    found, ranker = read_run(tmp_path / "new.trec"), load_ranker(str(tiny_llama), dtype="float32")
    for query, (text, names) in lists.items():
        expected = ranker.predict([(text, texts[one]) for one in names])
        np.testing.assert_allclose([found[query][one] for one in names], expected, atol=1e-4)
    (tmp_path / "run.jsonl").write_text('{"query": {"text": "a", "qid": "q"}, "candidates": [{"docid": "d"}]}')
    assert main(run) == 2
    assert "candidate 1 has no field 'text'; its fields are: docid" in capsys.readouterr().err
