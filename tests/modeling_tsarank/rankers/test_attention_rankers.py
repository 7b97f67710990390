"""In-context re-ranking and one pass over cached states, against transformers' own attention and an explicit mask."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine.attention import AttentionReader, KeyRotation
from modeling_tsarank.engine.state_keys import model_identity, state_key
from modeling_tsarank.engine.tasks import Task
from modeling_tsarank.rankers.in_context import InContextOptions, InContextRanker, document_score
from modeling_tsarank.rankers.labels import LabelModel
from modeling_tsarank.rankers.listwise import window_bounds
from modeling_tsarank.rankers.one_pass import OnePassOptions, OnePassRanker, suffix_ids
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError
from modeling_tsarank.ranking_text import cacheable_ids


QUERY = "why does bread rise"


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    words = ["bread", "dough", "yeast", "harbour", "pilot", "ship", "bees", "honey"]
    return [" ".join(generator.choices(words, k=generator.choice([1, 3, 8]))) for _ in range(count)]


def order_of(rows: list[dict[str, Any]]) -> list[int]:
    return [row["corpus_id"] for row in rows]


def eager(backbone: Any) -> Any:
    """The same model, whose attention transformers itself returns."""
    config = copy.deepcopy(backbone.config)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain.load_state_dict(backbone.state_dict())
    return plain


# ---- in-context re-ranking -------------------------------------------------------------------------


def plain_scores(model: LabelModel, query: str, documents: Sequence[str], calibrate: bool) -> list[float]:
    """The paper's definition: all of the prompt in one pass, attention added up token by token."""
    backbone, tokenizer = eager(model.backbone), model.tokenizer

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def attention(query: str) -> tuple[list[float], list[tuple[int, int]]]:
        ids, spans = ids_of(f"{tokenizer.bos_token}\nUser: Here are {len(documents)} passages."), []
        for number, document in enumerate(documents, 1):
            ids += ids_of(f"\n\n[{number}]")
            spans.append((len(ids), len(ids) + len(ids_of(" " + document))))
            ids += ids_of(" " + document)
        ids += ids_of("\n\nFind the passages that answer this search query:")
        first = len(ids)
        ids += ids_of(" " + query)
        last = len(ids)
        ids += ids_of("\nAssistant:")
        with torch.inference_mode():
            layers = backbone(torch.tensor([ids]), output_attentions=True).attentions
        values = [0.0] * first
        for layer in layers:
            for row in range(first, last):
                for at in range(first):
                    values[at] += float(layer[0, :, row, at].double().mean()) / (last - first)
        return values, spans

    values, spans = attention(query)
    if not calibrate:
        return [sum(values[start:end]) for start, end in spans]
    base, _ = attention("N/A")
    found = []
    for start, end in spans:
        own = [values[at] - base[at] for at in range(start, end)]
        mean = sum(own) / len(own)
        deviation = (sum((x - mean) ** 2 for x in own) / len(own)) ** 0.5
        found.append(sum(x for x in own if x >= mean - 2 * deviation))
    return found


@pytest.mark.parametrize("calibrate", [True, False])
def test_in_context_scores(model: LabelModel, calibrate: bool) -> None:
    options = InContextOptions(calibrate=calibrate)
    if model.backbone.config.is_encoder_decoder:
        with pytest.raises(ModelError, match="decoder-only"):
            InContextRanker(model, options)
        return
    documents = texts(5, seed=1)
    ranker = InContextRanker(model, options)
    rows = ranker.rank(QUERY, documents)
    expected = plain_scores(model, QUERY, documents, calibrate)
    assert ranker._scores(QUERY, documents, Counter()) == pytest.approx(expected, abs=1e-5)
    assert order_of(rows) == sorted(range(5), key=lambda i: -expected[i])
    assert ranker.last_stats["calls"] == 2 + calibrate
    assert model.backbone.config._attn_implementation == "sdpa"


def test_in_context_windows_and_limits(model: LabelModel) -> None:
    if model.backbone.config.is_encoder_decoder:
        pytest.skip("decoder-only")
    documents = texts(9, seed=2)
    ranker, order = InContextRanker(model, InContextOptions(window=4, step=2)), list(range(9))
    for start, end in window_bounds(9, 4, 2):
        scores = plain_scores(model, QUERY, [documents[i] for i in order[start:end]], True)
        order[start:end] = [order[start:end][k] for k in sorted(range(4), key=lambda k: (-scores[k], k))]
    assert order_of(ranker.rank(QUERY, documents)) == order
    assert ranker.last_stats["calls"] == 3 * len(window_bounds(9, 4, 2))
    assert ranker.rank(QUERY, []) == []
    assert len(ranker.rank(QUERY, ["", "a", "<s>"])) == 3
    with pytest.raises(ModelError, match=r"more than the 4096 of .*\(window\)"):
        ranker.rank(QUERY, ["word " * 300] * 9)
    with pytest.raises(InputError, match="calibrate must be true or false"):
        InContextOptions(calibrate="yes")  # type: ignore[arg-type]


