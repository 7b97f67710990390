"""Development collections and training lists held apart from them, on self-written raw files."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from raw_files import Writer, write_gz, write_lines

from modeling_tsarank import cli
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.list_building import read_queries
from modeling_tsarank.trainers.recipe_files import RECIPES
from modeling_tsarank.trainers.recipes.development import (
    DevelopmentPlan,
    _Raw,
    prepare_development,
)
from modeling_tsarank.trainers.training_data import load_training_rows


DEVELOP = RECIPES.parent.parent / "benchmarks" / "develop.py"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A prepared development set: 12 graded queries, 8 with answers of their own, and lists with planted leaks."""
    folder, writer = tmp_path_factory.mktemp("development"), Writer(5)
    data = folder / "data"
    (exam_query, exam_text), graded = writer.pair(), [writer.pair() for _ in range(12)]
    write_lines(data / "beir" / "exam" / "corpus.jsonl", [{"_id": "1", "text": exam_text}])
    write_lines(data / "beir" / "exam" / "queries.jsonl", [{"_id": "1", "text": exam_query}])
    rows = [
        {"query": query, "passages": [{"text": text, "grade": 3}, {"text": writer.text(), "grade": 0}]}
        for query, text in graded
    ]
    rows.append({"query": exam_query, "passages": [{"text": writer.text(), "grade": 3}]})
    write_gz(data / "marco" / "graded.jsonl.gz", rows)
    answers = [
        {"query": query, "passages": [{"text": text, "grade": 4}, {"text": writer.text(), "grade": 1}]}
        for query, text in (writer.pair() for _ in range(8))
    ]
    write_gz(data / "marco" / "answers.jsonl.gz", answers)
    scored = [
        {
            "query": query,
            "passages": [{"text": text, "score": 9.5}, *({"text": writer.text(), "score": -n} for n in (1, 2))],
        }
        for query, text in (writer.pair() for _ in range(6))
    ]
    scored[0]["query"] = graded[0][0]
    scored[1]["passages"][1]["text"] = graded[1][1]
    scored[2]["passages"][2]["text"] = exam_text
    scored[3]["query"] = exam_query
    write_gz(data / "marco" / "scored.jsonl.gz", scored)
    pairs = [
        {"query": query, "positives": [text], "negatives": []} for query, text in (writer.pair() for _ in range(9))
    ]
    write_gz(data / "marco" / "pairs.jsonl.gz", pairs)
    with gzip.open(data / "marco" / "more.tsv.gz", "wt", encoding="utf-8") as file:
        file.write(f"1\t{pairs[0]['query']}\n2\t{graded[2][0]}\n3\tshort\n")
    plan = folder / "development.yaml"
    plan.write_text(
        yaml.safe_dump(
            {
                "leakage": ["$TSARANK_DATA/beir"],
                "collections": [
                    {"name": "graded", "files": ["marco/graded"], "candidates": 5},
                    {"name": "answers", "files": ["marco/answers"], "queries": 6, "lowest": 1},
                ],
                "lists": [
                    {"name": "scored", "files": ["marco/scored"]},
                    {"name": "pairs", "files": ["marco/pairs"], "mining": {"depth": 5, "count": 1}},
                ],
                "pools": [
                    {"name": "web", "passages": ["marco/scored"], "queries": ["marco/scored", "marco/more.tsv.gz"]},
                ],
            }
        )
    )
    report = prepare_development(plan, data, folder / "out")
    return SimpleNamespace(
        plan=plan, data=data, out=folder / "out", report=report, graded=graded, exam=(exam_query, exam_text)
    )


def test_a_development_query_whose_text_a_test_collection_has_is_left_out(made: SimpleNamespace) -> None:
    queries = {row["text"] for row in rows_of(made.out / "dev" / "graded" / "queries.jsonl")}
    assert queries == {query for query, _ in made.graded}
    assert made.report["leakage"]["development"]["found"] == {"exact_query:exam": 1}


