"""The true/false reranker against plain loops, on an encoder-decoder and on decoder-only backbones."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_tsarank import ModelError, TwolarModel


def plain_logits(zoo, name: str, query: str, document: str, trailing: str = "") -> torch.Tensor:
    """All logits where the answer stands, one pair at a time, float64."""
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders[name])
    ids = tokenizer(f"Query: {query} Document: {document} Relevant:{trailing}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        if name == "t5":
            model = AutoModelForSeq2SeqLM.from_pretrained(zoo.folders[name], dtype=torch.float64)
            return model(input_ids=ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        return zoo.causal(name, torch.float64)(input_ids=ids).logits[0, -1]


def answers(zoo, name: str) -> tuple[int, int]:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders[name])
    space = "" if name == "t5" else " "
    ids = [tokenizer(f"{space}{text}", add_special_tokens=False)["input_ids"] for text in ("true", "false")]
    assert [len(i) for i in ids] == [1, 1]
    return ids[0][0], ids[1][0]


@pytest.mark.parametrize("name", ["t5", "llama", "qwen3", "bloom", "opt", "gpt2"])
def test_scores_equal_the_plain_loop(zoo, pairs, name) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64)
    true, false = answers(zoo, name)
    assert model.answer_ids() == [true, false]
    logits = [plain_logits(zoo, name, query, document) for query, document in pairs]
    expected = {
        "difference": [(row[true] - row[false]).item() for row in logits],
        "softmax": [
            math.exp(row[true]) / (math.exp(row[true]) + math.exp(row[false])) for row in (r.tolist() for r in logits)
        ],
    }
    assert np.ptp(expected["difference"]) > 0.05
    for strategy, values in expected.items():
        model.set_options(strategy=strategy)
        for batch_tokens in (1, 200, 4096):
            np.testing.assert_allclose(model.predict(pairs, batch_tokens=batch_tokens), values, atol=1e-5)


def test_single_token_reads_one_logit(zoo, pairs) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["t5"]), dtype=torch.float64, strategy="single_token")
    token = AutoTokenizer.from_pretrained(zoo.folders["t5"]).convert_tokens_to_ids("<extra_id_10>")
    expected = [plain_logits(zoo, "t5", query, document)[token].item() for query, document in pairs]
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)


def test_a_trailing_space_is_a_choice_of_old_checkpoints(zoo, pairs) -> None:
    template = "Query: {query} Document: {document} Relevant: "
    model = TwolarModel.from_backbone(str(zoo.folders["t5"]), dtype=torch.float64, template=template)
    true, false = answers(zoo, "t5")
    logits = [plain_logits(zoo, "t5", query, document, " ") for query, document in pairs]
    np.testing.assert_allclose(model.predict(pairs), [(row[true] - row[false]).item() for row in logits], atol=1e-5)
    paper = TwolarModel.from_backbone(str(zoo.folders["t5"]), dtype=torch.float64)
    assert np.abs(paper.predict(pairs) - model.predict(pairs)).max() > 1e-3


@pytest.mark.parametrize("name", ["t5", "llama", "bloom", "opt", "gpt2"])
def test_padding_side_does_not_matter(zoo, pairs, name) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64)
    encoded = model.encoder.pairs(pairs)
    longest = max(len(pair.prompt) for pair in encoded)
    sides = ("right",) if name == "t5" else ("left", "right")
    for side in sides:
        ids = torch.full((len(encoded), longest + 3), model.pad_id)
        mask = torch.zeros_like(ids)
        for row, pair in enumerate(encoded):
            start = longest + 3 - len(pair.prompt) if side == "left" else 0
            ids[row, start : start + len(pair.prompt)] = torch.tensor(pair.prompt)
            mask[row, start : start + len(pair.prompt)] = 1
        with torch.no_grad():
            np.testing.assert_allclose(model(ids, mask).scores.numpy(), model.predict(pairs), atol=1e-5)


# The tiny model's logits reach 50, where neighbouring bfloat16 numbers are 0.25 apart.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_scores_do_not_depend_on_the_batch(zoo, pairs, name, dtype, tolerance) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders[name]), dtype=dtype)
    alone = np.array([model.predict([pair])[0] for pair in pairs])
    np.testing.assert_allclose(model.predict(pairs), alone, atol=tolerance)


def test_long_documents_keep_the_question(zoo) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["t5"]))
    ids = model.encoder.pairs([("why does bread rise", "ship " * 2000)])[0].prompt
    assert len(ids) == 500
    assert model.tokenizer.decode(ids).endswith("Relevant:</s>")
    ids = model.encoder.pairs([("bread " * 2000, "ship " * 2000)])[0].prompt
    assert len(ids) == 500
    assert "Document:" in model.tokenizer.decode(ids)


def test_logits_explain_the_score(zoo) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["t5"]))
    logits = model.answer_scores("why does bread rise", "yeast")
    assert set(logits) == {"▁true", "▁false"}
    score = model.predict(("why does bread rise", "yeast"))
    assert logits["▁true"] - logits["▁false"] == pytest.approx(float(score), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"true_text": "unquestionably relevant"}, "is not a single token"),
        ({"true_text": "true", "false_text": "true"}, "are the same token"),
        ({"strategy": "single_token", "score_text": "<extra_id_77>"}, "is not a single token"),
    ],
)
def test_answers_that_are_no_tokens_are_refused(zoo, options, message) -> None:
    for name in ("t5", "llama"):
        model = TwolarModel.from_backbone(str(zoo.folders[name]), **options)
        with pytest.raises(ModelError, match=message):
            model.predict([("q", "d")])


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_forward_gives_scores(zoo, name) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders[name]))
    encoded = model.encoder.pairs([("bread", "yeast"), ("bread", "yeast")])
    scores = model(torch.tensor([pair.prompt for pair in encoded])).scores
    assert scores.tolist() == pytest.approx(model.predict([("bread", "yeast")] * 2).tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["t5", "llama", "bloom"])
def test_in_bfloat16_the_answer_logits_are_float32(zoo, pairs, name) -> None:
    """The last product is exact for the hidden states as they are; bfloat16 would make many documents tie."""
    model = TwolarModel.from_backbone(str(zoo.folders[name]), dtype=torch.bfloat16)
    watched = copy.deepcopy(model.backbone)
    seen: list[torch.Tensor] = []
    watched.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head = model.backbone.get_output_embeddings()
    rows = head.weight[model.answer_ids()].double()
    prompt = torch.tensor([model.encoder.pairs(pairs[:1])[0].prompt])
    with torch.no_grad():
        logits = model.answer_logits(prompt)
        inputs = {"decoder_input_ids": prompt[:, :1] * 0} if name == "t5" else {}
        watched(input_ids=prompt, **inputs)
        exact = seen.pop()[:, -1].double() @ rows.T
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-5)
        assert not torch.equal(logits, logits.bfloat16().float())
        # The plain model is left as it was: all logits, in its own dtype.
        plain = model.backbone(input_ids=prompt, **inputs).logits
        assert (plain.dtype, plain.shape[-1]) == (torch.bfloat16, head.weight.shape[0])
    scores = torch.from_numpy(model.predict(pairs))
    assert not torch.equal(scores, scores.bfloat16().float())


def test_under_autocast_the_answer_logits_are_float32_with_gradients(zoo, pairs) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    prompt = torch.tensor([model.encoder.pairs(pairs[:1])[0].prompt])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.backbone(input_ids=prompt).logits.dtype == torch.bfloat16
        logits = model.answer_logits(prompt)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    model.pool(logits).sum().backward()
    weight = model.backbone.get_output_embeddings().weight
    true, false = model.answer_ids()
    assert weight.grad[true].abs().max() > 0
    torch.testing.assert_close(weight.grad[true], -weight.grad[false])