def test_tokens_far_below_the_others_are_left_out() -> None:
    attention, baseline = torch.full((20,), 0.5), torch.zeros(20)
    attention[3] = -9.0
    assert document_score(attention, baseline) == pytest.approx(9.5)
    assert document_score(attention) == pytest.approx(0.5)
    assert document_score(torch.tensor([0.25]), torch.tensor([0.75])) == pytest.approx(-0.5)


# ---- one pass ----------------------------------------------------------------------------------------


KINDS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {"rotary_pct": 0.5},
}


@pytest.fixture(scope="module", params=[(kind, cls) for kind in KINDS for cls in (TwolarModel, TSARankModel)], ids=str)
def pointwise(request: Any, zoo: Any) -> Any:
    kind, cls = request.param
    torch.manual_seed(4)
    tokenizer = load_ranker(zoo.folders["llama"], device="cpu").tokenizer
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "initializer_range": 0.3, **KINDS[kind]}
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    options = {"template": "Document: {document} Query: {query} Relevant:"} if cls is TwolarModel else {}
    return cls.from_backbone(backbone, tokenizer=tokenizer, max_length=96, max_query_length=24, **options)


def plain_one_pass(ranker: Any, query: str, documents: list[str], layer: int, **options: Any) -> list[float]:
    """All documents and the query in one text, with an explicit mask and explicit positions; attention as it comes."""
    encoder, limits = ranker.encoder, ranker.options
    end = limits.max_length - limits.max_query_length
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    block: list[int] = []
    for place, prompt in enumerate(encoder.prompts(documents)):
        own = [*prompt.before, *prompt.document]
        ids += own
        first = end - len(own) if options.get("positions", "aligned") == "aligned" else 0
        positions += range(first, first + len(own))
        owner += [-1] * len(prompt.before) + [place] * len(prompt.document)
        block += [place] * len(own)
    pair = encoder.pairs([(query, documents[0])])[0]
    suffix = ranker._task(pair).ids[len(pair.source.before) + len(pair.source.document) :]
    total, seen = len(ids) + len(suffix), len(ids)
    mask = torch.zeros(total, total, dtype=torch.bool)
    for row in range(total):
        for column in range(row + 1):
            if row < seen:
                mask[row, column] = block[row] == block[column]
            elif column < seen:
                sink = owner[column] < 0 and block[column] > 0
                mask[row, column] = not (sink and options.get("sinks") == "one")
            else:
                mask[row, column] = True
    added = torch.zeros(total, total).masked_fill(~mask, torch.finfo(torch.float32).min)
    output = eager(ranker.backbone).requires_grad_(False)(
        input_ids=torch.tensor([[*ids, *suffix]]),
        position_ids=torch.tensor([[*positions, *range(end, end + len(suffix))]]),
        attention_mask=added[None, None],
        output_attentions=True,
        use_cache=False,
    )
    attention = output.attentions[layer - 1][0].mean(0)[seen:, :seen]
    if options.get("query_tokens") == "last":
        attention = attention[-2:]
    scores = []
    for place in range(len(documents)):
        score = 0.0
        for row in attention:
            content = sum(float(row[at]) for at in range(seen) if owner[at] >= 0)
            score += sum(float(row[at]) for at in range(seen) if owner[at] == place) / content / len(attention)
        scores.append(score / owner.count(place) if options.get("reduce") == "mean" else score)
    return scores


def scores_of(rows: list[dict[str, Any]]) -> list[float]:
    return [row["score"] for row in sorted(rows, key=lambda row: row["corpus_id"])]


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 3},
        {"layer": 2, "positions": "original"},
        {"layer": 4, "sinks": "one", "reduce": "mean"},
        {"layer": 2, "query_tokens": "last"},
    ],
    ids=str,
)
def test_one_pass_scores(pointwise: Any, options: dict[str, Any]) -> None:
    documents = texts(5)
    ranker = OnePassRanker(pointwise, OnePassOptions(**options))
    found = scores_of(ranker.rank("why bread", documents))
    assert found == pytest.approx(plain_one_pass(pointwise, "why bread", documents, **options), abs=1e-5)
    assert ranker.last_stats["calls"] == 1
    best = max(range(5), key=lambda i: found[i])
    assert [row["text"] for row in ranker.rank("why bread", documents, 1, True)] == [documents[best]]
    if options.get("reduce") != "mean":
        assert sum(found) == pytest.approx(1, abs=1e-5)


def test_one_pass_of_calibrated_scores_and_the_middle_layer(pointwise: Any) -> None:
    documents = texts(4, seed=1)
    ranker = OnePassRanker(pointwise, OnePassOptions(calibrate=True))
    own, base = (plain_one_pass(pointwise, query, documents, 2) for query in ("why bread", "N/A"))
    found = scores_of(ranker.rank("why bread", documents))
    assert found == pytest.approx(np.subtract(own, base).tolist(), abs=1e-5)
    assert ranker.last_stats["calls"] == 2


