"""Fixtures of the Space: two tiny random models on disk, the served app in a process of its own, a real browser."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from modeling_tsarank.cache.state_files import read_documents
from modeling_tsarank.hub_cards.app_inputs import BuiltInCollection
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.hub_cards.app_models import ModelShelf, make_shelf
from modeling_tsarank.hub_cards.app_ranking import RankingService
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel


ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
# What runs in the served app before anything else: every name looked up and every address called is written down.
_WATCH = """
import os, socket
def _note(kind, value):
    with open(os.environ["TSARANK_TEST_NETWORK"], "a") as file:
        file.write(f"{kind} {value!r}\\n")
def _local(address):
    return not isinstance(address, tuple) or str(address[0]).startswith(("127.", "::1", "localhost", "0.0.0.0"))
_connect, _lookup = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if not _local(address):
        _note("connect", address)
    return _connect(self, address)
def lookup(host, *args, **kwargs):
    if host is not None and not _local((host,)):
        _note("look up", host)
    return _lookup(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = connect, lookup
"""


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [document.text for document in read_documents(str(EXAMPLES / "collection.jsonl"))]
    answers = ["Query: a Document: b Relevant: true", "Query: a Document: b Relevant: false"]
    tokenizer.train_from_iterator(texts + answers * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`likelihood` and `logits`: one tiny random model saved as a ranker of either family; `plain`: as none."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = _tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    plain = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # so random a model is else nearly indifferent
    folders = {name: root / name for name in ("likelihood", "logits", "plain")}
    plain.save_pretrained(folders["plain"])
    tokenizer.save_pretrained(folders["plain"])
    for name, family in (("likelihood", TSARankModel), ("logits", TwolarModel)):
        family.from_backbone(str(folders["plain"])).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> BuiltInCollection:
    """The shipped collection, its BM25 index in a cache of the tests."""
    cache = tmp_path_factory.mktemp("index")
    return BuiltInCollection(EXAMPLES / "collection.jsonl", EXAMPLES / "queries.jsonl", cache)


@pytest.fixture(scope="session")
def shelf(model_folders: dict[str, Path]) -> ModelShelf:
    """Both tiny models on one shelf."""
    return make_shelf(str(model_folders["likelihood"]), [str(model_folders["logits"])], Limits())


@pytest.fixture(scope="session")
def service(shelf: ModelShelf, collection: BuiltInCollection) -> RankingService:
    """The Space's service on the tiny models."""
    return RankingService(shelf, collection, shelf.limits)


@dataclass
class Served:
    """A served app: its address, its process, and the file that lists what it asked of other hosts."""

    url: str
    process: subprocess.Popen
    network: Path
    log: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(folder: Path, **environment: str) -> Iterator[Served]:
    """`python app.py` until the block ends; raises what the app wrote if it does not come up."""
    (folder / "sitecustomize.py").write_text(_WATCH)
    network, log = folder / "network.txt", folder / "log.txt"
    network.touch()
    port = _free_port()
    path = os.pathsep.join(part for part in (str(folder), os.environ.get("PYTHONPATH")) if part)
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "TSARANK_TEST_NETWORK": str(network),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        **environment,
    }
    command = [sys.executable, str(ROOT / "app.py"), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the app did not come up:\n{log.read_text()}") from None
                time.sleep(0.3)
        yield Served(url, process, network, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def served(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The app on the tiny models."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
    environment = {
        "TSARANK_MODEL": str(model_folders["likelihood"]),
        "TSARANK_COMPARE": str(model_folders["logits"]),
        "TSARANK_APP_DOCUMENTS": "40",
        "TSARANK_APP_TOTAL_BYTES": "60000",
        "TSARANK_APP_WAITING": "15",
    }
    with serve(tmp_path_factory.mktemp("served"), **environment) as app:
        yield app


def chromium_path() -> str:
    """Where a Chromium is installed; skips where there is none, or no playwright."""
    pytest.importorskip("playwright", reason="playwright is not installed (extra dev)")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    if os.environ.get("TSARANK_NEEDS_BROWSER"):
        pytest.fail("TSARANK_NEEDS_BROWSER is set, but no chromium is installed")
    pytest.skip("no chromium is installed (Debian: apt-get install chromium)")


# Not for the whole session: while playwright is open this thread has a running event loop, in which no other test
# could start its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine; playwright's own download is never used."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """An open page, what its console complained about, and every request it made."""

    page: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens the app and waits for its first ranking; afterwards holds the page to silence and to its own host."""
    visits: list[tuple[Visit, str, Any]] = []

    def open_page(url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Visit:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light")
        page = context.new_page()
        page.set_default_timeout(60_000)
        complaints: list[str] = []
        requests: list[str] = []
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        opened = Visit(page, complaints, requests)
        visits.append((opened, url, context))
        page.goto(url)
        page.wait_for_selector("#ranking .ts-row")
        return opened

    yield open_page
    for opened, url, context in visits:
        context.close()
        foreign = [r for r in opened.requests if not r.startswith((url, "data:", "blob:"))]
        assert foreign == []
        assert opened.complaints == []


@pytest.fixture(scope="session")
def serve_app() -> Callable[..., contextlib.AbstractContextManager[Served]]:
    """`serve`, for a test that needs an app of its own."""
    pytest.importorskip("gradio", reason="gradio is not installed (extra app)")
    return serve
