"""The service's APIs, in process: same results as `rank`, limits, bad input, uploads."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from modeling_tsarank import InputError, MemoryStore, TSARankModel, load_ranker
from modeling_tsarank.ranking_errors import ResourceError
from modeling_tsarank.scores.calibration import Calibration
from modeling_tsarank.scores.fusion import FusionSetting
from modeling_tsarank.serving.application import Limits, create_app
from modeling_tsarank.serving.documents import UploadedTexts


QUERY = "why does bread rise"
DOCUMENTS = ["Bees dance.", "Bread dough rises because yeast turns sugar into gas.", "A pilot guides a ship.", "Bees"]


@pytest.fixture(scope="module")
def ranker(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(folder)
    return load_ranker(folder, dtype="float32")


@pytest.fixture
def client(ranker: Any) -> Iterator[TestClient]:
    limits = Limits(documents=8, body_bytes=20_000, queue_pairs=6)
    with TestClient(create_app({"tiny": ranker}, limits)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(ranker: Any) -> list[tuple[int, float]]:
    return [(row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in ranker.rank(QUERY, DOCUMENTS)]


def test_jina_gives_what_rank_gives(client: TestClient, expected: Any) -> None:
    for path in ("/v1/rerank", "/rerank"):
        answer = client.post(path, json={"model": "tiny", "query": QUERY, "documents": DOCUMENTS, "top_n": 3})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert [(row["index"], row["relevance_score"]) for row in body["results"]] == expected[:3]
        assert body["model"] == "tiny"
        assert body["usage"]["total_tokens"] > 0
        assert "document" not in body["results"][0]


def test_jina_returns_documents_and_takes_objects(client: TestClient, expected: Any) -> None:
    documents = [{"text": text} for text in DOCUMENTS]
    body = client.post("/v1/rerank", json={"query": QUERY, "documents": documents, "return_documents": True}).json()
    assert [row["index"] for row in body["results"]] == [index for index, _ in expected]
    assert [row["document"] for row in body["results"]] == [{"text": DOCUMENTS[index]} for index, _ in expected]


def test_first_stage_scores_are_mixed_in_as_rank_does(ranker: Any, client: TestClient) -> None:
    first, lists = [3.5, 12.0, -1.0, 3.5], {"query": QUERY, "documents": DOCUMENTS}
    rows = ranker.rank(QUERY, DOCUMENTS, first_stage_scores=first, weight=0.3)
    expected = [(row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in rows]
    body = {"first_stage_scores": first, "weight": 0.3}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        results = client.post(path, json={**lists, **body}).json()["results"]
        assert [(row["index"], row["relevance_score"]) for row in results] == expected
    results = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, **body}).json()
    assert [(row["index"], row["score"]) for row in results] == expected
    for wrong in ({"first_stage_scores": first}, {"weight": 0.3}, {**body, "weight": 2}, {**body, "weight": "x"}):
        assert client.post("/v1/rerank", json={**lists, **wrong}).status_code == 422
    assert client.post("/v1/rerank", json={**lists, **body, "first_stage_scores": first[:3]}).status_code == 422

    with TestClient(create_app({"tiny": ranker}, fusion=FusionSetting(0.3))) as fused:
        results = fused.post("/v1/rerank", json={**lists, "first_stage_scores": first}).json()["results"]
        assert [(row["index"], row["relevance_score"]) for row in results] == expected
        assert (
            fused.post("/v1/rerank", json=lists).json()["results"]
            == client.post("/v1/rerank", json=lists).json()["results"]
        )


@pytest.mark.parametrize(
    "calibration",
    [
        Calibration("platt", "zscore", (1.5, -0.2)),
        Calibration("isotonic", "zscore", (-1.0, 0.0, 0.5), (0.1, 0.6, 0.6)),  # two documents get the same
    ],
    ids=lambda one: one.method,
)
def test_probabilities_and_thresholds_are_those_of_rank(ranker: Any, calibration: Calibration) -> None:
    rows = ranker.rank(QUERY, DOCUMENTS, output="probability", calibration=calibration)
    probabilities = [(row["corpus_id"], pytest.approx(row["probability"], abs=1e-5)) for row in rows]
    threshold = (rows[1]["probability"] + rows[2]["probability"]) / 2 if calibration.method == "platt" else 0.5
    kept = [row for row in rows if row["probability"] >= threshold]
    assert 0 < len(kept) < len(rows)
    scores = [(row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in kept]
    lists, tei = {"query": QUERY, "documents": DOCUMENTS}, {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}

    def pairs(client: TestClient, path: str, body: Any) -> list[tuple[int, float]]:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()["results"] if "documents" in body else answer.json()
        return [(row["index"], row["relevance_score" if "documents" in body else "score"]) for row in found]

    ranker.calibration = calibration
    try:
        with TestClient(create_app({"tiny": ranker})) as client:
            for path, body in (("/v1/rerank", lists), ("/v2/rerank", lists), ("/rerank", tei)):
                assert pairs(client, path, {**body, "output": "probability"}) == probabilities
                assert pairs(client, path, {**body, "threshold": threshold}) == scores
                both = {**body, "output": "probability", "threshold": threshold}
                assert pairs(client, path, both) == probabilities[: len(kept)]
            mixed = {"first_stage_scores": [3.5, 12.0, -1.0, 3.5], "weight": 0.3}
            expected = ranker.rank(QUERY, DOCUMENTS, threshold=threshold, **mixed)
            assert pairs(client, "/v1/rerank", {**lists, **mixed, "threshold": threshold}) == [
                (row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in expected
            ]
            for wrong in ({**mixed, "output": "probability"}, {"threshold": 1.5}, {"output": "odds"}):
                assert client.post("/v1/rerank", json={**lists, **wrong}).status_code == 422
        with TestClient(create_app({"tiny": ranker}, output="probability")) as client:
            assert pairs(client, "/rerank", {**tei, "raw_scores": False}) == probabilities
            assert pairs(client, "/v1/rerank", {**lists, "output": "score", "threshold": threshold}) == scores
    finally:
        ranker.calibration = None


def test_long_documents_are_scored_by_their_passages_as_rank_does(ranker: Any, client: TestClient) -> None:
    filler = "The harbour pilot climbs aboard every ship before it enters the channel. " * 5
    documents = ["Bees dance.", f"{filler}{DOCUMENTS[1]} {filler}", "A pilot guides a ship."]
    split = {"passages": "max", "passage_length": 30, "passage_stride": 15}
    expected = [
        (row["corpus_id"], pytest.approx(row["score"], abs=1e-5), row["passage"])
        for row in ranker.rank(QUERY, documents, **split)
    ]
    lists, tei = {"query": QUERY, "documents": documents}, {"query": QUERY, "texts": documents, "raw_scores": True}
    for path in ("/v1/rerank", "/v2/rerank"):
        rows = client.post(path, json={**lists, **split}).json()["results"]
        assert [(row["index"], row["relevance_score"], row["passage"]) for row in rows] == expected
    rows = client.post("/rerank", json={**tei, **split}).json()
    assert [(row["index"], row["score"], row["passage"]) for row in rows] == expected
    assert "passage" not in client.post("/v2/rerank", json=lists).json()["results"][0]
    for wrong in ({"passages": "median"}, {"passage_length": 30}, {**split, "passage_stride": 31}):
        assert client.post("/v1/rerank", json={**lists, **wrong}).status_code == 422
    with TestClient(create_app({"tiny": ranker}, passages=split)) as splitting:
        rows = splitting.post("/v2/rerank", json=lists).json()["results"]
        assert [(row["index"], row["relevance_score"], row["passage"]) for row in rows] == expected
    with pytest.raises(InputError, match="unknown way to score passages"):
        create_app({"tiny": ranker}, passages={"passages": "median"})


def test_without_a_calibration_there_is_no_probability(ranker: Any, client: TestClient) -> None:
    for asked in ({"output": "probability"}, {"threshold": 0.5}):
        answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **asked})
        assert answer.status_code == 422
        assert "tiny has no calibration" in answer.json()["detail"]
    with pytest.raises(InputError, match="tiny has no calibration"):
        create_app({"tiny": ranker}, output="probability")


def test_cohere_gives_what_rank_gives(client: TestClient, ranker: Any, expected: Any) -> None:
    body = client.post("/v2/rerank", json={"model": "tiny", "query": QUERY, "documents": DOCUMENTS}).json()
    assert [(row["index"], row["relevance_score"]) for row in body["results"]] == expected
    short = client.post(
        "/v2/rerank", json={"model": "tiny", "query": QUERY, "documents": DOCUMENTS[1:2], "max_tokens_per_doc": 2}
    ).json()
    first_two = ranker.tokenizer.decode(ranker.tokenizer(DOCUMENTS[1])["input_ids"][1:3])
    assert short["results"][0]["relevance_score"] == pytest.approx(float(ranker.predict((QUERY, first_two))), abs=1e-5)


def test_tei_gives_what_rank_gives(client: TestClient, expected: Any) -> None:
    raw = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json()
    assert [(row["index"], row["score"]) for row in raw] == expected
    body = client.post("/rerank", json={"query": QUERY, "texts": DOCUMENTS, "return_text": True}).json()
    assert [row["text"] for row in body] == [DOCUMENTS[index] for index, _ in expected]
    for row, one in zip(body, raw, strict=True):
        assert row["score"] == pytest.approx(1 / (1 + np.exp(-one["score"])))
    assert (
        client.post("/rerank", json={"query": QUERY, "texts": ["bees " * 2000], "truncate": False}).status_code == 413
    )


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rerank", {"query": QUERY, "texts": ["a"], "documents": ["a"]}, 422),
        ("/rerank", {"query": QUERY}, 422),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, 422),
        ("/v1/rerank", {"query": "  ", "documents": ["a"]}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": []}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": "yeast"}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": [1]}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": [{"id": "unknown"}]}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": [{}]}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"] * 9}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"], "top_n": 0}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"], "instruction": "be kind"}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": ["a"], "model": "other"}, 404),
        ("/v1/documents", {"documents": [{"id": "", "text": "a"}]}, 422),
        ("/v1/documents", {"documents": [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}]}, 422),
        ("/v1/rerank", {"query": QUERY, "documents": ["a" * 30_000]}, 413),
    ],
)
def test_bad_requests_are_refused(client: TestClient, path: str, body: Any, status: int) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[]", b"null", b"\xff\xfe", b'{"query": "q", "documents": ["a"], "top_n": NaN}', b"[" * 9_000],
)
def test_malformed_bodies_are_refused(client: TestClient, content: bytes) -> None:
    for path in ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/documents"):
        answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422), (path, answer.status_code, answer.text)
        assert "Traceback" not in answer.text


def test_a_body_that_is_not_called_json_is_told_so(client: TestClient) -> None:
    """What `curl -d` sends without a header."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = client.post("/v1/rerank", content=b'{"query": "q", "documents": ["a"]}', headers=headers)
    assert answer.status_code == 422
    assert "send JSON with Content-Type: application/json" in answer.json()["detail"]