def test_lists_hold_no_query_and_no_passage_of_development_or_test_collections(made: SimpleNamespace) -> None:
    dev = {row["text"] for path in (made.out / "dev").glob("*/*.jsonl") for row in rows_of(path)}
    rows = [row for path in (made.out / "lists").glob("*.jsonl") for row in rows_of(path)]
    texts = {row["query"] for row in rows} | {text for row in rows for text in row["documents"]}
    assert not texts & {*dev, *made.exam}
    assert made.report["lists"]["scored"]["lists"] == 4
    found = made.report["leakage"]["lists and pools"]["found"]
    assert {*found} >= {"exact_query:graded", "exact_document:graded", "exact_query:exam", "exact_document:exam"}


def test_candidates_are_bm25s_best_or_all_passages_of_the_query_and_the_lowest_grade_counts_nothing(
    made: SimpleNamespace,
) -> None:
    graded, answers = (load_collection(str(made.out / "dev" / name), "dev") for name in ("graded", "answers"))
    assert {len(one) for one in read_run(graded.runs["candidates"]).values()} <= {1, 2, 3, 4, 5}
    run = read_run(answers.runs["candidates"])
    assert len(run) == 6
    assert all(run[query].keys() == answers.qrels[query].keys() for query in run)
    assert {grade for one in answers.qrels.values() for grade in one.values()} == {0, 3}


def test_lists_are_read_by_the_trainers_with_their_scores_or_labels(made: SimpleNamespace) -> None:
    scored = load_training_rows(made.out / "lists" / "scored.jsonl")
    assert scored[0]["teacher_scores"][0] == 9.5
    pairs = load_training_rows(made.out / "lists" / "pairs.jsonl")
    assert all(sorted(row["labels"]) == [0.0, 1.0] for row in pairs)


def test_pools_hold_clean_passages_and_queries_with_the_file_they_come_from(made: SimpleNamespace) -> None:
    corpus = {row["text"] for row in rows_of(made.out / "pools" / "web" / "corpus.jsonl")}
    assert len(corpus) == 18 - 2
    assert not corpus & {made.exam[1], made.graded[1][1]}
    queries = read_queries([made.out / "pools" / "web" / "queries.jsonl"])
    assert Counter(query.query_type for query in queries) == {"scored": 4, "more.tsv.gz": 1}
    assert made.report["pools"]["web"]["queries kept out"] == 3


def test_a_source_named_development_cannot_be_trained_on() -> None:
    with pytest.raises(InputError, match="marco/a is for development"):
        DevelopmentPlan(
            ("beir",),
            ({"name": "a", "files": ("marco/a",)},),
            ({"name": "b", "files": ("marco/c",), "pool": ("marco/a",)},),
        )


def test_the_shipped_plan_is_understood_and_prepare_makes_what_it_says(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = RECIPES / "smollm2_135m" / "development.yaml"
    DevelopmentPlan(**yaml.safe_load(shipped.read_text()))
    command = ["prepare", str(made.plan), "--data", str(made.data), "--output", str(tmp_path / "again")]
    assert cli.main(["recipe", *command]) == 0
    assert json.loads(capsys.readouterr().out)["lists"] == made.report["lists"]
    assert json.loads((tmp_path / "again" / "counts.json").read_text())["files"] == made.report["files"]


# ---- benchmarks/develop.py -------------------------------------------------------------------------


@pytest.fixture
def develop() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_develop", DEVELOP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks_develop"] = module
    spec.loader.exec_module(module)
    return module


def arguments(made: SimpleNamespace, scores: Path, **options: Any) -> SimpleNamespace:
    defaults = {
        "models": [],
        "mix": [],
        "against": "bm25",
        "collections": None,
        "queries": None,
        "depth": 100,
        "max_length": 64,
    }
    return SimpleNamespace(development=made.out, scores=scores, **{**defaults, **options})


