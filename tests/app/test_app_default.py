"""The Space as it starts with nothing configured: the embedded default, in a browser and over the API.

With TSARANK_SCREENSHOTS=docs this also takes the pictures that the documentation shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.models.embedded_models import DEFAULT_RELEASE, embedded_source


def save(page: Any, name: str) -> None:
    folder = os.environ.get("TSARANK_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1000)  # whatever still fades in
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.mark.slow
def test_the_embedded_default_is_served_without_a_network(
    serve_app: Callable[..., Any], visit: Callable[..., Any], tmp_path: Path
) -> None:
    gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed (extra app)")
    for name in (DEFAULT_RELEASE, "tsarank-smollm2-135m"):
        embedded_source(name)  # made once, before the app is watched
    with serve_app(tmp_path, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="2") as app:
        page = visit(app.url).page
        assert page.locator("#ranking .ts-row").count() == 10
        assert "twolar-smollm2-135m-v2" in page.locator("#ranking .ts-facts").inner_text()
        save(page, "app-ranking")
        page.locator("#ranking .ts-why").nth(1).click()
        page.wait_for_selector("#why .ts-side")
        page.wait_for_selector("#why .pending", state="detached")
        save(page, "app-why")
        phone = visit(app.url, width=390, height=844, dark=True).page
        save(phone, "app-phone")
        for opened in (page, phone):
            opened.context.close()  # before the app ends, or the page would complain of that
        client = gradio_client.Client(app.url, verbose=False)
        names = client.predict(api_name="/models")
        assert names == ["twolar-smollm2-135m-v2", "tsarank-smollm2-135m"]
        documents = ["An adult flea lives for two to three months.", "Bridges hang from cables."]
        ranked = client.predict("how long does a flea live", documents, api_name="/rank")
        assert ranked["results"][0]["text"] == documents[0]
        why = client.predict("how long does a flea live", documents[0], names[1], api_name="/explain")
        assert "".join(part["text"] for part in why["parts"]).strip() == "how long does a flea live"
        assert app.network.read_text() == ""
