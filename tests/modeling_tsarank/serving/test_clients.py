"""Real clients against the running service on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from modeling_tsarank import TwolarModel, load_ranker
from modeling_tsarank.serving.application import create_app


QUERY = "why does bread rise"
DOCUMENTS = ["Bees dance.", "Bread dough rises because yeast turns sugar into gas.", "A pilot guides a ship.", "Bees"]


@pytest.fixture(scope="module")
def ranker(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("served")
    TwolarModel.from_backbone(str(zoo.folders["gpt2"])).save_pretrained(folder)
    return load_ranker(folder, dtype="float32")


@pytest.fixture(scope="module")
def address(ranker: Any) -> Iterator[str]:
    config = uvicorn.Config(create_app({"tiny": ranker}), "127.0.0.1", 0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive(), "the service ends when it is asked to"


@pytest.fixture(scope="module")
def expected(ranker: Any) -> list[tuple[int, float]]:
    return [(row["corpus_id"], pytest.approx(row["score"], abs=1e-5)) for row in ranker.rank(QUERY, DOCUMENTS)]


def test_cohere(address: str, expected: Any) -> None:
    cohere = pytest.importorskip("cohere")
    client = cohere.ClientV2(api_key="none", base_url=address)
    found = client.rerank(model="tiny", query=QUERY, documents=DOCUMENTS, top_n=3)
    assert [(row.index, row.relevance_score) for row in found.results] == expected[:3]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_our_own_client(address: str, path: str, expected: Any) -> None:
    """What `tsarank evaluate --model URL` uses."""
    from modeling_tsarank.rankers.endpoint import EndpointSettings
    from modeling_tsarank.rankers.rerank_service import RerankService

    service = RerankService(EndpointSettings(url=f"{address}{path}", model="tiny"))
    assert [(row["corpus_id"], row["score"]) for row in service.rank(QUERY, DOCUMENTS)] == expected