def test_a_mixture_of_opposites_is_measured_beside_its_members_and_scores_are_kept(
    develop: Any, made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qrels = {name: load_collection(str(made.out / "dev" / name), "dev") for name in ("graded", "answers")}
    relevant = {
        (one.queries[query], one.documents[document].text)
        for one in qrels.values()
        for query, grades in one.qrels.items()
        for document, grade in grades.items()
        if grade
    }
    loaded = []

    class Oracle:
        def __init__(self, sign: int) -> None:
            self.sign = sign

        def predict(self, pairs: list[tuple[str, str]]) -> Any:
            import numpy as np

            return np.array([self.sign * float(pair in relevant) for pair in pairs])

    def load(name: str, **options: Any) -> Oracle:
        loaded.append(name)
        return Oracle(1 if name == "best" else -1)

    monkeypatch.setattr(develop, "load_scorer", load)
    monkeypatch.setattr(develop, "scorer_identity", lambda name: {"model": name})
    given = arguments(
        made,
        tmp_path,
        models=["up=best", "down=worst"],
        mix=["mostly-up=up:0.8,down:0.2"],
        against="down",
    )
    report = develop.measure(given)
    systems = report["systems"]
    assert systems["up"]["mean"] == pytest.approx(1.0)
    assert systems["mostly-up"]["collections"] == systems["up"]["collections"]
    assert systems["up"]["difference"]["low"] > 0
    assert systems["down"]["mean"] < systems["bm25"]["mean"]
    assert "difference" not in systems["down"]
    assert develop.measure(given) == report
    assert loaded == ["best", "worst"]
    assert "| mostly-up |" in develop.table(report)


def test_the_interval_of_the_mean_counts_each_collection_alike(develop: Any) -> None:
    middle, low, high = develop.mean_interval({"a": [0.1, 0.3], "b": [0.0] * 50})
    assert middle == pytest.approx(0.1)
    assert high - middle == pytest.approx(1.96 * (0.02 / 2) ** 0.5 / 2)
    assert middle - low == pytest.approx(high - middle)


def test_a_mixture_of_an_unknown_model_is_refused(develop: Any) -> None:
    with pytest.raises(InputError, match="contains 'b'"):
        develop.mixture({"a": {"q": {"d": 1.0}}}, {"a": 0.5, "b": 0.5})


WRONG_ROWS: list[tuple[Any, str]] = [
    (None, "expected a row with named fields, found None"),
    ({"query": 3, "candidates": ["a"]}, "'query' must be a string"),
    ({"query": None, "positives": ["a"]}, r"fields \['positives'\] match no layout"),
    ({"query": "q", "document": None}, r"fields \['query'\] match no layout"),
    ({"query": "q", "passages": {"a": 1}}, "passages: expected a list"),
    ({"query": "q", "passages": [None]}, r"passages\[0\]: expected a row"),
    ({"query": "q", "passages": [{"text": None, "grade": 1}]}, r"passages\[0\]\.text: expected a string"),
    ({"query": "q", "passages": [{"text": "a", "grade": None}]}, "neither score, grade nor label"),
    ({"query": "q", "passages": [{"text": "a", "grade": 1}, {"text": "b"}]}, r"grade\[1\]: expected a number"),
    ({"query": "q", "candidates": [3]}, r"candidates\[0\]: expected a text"),
    ({"query": "q", "positives": ["a"], "negatives": [3]}, r"negatives\[0\]: expected a text"),
    ({"text": 3}, "'text' must be a string"),
]


@pytest.mark.parametrize(("row", "message"), WRONG_ROWS)
def test_a_raw_row_of_no_layout_or_with_null_is_named(row: Any, message: str, tmp_path: Path) -> None:
    write_gz(tmp_path / "raw.jsonl.gz", [{"query": "whole", "document": "a", "source": None}, row])
    with pytest.raises(InputError, match=f"line 2: .*{message}"):
        _Raw(tmp_path, 0, {}).judged(["raw"], 9)


def test_a_query_that_is_null_is_not_the_query_none(tmp_path: Path) -> None:
    write_gz(tmp_path / "raw.jsonl.gz", [{"query": "bread", "document": "a"}, {"query": None, "document": "a"}])
    with pytest.raises(InputError, match="line 2: no 'query'"):
        _Raw(tmp_path, 0, {}).queries("raw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collections": 3}, "collections must be of type list"),
        ({"collections": [3]}, "collection 0: expected options by name, got 3"),
        ({"pools": [{"name": "a", "passages": 3, "queries": []}]}, "passages must be of type list of strings"),
        ({"lists": [{"name": "a", "files": [0.5]}]}, "files must be of type list of strings"),
        ({"leakage": 0.5}, "leakage must be of type list of strings"),
    ],
)
def test_a_plan_of_the_wrong_types_is_one_line(changes: dict[str, Any], message: str) -> None:
    plan = {"leakage": [], "collections": [{"name": "one", "files": ["a"]}], **changes}
    with pytest.raises(InputError, match=message):
        build_options(DevelopmentPlan, plan, "plan.yaml")
