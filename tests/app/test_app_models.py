"""The shelf of models and the service over it: scores, explanations, comparisons, limits."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank import load_ranker
from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.hub_cards.app_endpoints import make_endpoints
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.hub_cards.app_models import ModelShelf, make_shelf
from modeling_tsarank.hub_cards.app_ranking import BM25, RankingService
from modeling_tsarank.ranking_errors import InputError, ResourceError


DOCUMENTS = ["Bees dance on the comb.", "Bread rises.", "", "Ice flows slowly over rock and carries stones."]


def test_scores_are_the_models_own(shelf: ModelShelf, model_folders: dict[str, Path]) -> None:
    for name in ("likelihood", "logits"):
        expected = load_ranker(str(model_folders[name])).predict([("how do bees talk", d) for d in DOCUMENTS])
        scored = shelf.score("how do bees talk", DOCUMENTS, name)
        assert scored.scores == pytest.approx(expected.tolist(), abs=1e-4)
        assert scored.tokens > 0
        assert not scored.remembered
        again = shelf.score(" how do bees talk ", DOCUMENTS, name)
        assert again.remembered
        assert again.scores == scored.scores


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("likelihood", {}),
        ("likelihood", {"aggregation": "sum"}),
        ("logits", {}),
        ("logits", {"strategy": "softmax"}),
        ("logits", {"strategy": "single_token", "score_text": "true"}),
    ],
)
def test_an_explanation_adds_up_to_the_score(model_folders: dict[str, Path], name: str, changes: dict) -> None:
    model = load_ranker(str(model_folders[name]), **changes)
    explained = ModelShelf({"m": lambda: model}, Limits()).explain("how do bees talk", DOCUMENTS[0]).explanation
    assert explained.score == pytest.approx(float(model.predict(("how do bees talk", DOCUMENTS[0]))), abs=1e-4)
    if name == "likelihood":
        assert "".join(text for text, _ in explained.parts) == " how do bees talk"
        assert all(value <= 0 for _, value in explained.parts)
    else:
        assert [text.strip("\u0120") for text, _ in explained.parts][:1] == ["true"]


def test_a_plain_model_is_also_offered_with_logits_on_the_same_weights(model_folders: dict[str, Path]) -> None:
    shelf = make_shelf(str(model_folders["plain"]), (), Limits())
    assert len(shelf.names) == 2
    first, second = (shelf.get(name)[1] for name in shelf.names)
    assert (first.options.family, second.options.family) == ("query_likelihood", "true_false_logits")
    assert first.backbone is second.backbone


def test_a_saved_ranker_is_compared_with_the_default_which_is_not_loaded_before_it_is_asked_for(
    model_folders: dict[str, Path],
) -> None:
    shelf = make_shelf(str(model_folders["logits"]), (), Limits())
    assert shelf.names == ("logits", "twolar-smollm2-135m-v2")
    assert shelf.get()[0] == "logits"
    assert list(shelf._models) == ["logits"]


def test_names_are_checked(shelf: ModelShelf, model_folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no model 'gpt' here; offered: likelihood, logits"):
        shelf.score("q", ["d"], "gpt")
    same = str(model_folders["likelihood"])
    with pytest.raises(InputError, match="two models would be called 'likelihood'"):
        make_shelf(same, [same], Limits())


def test_tokens_and_time_are_bounded(model_folders: dict[str, Path]) -> None:
    model = load_ranker(str(model_folders["likelihood"]))
    shelf = ModelShelf({"m": lambda: model}, Limits(tokens=50))
    with pytest.raises(InputError, match=r"2 documents have [\d,]+ tokens in total"):
        shelf.score("bees", ["honey " * 40] * 2)
    with pytest.raises(InputError, match="in total"):
        shelf.explain("bees", "honey " * 60)
    late = ModelShelf({"m": lambda: model}, replace(Limits(), seconds=-1))
    with pytest.raises(ResourceError, match="the ranking was stopped after -1 seconds"):
        late.score("bees", ["honey"])
    assert math.isfinite(ModelShelf({"m": lambda: model}, Limits()).score("bees", ["honey"]).scores[0])


def test_what_is_remembered_is_bounded(model_folders: dict[str, Path]) -> None:
    model = load_ranker(str(model_folders["likelihood"]))
    shelf = ModelShelf({"m": lambda: model}, Limits())
    for n in range(140):
        shelf.score(f"bee {n}", ["x"])
    assert len(shelf._memory) == 128
    assert not shelf.score("bee 0", ["x"]).remembered
    assert shelf.score("bee 139", ["x"]).remembered


def test_threads_wait_for_each_other(model_folders: dict[str, Path]) -> None:
    # In bfloat16 a batch of three rounds otherwise than one pair.
    model = load_ranker(str(model_folders["likelihood"]), dtype="float32")
    shelf = ModelShelf({"m": lambda: model}, Limits())
    queries = [f"query number {n}" for n in range(12)]
    expected = {query: float(model.predict((query, "honey and wax"))) for query in queries}
    got: dict[str, tuple[float, int]] = {}

    def work(query: str) -> None:
        scored = shelf.score(query, ["honey and wax"] * 3)
        got[query] = (scored.scores[0], scored.tokens)

    threads = [threading.Thread(target=work, args=(query,)) for query in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {query: score for query, (score, _) in got.items()} == pytest.approx(expected, abs=1e-4)


def test_a_ranking_knows_where_its_documents_were(service: RankingService) -> None:
    ranking = service.search("how do bees tell each other where flowers are", 8)
    assert ranking.first_stage == BM25
    assert [row.place for row in ranking.rows] == list(range(1, 9))
    assert sorted(row.before for row in ranking.rows) == list(range(1, 9))
    assert sum(row.moved for row in ranking.rows) == 0
    scores = [row.score for row in ranking.rows]
    assert scores == sorted(scores, reverse=True)
    found = service.candidates(ranking.query, 8)
    assert all(found[row.before - 1].id == row.id for row in ranking.rows)


def test_equal_scores_keep_the_order_given(service: RankingService) -> None:
    ranking = service.rank_texts("bees", ["same"] * 3)
    assert [row.moved for row in ranking.rows] == [0, 0, 0]


def test_a_comparison_counts_pairs_in_the_same_order(service: RankingService) -> None:
    named = [NamedDocument(str(n), text) for n, text in enumerate(DOCUMENTS, 1)]
    comparison = service.compare("how do bees talk", named, "likelihood", "logits")
    places = [(a.place, b.place) for a, b in comparison.places()]
    assert [a for a, _ in places] == [1, 2, 3, 4]
    same = sum((x[0] < y[0]) == (x[1] < y[1]) for i, x in enumerate(places) for y in places[i + 1 :])
    assert comparison.agreement() == (same, 6)
    with pytest.raises(InputError, match="both models are 'logits'"):
        service.compare("q", named, "logits", "logits")


def test_mistakes(service: RankingService) -> None:
    with pytest.raises(InputError, match="the query is empty"):
        service.rank_texts("  ", ["a"])
    with pytest.raises(InputError, match="the query must be a string, got NoneType"):
        service.search(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="101 candidates were requested; at most 100"):
        service.search("bees", 101)
    with pytest.raises(InputError, match="the document must be a string, got int"):
        service.explain("bees", 3)


ODD: tuple[Any, ...] = (
    None,
    [],
    ["likelihood"],
    {},
    {"a": 1},
    0,
    -1,
    1.5,
    10**400,
    float("nan"),
    True,
    "",
    "\ud800",
    "\0",
    b"x",
    [[[]]],
)


def test_no_odd_argument_of_an_endpoint_is_a_fault(service: RankingService) -> None:
    """A caller's mistake is the one error that the API knows; `model` given as a list once was a TypeError."""

    class MistakeError(Exception):
        pass

    endpoints = make_endpoints(service, MistakeError)
    right = {
        "rank": {"query": "bees", "documents": ["honey", "wax"], "model": None},
        "search": {"query": "bees", "candidates": 2, "model": None},
        "explain": {"query": "bees", "document": "honey", "model": None},
        "compare": {"query": "bees", "documents": ["honey"], "model_a": "likelihood", "model_b": "logits"},
    }
    mistakes: list[str] = []
    for name, arguments in right.items():
        assert endpoints[name](**arguments)
        for argument in arguments:
            for value in (*ODD, list(ODD)):
                try:
                    json.dumps(endpoints[name](**{**arguments, argument: value}))
                except MistakeError as mistake:
                    mistakes.append(str(mistake))
    assert len(mistakes) > 150
    assert all("\n" not in mistake and len(mistake) < 300 for mistake in mistakes)