def test_an_instruction_is_the_services(client: TestClient) -> None:
    """Whatever the model's prompt has a place for."""
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": ["a"], "instruction": "be kind"})
    assert answer.status_code == 422
    assert "`tsarank serve --instruction`" in answer.json()["detail"]


def test_half_a_surrogate_is_replaced(client: TestClient) -> None:
    content = b'{"query": "q \\ud800", "documents": ["a \\udfff"], "return_documents": true}'
    answer = client.post("/v1/rerank", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["document"]["text"] == "a ?"


def test_null_is_absent_and_fields_have_the_names_they_have_in_files(client: TestClient, expected: Any) -> None:
    documents: list[Any] = [{"contents": text, "title": None, "id": None} for text in DOCUMENTS]
    body = {"query": QUERY, "documents": documents, "top_n": None, "return_documents": None, "model": None}
    for path, more in (("/v1/rerank", {}), ("/rerank", {"texts": None}), ("/v2/rerank", {"max_tokens_per_doc": None})):
        answer = client.post(path, json={**body, **more})
        assert answer.status_code == 200, answer.text
        assert [(row["index"], row["relevance_score"]) for row in answer.json()["results"]] == expected
    tei = {"query": QUERY, "texts": DOCUMENTS, "documents": None, "raw_scores": True, "truncate": None}
    assert [(row["index"], row["score"]) for row in client.post("/rerank", json=tei).json()] == expected
    rows = [{"docid": n, "content": text, "title": None} for n, text in enumerate(DOCUMENTS)]
    assert client.post("/v1/documents", json={"documents": rows}).status_code == 200
    answer = client.post("/v1/rerank", json={**body, "documents": [{"_id": str(n)} for n in range(4)]}).json()
    assert [(row["index"], row["relevance_score"]) for row in answer["results"]] == expected
    for name in ("query", "documents"):
        refused = client.post("/v1/rerank", json={**body, name: None})
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", name]


def test_a_database_of_another_program_or_a_damaged_one_is_named(tmp_path: Any) -> None:
    for name, statement in (("other", "create table entries (a)"), ("columns", "create table documents (id, body)")):
        with sqlite3.connect(tmp_path / name) as database:
            database.execute(statement)
        database.close()
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ResourceError, match=f"{name} cannot be used for uploaded documents"):
            UploadedTexts(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    uploads = UploadedTexts(tmp_path / "own")
    uploads.put((f"d{number}", "", "yeast " * 200) for number in range(200))
    uploads.close()
    damaged = bytearray((tmp_path / "own").read_bytes())
    damaged[len(damaged) // 2 :] = b"\xff" * (len(damaged) - len(damaged) // 2)
    (tmp_path / "own").write_bytes(damaged)
    uploads = UploadedTexts(tmp_path / "own")
    with pytest.raises(ResourceError, match="cannot be read"):
        uploads.get("d150")
    uploads.close()


def test_a_body_sent_in_pieces_is_bounded(client: TestClient) -> None:
    answer = client.post("/v1/rerank", content=(b"x" * 5_000 for _ in range(8)))
    assert answer.status_code == 413


def test_the_api_key(ranker: Any) -> None:
    with TestClient(create_app({"tiny": ranker}, api_key="sesame")) as client:
        body = {"query": QUERY, "documents": DOCUMENTS}
        assert client.post("/v1/rerank", json=body).status_code == 401
        assert client.post("/v1/rerank", json=body, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models").status_code == 401
        right = {"Authorization": "Bearer sesame"}
        assert client.post("/v1/rerank", json=body, headers=right).status_code == 200
        assert client.get("/health").status_code == 200


def test_operations(client: TestClient) -> None:
    client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS})
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    page = client.get("/metrics").text
    assert 'tsarank_documents_total{model="tiny"} 4.0' in page
    assert 'tsarank_requests_total{path="/v1/rerank",status="200"} 1.0' in page
    assert "/v1/rerank" in client.get("/openapi.json").json()["paths"]


def test_uploaded_documents_are_ranked_by_id_from_cached_states(ranker: Any, expected: Any, tmp_path: Any) -> None:
    ranker.document_store = MemoryStore(dtype="float32")
    try:
        uploads = tmp_path / "documents.sqlite"
        with TestClient(create_app({"tiny": ranker}, uploads=uploads)) as client:
            rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(DOCUMENTS)]
            assert client.post("/v1/documents", json={"documents": rows}).json() == {"documents": 4, "encoded": 4}
            assert client.post("/v1/documents", json={"documents": rows}).json() == {"documents": 4, "encoded": 0}
        with TestClient(create_app({"tiny": ranker}, uploads=uploads)) as client:
            documents = [{"id": f"d{i}"} for i in range(4)]
            body = client.post("/v1/rerank", json={"query": QUERY, "documents": documents}).json()
        assert [(row["index"], row["relevance_score"]) for row in body["results"]] == expected
    finally:
        ranker.document_store = None


