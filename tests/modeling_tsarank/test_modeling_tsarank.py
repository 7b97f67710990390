"""Query likelihood against plain loops over the backbone, on every architecture."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedModel

from modeling_tsarank import InputError, MemoryStore, ModelError, NonFiniteScoreError, RankingCancelled, TSARankModel


def plain_score(model: PreTrainedModel, tokenizer, query: str, document: str, aggregation: str = "mean") -> float:
    """Eq. 1 as a loop: one pair, one full forward pass, one token at a time."""
    prompt = tokenizer(f"Document: {document.strip()} Query:")["input_ids"]
    answer = tokenizer(f" {query.strip()}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    total = 0.0
    for j, token in enumerate(answer):
        row = logits[len(prompt) - 1 + j]
        total += (row[token] - torch.logsumexp(row, 0)).item()
    return total / len(answer) if aggregation == "mean" else total


ARCHITECTURES = ["llama", "qwen2", "qwen3", "bloom", "gpt_neox", "opt", "gpt2", "gemma", "gemma2"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_the_plain_loop(zoo, pairs, name) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64)
    plain, tokenizer = zoo.causal(name, torch.float64), AutoTokenizer.from_pretrained(zoo.folders[name])
    expected = [plain_score(plain, tokenizer, query, document) for query, document in pairs]
    assert np.ptp(expected) > 0.1, "the pairs must differ, or the comparison says nothing"
    for batch_tokens in (1, 64, 4096):
        np.testing.assert_allclose(model.predict(pairs, batch_tokens=batch_tokens), expected, atol=1e-5)
    model.set_options(aggregation="sum")
    summed = [plain_score(plain, tokenizer, query, document, "sum") for query, document in pairs]
    np.testing.assert_allclose(model.predict(pairs), summed, rtol=1e-6)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_left_and_right_padding_give_the_same_scores(zoo, pairs, name) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64)
    encoded = model.encoder.pairs(pairs)
    longest = max(len(pair.prompt) + len(pair.query) for pair in encoded)
    scores = {}
    for side in ("left", "right"):
        ids = torch.full((len(encoded), longest), model.pad_id)
        mask, query_mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, pair in enumerate(encoded):
            length = len(pair.prompt) + len(pair.query)
            start = longest - length if side == "left" else 0
            ids[row, start : start + length] = torch.tensor(pair.prompt + pair.query)
            mask[row, start : start + length] = 1
            query_mask[row, start + len(pair.prompt) : start + length] = 1
        with torch.no_grad():
            scores[side] = model(ids, query_mask, mask).scores
            if side == "right":  # causal attention never looks to the right: there the mask may be left out
                torch.testing.assert_close(model(ids, query_mask).scores, scores[side], atol=1e-6, rtol=0)
    torch.testing.assert_close(scores["left"], scores["right"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(scores["right"].numpy(), model.predict(pairs), atol=1e-5)


# float32 differs by rounding only; bfloat16 keeps 8 bits of mantissa, so single log-probabilities move by about 1 %.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("name", ["llama", "bloom", "gpt2"])
def test_scores_do_not_depend_on_the_batch(zoo, pairs, name, dtype, tolerance) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=dtype)
    alone = np.array([model.predict([pair])[0] for pair in pairs])
    together = model.predict(pairs)
    shuffled = random.Random(3).sample(range(len(pairs)), len(pairs))
    other = model.predict([pairs[i] for i in shuffled], batch_tokens=97)
    np.testing.assert_allclose(together, alone, atol=tolerance)
    np.testing.assert_allclose(other, together[shuffled], atol=tolerance)


def test_documents_with_few_queries_are_read_together(zoo, pairs, count_tokens, monkeypatch) -> None:
    """Two passes for a batch of them: one over the documents, one over all their queries."""
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    documents = list(dict.fromkeys(document for _, document in pairs))[:5]
    queries = ["bread", "a ship at night", "bees"]
    crossed = [(query, document) for query in queries for document in documents]
    alone = [model.predict(pair) for pair in crossed]
    model.predict(crossed)  # the first time, one token is read to learn the shapes of states
    seen = count_tokens(model)
    np.testing.assert_allclose(model.predict(crossed, batch_tokens=4096), alone, atol=1e-5)
    assert len(seen) == 2
    np.testing.assert_allclose(model.predict(crossed, batch_tokens=60), alone, atol=1e-5)
    seen.clear()
    monkeypatch.setattr(
        "modeling_tsarank.engine.prefix_reader.CPU_STATE_BYTES", 1
    )  # room for no more than one batch's
    np.testing.assert_allclose(model.predict(crossed, batch_tokens=200), alone, atol=1e-5)
    assert len(seen) > 2


def test_shared_documents_are_read_once(zoo, pairs, count_tokens) -> None:
    """Every query beyond the first costs its own tokens only: counted on the ids that reach the backbone."""
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    seen = count_tokens(model)
    document = pairs[1][1]
    queries = ["bread", "ship", "bees", "moraine", "violin"]
    encoded = model.encoder.pairs([(query, document) for query in queries])
    model.predict([(query, document) for query in queries])
    longest = max(len(pair.query) for pair in encoded)
    assert sum(seen) <= len(encoded[0].prompt) + len(queries) * longest


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_document_that_each_query_cuts_differently_is_read_once(zoo, pairs, name, kept) -> None:
    """Longer queries leave less room for it: what they read is the beginning of its longest cut."""
    options = {"max_length": 48, "max_query_length": 24}
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64, **options)
    queries = ["bread", "a ship at night", "bees and violins in the old town", "moraine of the glacier, ship 7 bread"]
    many = [(query, " ".join([pairs[1][1]] * 8)) for query in queries]
    encoded = model.encoder.pairs(many)
    assert len({pair.prompt for pair in encoded}) == len(queries)  # every one is cut somewhere else
    alone = [model.predict(pair) for pair in many]
    if kept and name != "gemma2":  # a model with sliding windows keeps no states
        model.document_store = MemoryStore(None)
    np.testing.assert_allclose(model.predict(many), alone, atol=1e-9)
    if name == "llama":
        # The longest cut, then every query behind it with the end of the prompt.
        after = len(encoded[0].source.after)
        own = sum(len(pair.query) + after for pair in encoded)
        assert model.last_stats["tokens"] <= max(len(pair.prompt) for pair in encoded) + own
        if kept:  # the second time there is nothing to read but the queries
            model.predict(many)
            assert model.last_stats["tokens"] <= own


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_queries_of_one_document_do_not_see_each_other(zoo, pairs, name, attention) -> None:
    """Each gets its score alone."""
    options = {"attn_implementation": "eager"} if attention == "eager" else {}
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64, backbone_options=options)
    document = pairs[1][1]
    many = [(query, document) for query in ("bread", "a ship at night", "bees and violins", "moraine", "ship 7 bread")]
    alone = [model.predict(pair) for pair in many]
    np.testing.assert_allclose(model.predict(many), alone, atol=1e-6)


def test_expansion_respects_the_budget(zoo, pairs) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    document = pairs[1][1]
    many = [(f"ship {i} bread", document) for i in range(40)]
    np.testing.assert_allclose(model.predict(many, batch_tokens=30), model.predict(many), atol=1e-4)


words = st.text(alphabet="abc éß漢{}\t", min_size=0, max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_of_input_and_padding_change_nothing(zoo_llama, data) -> None:
    queries = data.draw(st.lists(words.filter(lambda w: w.strip()), min_size=1, max_size=3))
    documents = data.draw(st.lists(words, min_size=1, max_size=5))
    pairs = [(query, document) for query in queries for document in documents]
    order = data.draw(st.permutations(range(len(pairs))))
    budget = data.draw(st.integers(1, 300))
    scores = zoo_llama.predict(pairs)
    np.testing.assert_allclose(
        zoo_llama.predict([pairs[i] for i in order], batch_tokens=budget), scores[list(order)], atol=1e-4
    )
    ranked = zoo_llama.rank(queries[0], documents)
    assert sorted(row["corpus_id"] for row in ranked) == list(range(len(documents)))
    assert all(a["score"] >= b["score"] for a, b in itertools.pairwise(ranked))


@pytest.fixture(scope="module")
def zoo_llama(zoo):
    return TSARankModel.from_backbone(str(zoo.folders["llama"]))


def test_rank_returns_what_cross_encoder_users_know(zoo_llama, pairs) -> None:
    documents = [{"title": "Bread", "text": "rises"}, "Bread rises", {"text": "ships"}, "bees"]
    scores = zoo_llama.predict([("bread", document) for document in documents])
    assert scores.dtype == np.float32
    assert math.isclose(scores[0], scores[1], abs_tol=1e-5), "title and text are joined by one space"
    ranked = zoo_llama.rank("bread", documents, top_k=3, return_documents=True)
    assert [row["corpus_id"] for row in ranked] == list(np.argsort(-scores, kind="stable")[:3])
    assert ranked[0]["text"] == documents[ranked[0]["corpus_id"]]
    assert zoo_llama.predict(("bread", "Bread rises")).shape == ()
    assert zoo_llama.predict([]).shape == (0,)
    same = zoo_llama.rank("bread", ["equal", "equal", "equal"])
    assert [row["corpus_id"] for row in same] == [0, 1, 2]


def test_token_log_probs_explain_the_score(zoo_llama) -> None:
    explained = zoo_llama.token_log_probs("why does bread rise", "Bread dough rises.")
    assert "".join(token for token, _ in explained) == " why does bread rise"
    score = zoo_llama.predict(("why does bread rise", "Bread dough rises."))
    assert math.isclose(sum(value for _, value in explained) / len(explained), float(score), abs_tol=1e-5)


def test_forward_gives_scores_with_gradients(zoo_llama, pairs) -> None:
    encoded = zoo_llama.encoder.pairs(pairs[:4])
    longest = max(len(pair.prompt) + len(pair.query) for pair in encoded)
    ids, query_mask = torch.zeros(4, longest, dtype=torch.long), torch.zeros(4, longest, dtype=torch.long)
    for row, pair in enumerate(encoded):
        ids[row, : len(pair.prompt) + len(pair.query)] = torch.tensor(pair.prompt + pair.query)
        query_mask[row, len(pair.prompt) : len(pair.prompt) + len(pair.query)] = 1
    output = zoo_llama(ids, query_mask)
    np.testing.assert_allclose(output.scores.detach(), zoo_llama.predict(pairs[:4]), atol=1e-5)
    output.scores.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in zoo_llama.parameters())
    zoo_llama.zero_grad()
    query_mask[:, 0] = 1
    with pytest.raises(InputError, match="position 0"):
        zoo_llama(ids, query_mask)


def test_gradient_checkpointing_and_heads_reach_the_backbone(zoo) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    model.gradient_checkpointing_enable()
    assert model.backbone.is_gradient_checkpointing
    assert model.get_output_embeddings() is model.backbone.get_output_embeddings()
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("", "text")], "the query of pair 0 is empty"),
        ([("q", "a"), (" \t", "text")], "the query of pair 1 is empty"),
        ([("q", None)], "document 0 must be a string, got NoneType"),
        ([("q", {"title": "x"})], "no field 'text'"),
        ([(3, "text")], "must be a string, got int"),
        (["query"], r"pair 0 must be \(query, document\)"),
        ([("q", "d", "e")], r"pair 0 must be \(query, document\)"),
    ],
)
def test_bad_pairs_are_named(zoo_llama, pairs, message) -> None:
    with pytest.raises(InputError, match=message):
        zoo_llama.predict(pairs)


def test_bad_arguments_are_named(zoo_llama) -> None:
    with pytest.raises(InputError, match="no documents"):
        zoo_llama.rank("q", [])
    with pytest.raises(InputError, match="a list of texts"):
        zoo_llama.rank("q", "document")
    with pytest.raises(InputError, match="top_k"):
        zoo_llama.rank("q", ["d"], top_k=0)
    with pytest.raises(InputError, match="batch_tokens"):
        zoo_llama.predict([("q", "d")], batch_tokens=-1)
    with pytest.raises(InputError, match="unknown ranking option nonsense"):
        zoo_llama.set_options(nonsense=1)


def test_strange_text_gets_a_defined_score(zoo_llama, caplog) -> None:
    documents = ["", "   \n", "nul \x00 byte", "lone \ud800 surrogate", "pair \ud83d\ude00", "bread " * 100_000]
    scores = zoo_llama.predict([("why does bread rise", document) for document in documents])
    assert np.isfinite(scores).all()
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert "2 of 6 documents are empty" in caplog.text
    assert "lone surrogates" in caplog.text


def test_long_queries_are_cut(zoo) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=64, max_query_length=8)
    pair = model.encoder.pairs([("bread " * 50, "ship " * 50)])[0]
    assert len(pair.query) == 8
    assert len(pair.prompt) + len(pair.query) == 64
    assert pair.query_cut > 0


def test_nan_weights_are_never_sorted_silently(zoo) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    with torch.no_grad():
        model.backbone.lm_head.weight[5] = math.nan
    with pytest.raises(NonFiniteScoreError, match="pair 0"):
        model.rank("bread", ["a", "b"])


def test_scoring_can_be_cancelled_and_the_model_used_again(zoo_llama) -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    pairs = [("bread", f"document {i}") for i in range(20)]
    with pytest.raises(RankingCancelled):
        zoo_llama.predict(pairs, batch_tokens=30, stop=stop)
    assert len(zoo_llama.predict(pairs)) == 20


def test_a_progress_bar_counts_pairs(zoo_llama, capsys) -> None:
    zoo_llama.predict([("bread", f"document {i}") for i in range(9)], show_progress=True)
    assert "9/9" in capsys.readouterr().err


def test_an_encoder_decoder_is_refused(zoo) -> None:
    with pytest.raises(ModelError, match="use TwolarModel"):
        TSARankModel.from_backbone(str(zoo.folders["t5"]))


def test_limits_that_leave_no_room_are_refused(zoo) -> None:
    with pytest.raises(InputError, match="must be smaller than max_length"):
        TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=64, max_query_length=64)
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=64, max_query_length=60)
    with pytest.raises(ModelError, match="leave no token"):
        model.predict([("q", "d")])
    model = TSARankModel.from_backbone(str(zoo.folders["gpt2"]), max_length=1024)
    with pytest.raises(ModelError, match="supports 512"):
        model.predict([("q", "d")])