def test_one_block_is_scoring_from_cached_states(pointwise: Any) -> None:
    """The query's log-probabilities, or the answer's logits, behind one moved document."""
    document = texts(1)[0]
    ranker = OnePassRanker(pointwise, OnePassOptions(layer=4))
    ranker.rank("why bread", [document])
    with torch.inference_mode():
        prompts = pointwise.encoder.prompts([document])
        cache, _ = ranker._blocks(prompts, [cacheable_ids(prompts[0], pointwise.options)])
        pair = pointwise.encoder.pairs([("why bread", document)])[0]
        suffix = suffix_ids(pointwise, pair)
        _, logits = AttentionReader(pointwise.backbone).read(suffix, cache, [0], ranker.end)
        task: Task = pointwise._task(pair)
        whole = pointwise.backbone(torch.tensor([task.ids])).logits[0, -len(suffix) :]
    assert (logits.log_softmax(-1) - whole.log_softmax(-1)).abs().max() < 1e-4
    score = pointwise.predict([("why bread", document)])[0]
    values = pointwise._read_out()
    if values[0] == "answer_logits":
        assert float(pointwise.pool(logits[-1:, list(values[1])])) == pytest.approx(float(score), abs=1e-4)
    else:
        found = logits.log_softmax(-1)[[at - len(task.ids) for at in task.at], list(task.targets)]
        assert float(pointwise._pool_values([found[:, None]])) == pytest.approx(float(score), abs=1e-4)


def test_the_order_of_documents_does_not_matter(pointwise: Any) -> None:
    documents = texts(6, seed=2)
    ranker = OnePassRanker(pointwise)
    found = scores_of(ranker.rank("why bread", documents))
    turned = scores_of(ranker.rank("why bread", documents[::-1]))[::-1]
    assert found == pytest.approx(turned, abs=1e-5)
    pair = pointwise.encoder.pairs([("why bread", documents[0])])[0]
    assert ranker.last_stats["tokens"] == len(suffix_ids(pointwise, pair)), "documents are cached"
    assert scores_of(ranker.rank("why bread", [documents[0]])) == pytest.approx([1.0])
    assert ranker.rank("why bread", []) == []
    alike = scores_of(ranker.rank("why bread", ["bees"] * 3))
    assert alike == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_an_int8_store(pointwise: Any, tmp_path: Path) -> None:
    documents = list(dict.fromkeys(texts(20, seed=3)))
    ranker = OnePassRanker(copy.copy(pointwise))
    ranker.document_store = MemoryStore()
    exact = scores_of(ranker.rank("why bread", documents))
    ranker.document_store = store = FolderStore(tmp_path / "store", dtype="int8")
    rounded = scores_of(ranker.rank("why bread", documents))
    # The same from the store's own decoded states, held in memory.
    decoded = MemoryStore()
    identity = model_identity(pointwise.backbone)
    for prompt in pointwise.encoder.prompts(documents):
        key = state_key(identity, cacheable_ids(prompt, pointwise.options))
        layers = store.get(key, dtype=torch.float32)
        assert layers is not None
        decoded.put(key, layers)
    ranker.document_store = decoded
    assert scores_of(ranker.rank("why bread", documents)) == rounded
    pairs = [(i, j) for i in range(len(documents)) for j in range(i)]
    agree = sum((exact[i] - exact[j]) * (rounded[i] - rounded[j]) > 0 for i, j in pairs)
    assert 2 * agree / len(pairs) - 1 >= 0.9, "Kendall's tau on a random model, whose scores are close"


def test_what_one_pass_refuses(zoo: Any, pointwise: Any) -> None:
    with pytest.raises(InputError, match="layer is 9, but the model has 4"):
        OnePassRanker(pointwise, OnePassOptions(layer=9))
    for wrong in ({"layer": 0}, {"positions": "x"}, {"sinks": "x"}, {"reduce": "x"}, {"calibrate": 1}):
        with pytest.raises(InputError):
            OnePassOptions(**wrong)
    ranker = OnePassRanker(copy.copy(pointwise))
    ranker.document_store = MemoryStore(max_bytes=1)
    with pytest.raises(ResourceError, match="too small for the states of all documents"):
        ranker.rank("why bread", texts(3))
    with pytest.raises(ModelError, match="no document states can be cached"):
        load_ranker(zoo.folders["t5"], ranker="one-pass", device="cpu", dtype="float32")
    loaded = load_ranker(
        zoo.folders["llama"], ranker="one-pass", ranker_options={"layer": 1}, device="cpu", dtype="float32"
    )
    assert sorted(order_of(loaded.rank("bread", ["bees", "bread", "ship"]))) == [0, 1, 2]


def test_the_model_is_left_as_it_was(pointwise: Any) -> None:
    before = {name: type(part) for name, part in pointwise.backbone.named_modules()}
    fields = {name: set(vars(part)) for name, part in pointwise.backbone.named_modules()}
    OnePassRanker(pointwise).rank("why bread", texts(3))
    KeyRotation(pointwise.backbone)
    assert {name: type(part) for name, part in pointwise.backbone.named_modules()} == before
    assert {name: set(vars(part)) for name, part in pointwise.backbone.named_modules()} == fields
    assert pointwise.backbone.config._attn_implementation == "sdpa"