def test_requests_of_several_clients_share_forward_passes(ranker: Any) -> None:
    forwards, started, release = [], threading.Event(), threading.Event()

    def count(*_: Any) -> None:
        forwards.append(1)
        started.set()
        release.wait(30)

    queries = [f"who guides ship {i}" for i in range(12)]
    with TestClient(create_app({"tiny": ranker})) as client:
        answers: dict[str, Any] = {}

        def ask(query: str) -> None:
            answers[query] = client.post("/v1/rerank", json={"query": query, "documents": DOCUMENTS[:2]}).json()

        alone = {query: ranker.rank(query, DOCUMENTS[:2]) for query in queries}
        hook = ranker.get_input_embeddings().register_forward_pre_hook(count)
        try:
            first = threading.Thread(target=ask, args=(queries[0],))
            first.start()
            assert started.wait(30)
            threads = [threading.Thread(target=ask, args=(query,)) for query in queries[1:]]
            for thread in threads:
                thread.start()
            batcher = client.app.state.service.models["tiny"].batcher
            while batcher.waiting < 2 * len(threads) and first.is_alive():
                time.sleep(0.01)
            before = len(forwards)
            release.set()
            for thread in [first, *threads]:
                thread.join(60)
        finally:
            release.set()
            hook.remove()
    assert len(forwards) - before <= len(threads) // 2, "eleven requests cost a forward pass each"
    for query, rows in alone.items():
        found = [(row["index"], row["relevance_score"]) for row in answers[query]["results"]]
        assert found == [(row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in rows]


def test_an_overloaded_service_says_when_to_come_again(ranker: Any) -> None:
    begun, release = threading.Event(), threading.Event()
    plain = ranker.predict

    class Slow:
        encoder, tokenizer, document_store = ranker.encoder, ranker.tokenizer, None
        waits = False

        def predict(self, pairs: Any, **kwargs: Any) -> Any:
            if self.waits:
                begun.set()
                release.wait(120)
            return plain(pairs, **kwargs)

    slow, patient = Slow(), Limits(queue_pairs=6)
    with TestClient(create_app({"tiny": slow}, patient)) as client:
        service = client.app.state.service
        batcher = service.models["tiny"].batcher
        answers = []
        body = {"query": QUERY, "documents": DOCUMENTS}
        slow.waits = True
        threads = [threading.Thread(target=lambda: answers.append(client.post("/v1/rerank", json=body)))]
        threads += [threading.Thread(target=lambda: answers.append(client.post("/v1/rerank", json=body)))]
        threads[0].start()
        assert begun.wait(60)  # the second must find it at work, or both are one batch
        threads[1].start()
        deadline = time.monotonic() + 60
        while batcher.waiting < len(DOCUMENTS) and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = client.post("/v1/rerank", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        release.set()
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200]
        release.clear()
        service.limits = Limits(queue_pairs=6, seconds=0.1)
        late = client.post("/v1/rerank", json=body)
        assert late.status_code == 503, "the time limit"
        assert late.headers["Retry-After"] == "1"
        release.set()
        slow.waits, service.limits = False, patient
        assert client.post("/v1/rerank", json=body).status_code == 200, "it recovers"
