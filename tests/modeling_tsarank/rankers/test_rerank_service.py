"""A real HTTP server that answers as the /rerank services do, and the ranker that asks it."""

from __future__ import annotations

import pytest
from chat_server import ChatServer

from modeling_tsarank.rankers.endpoint import EndpointSettings, RequestRefusedError, UnreachableError
from modeling_tsarank.rankers.protocols import rank_scores
from modeling_tsarank.rankers.rerank_service import RerankService
from modeling_tsarank.ranking_errors import ResourceError


DOCUMENTS = ["flour yeast dough", "ice valley", "dough crust knead oven", "ship crane"]


def overlaps(query, texts):
    return [len(set(query.split()) & set(text.split())) / 7 for text in texts]


def jina(_, number, payload):
    if "documents" not in payload:
        return 422, {}, {"detail": "documents: field required"}
    scores = overlaps(payload["query"], payload["documents"])
    rows = [{"index": place, "relevance_score": score} for place, score in enumerate(scores)]
    rows.sort(key=lambda row: (-row["relevance_score"], -row["index"]))
    return 200, {}, {"model": payload.get("model"), "results": rows, "usage": {"total_tokens": 10 * len(rows)}}


def tei(_, number, payload):
    if "texts" not in payload:
        return 422, {}, {"error": "missing field `texts`", "error_type": "Validation"}
    if len(payload["texts"]) > 3:
        return 413, {}, {"error": "batch size 4 > maximum allowed batch size 3", "error_type": "Validation"}
    rows = [{"index": n, "score": score} for n, score in enumerate(overlaps(payload["query"], payload["texts"]))]
    return 200, {}, sorted(rows, key=lambda row: -row["score"])


def service(server, documents=None, **changes):
    options = {"timeout": 2.0, "first_wait": 0.01, "tries": 3, **changes}
    return RerankService(EndpointSettings(server.url, **{"model": "m", **options}), documents)


def test_a_service_of_jinas_form_is_asked_about_the_whole_list(monkeypatch):
    monkeypatch.setenv("TSARANK_API_KEY", "sk-1")
    with ChatServer(jina) as server:
        ranker = service(server)
        rows = ranker.rank("dough oven yeast", iter(DOCUMENTS), return_documents=True)
    assert [row["text"] for row in rows] == [DOCUMENTS[row["corpus_id"]] for row in rows]
    assert [row["corpus_id"] for row in rows] == [0, 2, 1, 3], "equal scores in the given order"
    assert [row["score"] for row in rows] == pytest.approx([2 / 7, 2 / 7, 0, 0])
    assert server.payloads == [{"query": "dough oven yeast", "documents": DOCUMENTS, "model": "m"}]
    assert server.headers[0]["Authorization"] == "Bearer sk-1"
    assert ranker.last_stats == {"calls": 1, "tokens": 40}


def test_the_other_form_is_found_out_once_and_lists_can_be_split():
    with ChatServer(tei) as server:
        with pytest.raises(RequestRefusedError, match="status 413: batch size 4 > maximum"):
            service(server).rank("dough", DOCUMENTS)
        asked = len(server.payloads)
        ranker = service(server, documents=3)
        first = ranker.rank("dough", DOCUMENTS)
        assert ranker.last_stats == {"calls": 3}
        assert ranker.rank("dough", DOCUMENTS) == first
        assert ranker.last_stats == {"calls": 2}
    assert [row["corpus_id"] for row in first] == [0, 2, 1, 3]
    assert [len(payload.get("texts", [])) for payload in server.payloads[asked:]] == [0, 3, 1, 3, 1]
    assert all(payload.get("truncate") for payload in server.payloads[asked + 1 :])


def test_scores_are_those_of_the_service_with_ties_told_apart():
    with ChatServer(jina) as server:
        scores = rank_scores(service(server), "dough oven yeast", DOCUMENTS)
    assert scores == pytest.approx([2 / 7, 0, 2 / 7, 0], abs=1e-6)
    assert scores[0] > scores[2] > scores[1] > scores[3]


@pytest.mark.parametrize(
    "body",
    [
        {"results": [{"index": 0, "relevance_score": 1.0}]},
        {"results": [{"index": n // 2, "relevance_score": 1.0} for n in range(4)]},
        {"results": [{"index": n, "relevance_score": "high"} for n in range(4)]},
        {"results": None},
        [1, 2, 3, 4],
        b"<html>",
    ],
    ids=str,
)
def test_answers_that_are_none_are_asked_for_again_and_then_told(body):
    with ChatServer(lambda *_: (200, {}, body)) as server:
        with pytest.raises(UnreachableError, match="a response in an unexpected form"):
            service(server).rank("dough", DOCUMENTS)
        assert len(server.payloads) == 3


def test_busy_servers_are_asked_again_and_wrong_keys_are_not():
    def busy_once(server, number, payload):
        return (429, {}, {}) if number == 0 else jina(server, number, payload)

    with ChatServer(busy_once) as server:
        assert len(service(server).rank("dough", DOCUMENTS)) == 4
    with ChatServer(lambda *_: (401, {}, {})) as server:
        with pytest.raises(ResourceError, match="rejects the key in TSARANK_API_KEY"):
            service(server).rank("dough", DOCUMENTS)
        assert len(server.payloads) == 1


def test_an_empty_list_asks_nothing():
    with ChatServer(jina) as server:
        assert service(server).rank("dough", []) == []
    assert server.payloads == []
