"""Several teachers as one: z-scores within each list, averaged with weights."""

from __future__ import annotations

import json

import pyarrow.parquet
import pytest

from modeling_tsarank.cli import main
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import render_card
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer, MixedScorer, ScoringTeacher, teacher_scorer


DOCUMENTS = ["flour yeast dough", "ice valley", "dough crust knead", "ship crane", "bread oven"]
LISTS = [("dough", DOCUMENTS), ("ice", DOCUMENTS[::-1]), ("a ship", DOCUMENTS[1:4])]


@pytest.fixture
def cache(tmp_path):
    return RequestCache(tmp_path / "cache.jsonl")


@pytest.fixture
def teachers(tmp_path, make_ranker, make_bi_encoder):
    make_ranker("tsarank").save_pretrained(tmp_path / "ranker")
    return [str(tmp_path / "ranker"), f"dense:{make_bi_encoder(tmp_path)}"]


def mixed_by_hand(parts, weights):
    """The mean of z-scores, in loops."""
    columns = []
    for scores in parts:
        mean = sum(scores) / len(scores)
        deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
        columns.append([(score - mean) / deviation for score in scores])
    total = sum(weights)
    return [
        sum(w * value for w, value in zip(weights, row, strict=True)) / total for row in zip(*columns, strict=True)
    ]


def test_a_mixture_is_the_weighted_mean_of_the_z_scores(cache, teachers):
    alone = [CachedScorer(name, cache, device="cpu", dtype="float32") for name in teachers]
    parts = [list(scorer.scores_of(LISTS)) for scorer in alone]
    mixture = teacher_scorer(teachers, [3, 1], cache, device="cpu", dtype="float32")
    found = list(mixture.scores_of(LISTS))
    for place in range(len(LISTS)):
        expected = mixed_by_hand([part[place] for part in parts], [3, 1])
        assert found[place] == pytest.approx(expected, abs=1e-9)
    assert mixture.weights == [0.75, 0.25]
    assert mixture.name == "ranker+dense:bi-encoder"
    orders = [ordering.permutation for ordering in ScoringTeacher(mixture).order_many(LISTS)]
    assert orders == [sorted(range(len(scores)), key=lambda place: -scores[place]) for scores in found]
    # Equal weights where none are given, and these are not the scores of either teacher.
    plain = next(teacher_scorer(teachers, None, cache, device="cpu", dtype="float32").scores_of(LISTS))
    assert plain == pytest.approx(mixed_by_hand([part[0] for part in parts], [1, 1]), abs=1e-9)
    assert plain != pytest.approx(found[0], abs=1e-2)


def test_a_teacher_that_says_nothing_leaves_the_order_to_the_other(cache, teachers):
    ranker = CachedScorer(teachers[0], cache, device="cpu", dtype="float32")
    other = CachedScorer(teachers[1], cache, device="cpu")
    copies = [("dough", [DOCUMENTS[0], DOCUMENTS[0]])]
    assert list(MixedScorer([ranker, other]).scores_of(copies)) == [[0.0, 0.0]]
    only = next(MixedScorer([ranker, other], [1, 0]).scores_of(LISTS))
    assert only == pytest.approx(mixed_by_hand([next(ranker.scores_of(LISTS))], [1]), abs=1e-9)
    # The cache is what a scorer answers from: here with one score for all documents.
    query, texts = LISTS[0]
    cache.add({other._work._key(query, texts): [0.5] * len(texts)})
    silent = next(MixedScorer([ranker, other]).scores_of([(query, texts)]))
    assert silent == pytest.approx([score / 2 for score in only], abs=1e-9)


def test_wrong_weights(cache, teachers):
    with pytest.raises(InputError, match="every teacher needs a weight: 2 teachers, 3 weights"):
        teacher_scorer(teachers, [1, 2, 3], cache)
    for weights in ([0, 0], [1, -1], [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(InputError, match="weights must be 0 or more, and not all 0"):
            teacher_scorer(teachers, weights, cache)
    with pytest.raises(InputError, match="with one, leave them out"):
        teacher_scorer(teachers[:1], [1], cache)
    for again in (teachers[0], f"{teachers[0]}/"):
        with pytest.raises(InputError, match="a teacher is given twice"):
            teacher_scorer([teachers[0], again], None, cache)
    assert isinstance(teacher_scorer(teachers[:1], None, cache), CachedScorer)


def test_lists_and_rows_of_two_teachers(tmp_path, teachers, cache, capsys):
    """Both commands take several teachers, and record who they were and how much each counts."""
    texts = [*DOCUMENTS, "crane harbour", "yeast bread"]
    lines = "".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    (tmp_path / "corpus.jsonl").write_text(lines)
    queries = [{"_id": "a", "text": "dough bread yeast"}, {"_id": "b", "text": "ice ship crane"}]
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    place = ["--device", "cpu", "--dtype", "float32", "--teacher-weights", "2", "1"]
    place += ["--max-length", "40", "--max-query-length", "2"]
    both = ["--teacher-scores", teachers[0], "--teacher-scores", teachers[1]]
    arguments = ["data", "lists", "--corpus", str(tmp_path / "corpus.jsonl"), "--list-size", "4"]
    arguments += ["--queries", str(tmp_path / "queries.jsonl"), "--output", str(tmp_path / "lists")]
    assert main([*arguments, *both, *place]) == 0
    rows = [
        row
        for path in sorted((tmp_path / "lists" / "data").glob("*.parquet"))
        for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    assert {row["query_id"] for row in rows} == {"a", "b"}
    # A query of three words is cut for the ranker; the bi-encoder has no such option.
    lengths = {"max_length": 40, "max_query_length": 2}
    mixture = teacher_scorer(teachers, [2, 1], cache, device="cpu", dtype="float32", **lengths)
    whole = teacher_scorer(teachers, [2, 1], cache, device="cpu", dtype="float32")
    for row in rows:
        given = [document["text"] for document in row["documents"]]
        scores = next(mixture.scores_of([(row["query"], given)]))
        assert row["teacher_scores"] == pytest.approx(scores, abs=1e-4)
        assert scores != pytest.approx(next(whole.scores_of([(row["query"], given)])), abs=1e-3)
        assert row["teacher"] == "ranker+dense:bi-encoder"
    record = json.loads((tmp_path / "lists" / "provenance.json").read_text())
    assert record["teacher"]["weights"] == "0.6667, 0.3333"
    assert (record["usage"]["requests"], record["usage"]["answers"]) == (2, 2), "lists, however many teachers"
    assert "| weights | 0.6667, 0.3333 |" in render_card(record)

    training = [{"query": "dough", "pos": [DOCUMENTS[0]], "neg": DOCUMENTS[1:]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training))
    scored = tmp_path / "scored.jsonl"
    named = ["--teacher", teachers[0], "--teacher", teachers[1], *place]
    assert main(["data", "scores", *named, "--output", str(scored), str(tmp_path / "rows.jsonl")]) == 0
    row = json.loads(scored.read_text())
    assert row["positive_scores"] + row["negative_scores"] == pytest.approx(
        next(mixture.scores_of(LISTS[:1])), abs=1e-5
    )
    capsys.readouterr()
    wrong = [*arguments, "--teacher-local", teachers[0], "--teacher-weights", "1", "2"]
    assert main(wrong) == 2
    assert "needs several teachers that score" in capsys.readouterr().err
