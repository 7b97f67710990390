"""Right and wrong requests made from the OpenAPI document: no answer is a fault of the service or shows a trace."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable

from modeling_tsarank import TSARankModel, load_ranker
from modeling_tsarank.serving.application import Limits, create_app


schemathesis = pytest.importorskip("schemathesis")
SENT = {"method", "url", "headers", "params", "json", "content", "data", "cookies"}


def attack(zoo: Any, folder: Any, examples: int) -> Counter[int]:
    """Statuses of so many requests for each operation and kind, right and wrong."""
    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(folder)
    ranker = load_ranker(folder, dtype="float32", max_length=48, max_query_length=16)
    app = create_app({"tiny": ranker}, Limits(documents=20, body_bytes=5_000, queue_pairs=50))
    counts: Counter[int] = Counter()
    with TestClient(app, raise_server_exceptions=False) as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        for operation in (found.ok() for found in schema.get_all_operations()):
            for mode in schemathesis.GenerationMode:

                @seed(7)
                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=examples,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                def ask(case: Any) -> None:
                    sent = case.as_transport_kwargs(base_url="http://testserver")
                    if isinstance(sent.get("data"), bytes | str):
                        sent["content"] = sent.pop("data")
                    answer = client.request(**{name: sent[name] for name in SENT & sent.keys()})
                    counts[answer.status_code] += 1
                    assert answer.status_code < 500 or answer.status_code == 503, answer.text
                    assert "Traceback" not in answer.text
                    assert 'File "' not in answer.text

                try:
                    ask()
                except Unsatisfiable:  # nothing is wrong in a request without parameters and body
                    assert mode.name == "NEGATIVE", operation.label
    return counts


def test_no_request_breaks_the_service(zoo: Any, tmp_path: Any) -> None:
    counts = attack(zoo, tmp_path / "ranker", 15)
    assert counts[200] > 0
    assert counts[422] > 0


@pytest.mark.slow
def test_ten_thousand_requests(zoo: Any, tmp_path: Any) -> None:
    counts = attack(zoo, tmp_path / "ranker", 1100)
    assert sum(counts.values()) >= 10_000, counts
