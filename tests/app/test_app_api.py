"""The served app as a program sees it: gradio_client over real HTTP, many callers at once, and how it starts."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from modeling_tsarank import load_ranker


gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed (extra app)")
APP = Path(__file__).parent.parent.parent / "app.py"
CALLERS = 50


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    return gradio_client.Client(served.url, verbose=False)


def test_only_the_five_endpoints_are_offered_and_each_is_described(client: Any) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(endpoints) == ["/compare", "/explain", "/models", "/rank", "/search"]
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
    assert [p["parameter_name"] for p in endpoints["/rank"]["parameters"]] == ["query", "documents", "model"]


def test_rank_gives_the_models_scores(client: Any, model_folders: dict[str, Path]) -> None:
    documents = ["Bees dance.", "Bread rises in the oven.", "<b>Ice</b> & **stone**"]
    result = client.predict("how do bees talk", documents, api_name="/rank")
    assert client.predict(api_name="/models") == ["likelihood", "logits"]
    expected = load_ranker(str(model_folders["likelihood"])).rank("how do bees talk", documents)
    assert [row["text"] for row in result["results"]] == [documents[row["corpus_id"]] for row in expected]
    assert [row["score"] for row in result["results"]] == pytest.approx([r["score"] for r in expected], abs=1e-4)
    assert [row["rank"] for row in result["results"]] == [1, 2, 3]
    assert all(row["moved"] == row["first_stage_rank"] - row["rank"] for row in result["results"])
    assert result["tokens"] > 0
    assert result["seconds"] > 0


def test_search_explain_and_compare(client: Any, model_folders: dict[str, Path]) -> None:
    found = client.predict("which bees waggle", 3, "logits", api_name="/search")
    assert (found["first_stage"], found["model"], found["family"]) == ("BM25", "logits", "true_false_logits")
    assert len(found["results"]) == 3
    text = found["results"][0]["text"]
    why = client.predict("which bees waggle", text, api_name="/explain")
    expected = load_ranker(str(model_folders["likelihood"])).token_log_probs("which bees waggle", text)
    assert [part["text"] for part in why["parts"]] == [token for token, _ in expected]
    assert [part["value"] for part in why["parts"]] == pytest.approx([value for _, value in expected], abs=1e-4)
    logits = client.predict("which bees waggle", text, "logits", api_name="/explain")
    assert logits["score"] == pytest.approx(found["results"][0]["score"], abs=1e-4)
    both = client.predict("bees", ["honey", "wax", "bread"], "likelihood", "logits", api_name="/compare")
    assert both["pairs"] == 3
    assert {row["text"] for row in both["b"]["results"]} == {"honey", "wax", "bread"}


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (("", ["a"]), "/rank", "the query is empty"),
        (("q", []), "/rank", "there are no documents to rank"),
        (("q", ["a"] * 41), "/rank", "41 documents were given; at most 40"),
        (("q", ["x" * 21_000]), "/rank", "document 1 has 21,000 bytes"),
        (("q", "text"), "/rank", "documents must be a list of texts, got str"),
        (("q", ["a"], "gpt"), "/rank", "no model 'gpt' here"),
        (("q", [{"a": 1}]), "/rank", "document 1 must be a string, got dict"),
        (("xylophone", 3), "/search", "BM25 finds none"),
        (("q" * 1001, "d"), "/explain", "the query has 1,001 characters"),
        (("q", ["a"], "logits", "logits"), "/compare", "both models are 'logits'"),
    ],
)
def test_a_callers_mistake_is_one_clear_line(client: Any, arguments: tuple, name: str, message: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(*arguments, api_name=name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def post(url: str, data: bytes) -> tuple[int, str]:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_huge_request_is_refused_before_it_is_read(served: Any) -> None:
    data = json.dumps({"data": ["q", ["x" * 600_000], None]}).encode()
    status, text = post(served.url + "gradio_api/call/rank", data)
    assert status == 413
    assert "at most" in text


def test_nothing_of_another_host_was_asked_for(served: Any, client: Any) -> None:
    client.predict("bees", ["honey"], api_name="/rank")
    assert served.network.read_text() == ""


def call_rank(url: str, query: str, documents: list[str]) -> str:
    """`answered`, or the refusal, of one request without any client's retries."""
    status, text = post(f"{url}gradio_api/call/rank", json.dumps({"data": [query, documents, None]}).encode())
    if status != 200:
        return f"{status} {json.loads(text)['detail']}"
    with urllib.request.urlopen(f"{url}gradio_api/call/rank/{json.loads(text)['event_id']}", timeout=120) as answer:
        event, data = answer.read().decode().strip().splitlines()[-2:]
    assert event == "event: complete", data
    assert len(json.loads(data.removeprefix("data: "))[0]["results"]) == len(documents)
    return "answered"


def test_fifty_at_once_are_answered_or_refused_and_memory_is_bounded(served: Any, client: Any) -> None:
    documents = [f"document {n}: " + "honey and wax " * 30 for n in range(40)]
    client.predict("warm up", documents, api_name="/rank")
    process = psutil.Process(served.process.pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            outcomes = Counter(pool.map(lambda n: call_rank(served.url, f"query {n}", documents), range(CALLERS)))
    finally:
        done.set()
        watcher.join()
    assert sum(outcomes.values()) == CALLERS
    assert outcomes["answered"] >= 15
    refused = {outcome for outcome in outcomes if outcome != "answered"}
    assert refused, "with 15 places for 50 callers somebody must be refused"
    assert all(outcome.startswith("503 Queue is full") for outcome in refused), refused
    assert peak - before < 150 * 2**20, f"{(peak - before) / 2**20:.0f} MiB more under load"
    assert client.predict("afterwards", ["fine"], api_name="/rank")["results"][0]["text"] == "fine"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TSARANK_MODEL": "{folder}"}, "is no model folder"),
        ({"TSARANK_APP_DOCUMENTS": "lots"}, "TSARANK_APP_DOCUMENTS must be a positive whole number, got 'lots'"),
    ],
)
def test_a_mistake_at_the_start_is_one_line_and_status_2(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # which `main` sets, undone by this
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    assert runpy.run_path(str(APP))["main"](["--port", "1"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tsarank: error:")]
    assert len(lines) == 1
    assert message in lines[0]


def test_without_gradio_the_extra_is_named_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("TSARANK_MODEL", str(tmp_path))  # which is none
    assert runpy.run_path(str(APP))["main"]([]) == 2
    assert "pip install 'tsarank[app]'" in capsys.readouterr().err


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = "import runpy, sys; sys.argv = ['app.py', '--help']\n"
    code += f"try: runpy.run_path({str(APP)!r}, run_name='__main__')\n"
    code += "finally: sys.stderr.write(str({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "TSARANK_MODEL" in done.stdout
    assert done.stderr == "set()"
