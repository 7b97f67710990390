"""Training in one pass: its scores are the one-pass ranker's, its gradients those of one masked text."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from modeling_tsarank.models.loading import load_ranker
from modeling_tsarank.rankers.one_pass import OnePassOptions, OnePassRanker
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.collators import pad_pairs


DOCUMENT_FIRST = "Document: {document} Query: {query} Relevant:"


@pytest.fixture
def make(make_ranker: Any, make_trainer: Any) -> Any:
    def trainer(kind: str = "twolar", architecture: str = "llama", **changes: Any) -> Any:
        ranker = changes.pop("ranker", None) or make_ranker(kind, architecture)
        if kind == "twolar":
            ranker.set_options(template=DOCUMENT_FIRST)
        return make_trainer("distill", ranker=ranker, **{"score_form": "one_pass", "trainable": "lora", **changes})

    return trainer


@pytest.mark.parametrize("kind", ["twolar", "tsarank"])
@pytest.mark.parametrize(
    "options",
    [{}, {"layer": 3, "positions": "original"}, {"sinks": "one", "reduce": "mean"}, {"query_tokens": "last"}],
    ids=str,
)
def test_scores_are_those_of_ranking(
    kind: str, options: dict[str, Any], make: Any, first_batch: Any, perturb: Any
) -> None:
    trainer = make(kind, "qwen3" if options else "llama", one_pass_options=json.dumps(options))
    perturb(trainer)
    batch = first_batch(trainer)
    values = trainer.model(**pad_pairs(batch, range(len(batch["lengths"])), 3))
    ranker = OnePassRanker(trainer.ranker, OnePassOptions(**options))
    found = values["scores"].split(batch["group_sizes"].tolist())
    for row, scores in zip(batch["rows"], found, strict=True):
        ranked = {one["corpus_id"]: one["score"] for one in ranker.rank(row["query"], row["documents"])}
        assert scores.tolist() == pytest.approx([ranked[i] for i in range(len(ranked))], abs=1e-5)
        assert max(ranked.values()) - min(ranked.values()) > 1e-3


def test_long_documents_are_cut_as_in_ranking(make: Any, first_batch: Any) -> None:
    rows = [{"query": "bread", "documents": ["bread dough " * 90, "harbour"], "permutation": [0, 1]}] * 2
    trainer = make(rows=rows)
    values = trainer.model(**pad_pairs(first_batch(trainer, 1), range(2), 3))
    ranked = OnePassRanker(trainer.ranker).rank("bread", rows[0]["documents"])
    expected = [one["score"] for one in sorted(ranked, key=lambda one: one["corpus_id"])]
    assert values["scores"].tolist() == pytest.approx(expected, abs=1e-5)


def plain_loss(trainer: Any, row: dict[str, Any]) -> torch.Tensor:
    """ListNet on the log of the attention, from one text with an explicit mask; as transformers has it."""
    ranker = trainer.ranker
    encoder, limits = ranker.encoder, ranker.options
    end = limits.max_length - limits.max_query_length
    ids, positions, owner, block = [], [], [], []
    for place, prompt in enumerate(encoder.prompts(row["documents"])):
        own = [*prompt.before, *prompt.document]
        ids += own
        positions += range(end - len(own), end)
        owner += [-1] * len(prompt.before) + [place] * len(prompt.document)
        block += [place] * len(own)
    pair = encoder.pairs([(row["query"], row["documents"][0])])[0]
    suffix = pair.prompt[len(pair.source.before) + len(pair.source.document) :]
    seen, total = len(ids), len(ids) + len(suffix)
    mask = torch.ones(total, total, dtype=torch.bool).tril()
    mask[:seen, :seen] &= torch.tensor(block)[:, None] == torch.tensor(block)
    backbone = ranker.backbone
    backbone.set_attn_implementation("eager")
    attention = (
        backbone(
            input_ids=torch.tensor([[*ids, *suffix]]),
            position_ids=torch.tensor([[*positions, *range(end, end + len(suffix))]]),
            attention_mask=torch.zeros(total, total).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None],
            output_attentions=True,
            use_cache=False,
        )
        .attentions[1][0]
        .mean(0)[seen:, :seen]
    )
    backbone.set_attn_implementation("sdpa")
    of = [[at for at in range(seen) if owner[at] == place] for place in range(len(row["documents"]))]
    content = attention[:, [at for at in range(seen) if owner[at] >= 0]].sum(1)
    shares = torch.stack([(attention[:, one].sum(1) / content).mean() for one in of])
    target = torch.tensor(row["teacher_scores"]).softmax(0)
    return -(target * (shares.log() / trainer.args.temperature).log_softmax(0)).sum()


@pytest.mark.parametrize("chunk_tokens", [0, 40])
def test_gradients_are_those_of_the_masked_text(
    chunk_tokens: int, make: Any, first_batch: Any, perturb: Any, distill_rows: Any
) -> None:
    """Also where each list is a chunk of its own; the layer is the second of four."""
    options = {"temperature": 0.5, "loss": "listnet", "chunk_tokens": chunk_tokens}
    trainer = make(**options, one_pass_options={"layer": 2})
    perturb(trainer)
    batch = first_batch(trainer, 3)
    assert len(trainer._plan(batch)[0]) == (3 if chunk_tokens else 1)
    loss = trainer.training_step(trainer.model, batch)
    weights = {name: w for name, w in trainer.model.named_parameters() if w.requires_grad}
    found = {name: None if w.grad is None else w.grad.clone() for name, w in weights.items()}
    trainer.model.zero_grad()
    expected = torch.stack([plain_loss(trainer, row) for row in batch["rows"]]).mean()
    assert float(loss) == pytest.approx(float(expected.detach()), abs=1e-5)
    expected.backward()
    trained = 0
    for name, weight in weights.items():
        if weight.grad is None or float(weight.grad.abs().max()) == 0:
            assert found[name] is None or float(found[name].abs().max()) < 1e-6
        else:
            trained += 1
            assert torch.allclose(found[name], weight.grad, rtol=1e-3, atol=1e-5), name
    assert trained >= 16  # seven layers' pairs in the first block, those of queries and keys in the second


def test_it_learns_and_the_saved_model_ranks(make: Any, distill_rows: Any) -> None:
    trainer = make(loss="listnet", temperature=0.5, max_steps=25, learning_rate=1e-2)
    trainer.train()
    losses = [one["listnet_loss"] for one in trainer.state.log_history if "listnet_loss" in one]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    trainer.save_model()
    saved = load_ranker(trainer.args.output_dir, device="cpu", dtype="float32")
    row = distill_rows[0]
    again = OnePassRanker(saved).rank(row["query"], row["documents"])
    assert again == [
        {"corpus_id": one["corpus_id"], "score": pytest.approx(one["score"], abs=1e-5)}
        for one in OnePassRanker(trainer.ranker).rank(row["query"], row["documents"])
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"one_pass_options": {"layers": 2}}, "one-pass has no option 'layers'"),
        ({"one_pass_options": {"calibrate": True}}, "calibrate is for models that were not trained"),
        ({"score_form": "model", "one_pass_options": {"layer": 2}}, "one_pass_options need score_form one_pass"),
        ({"objectives": ["ranknet", "penalty"]}, "need query token probabilities, which one_pass does not compute"),
        (
            {"one_pass_options": {"layer": 2}, "trainable": "top_blocks", "top_blocks": 1},
            "no weight up to it is trained",
        ),
        ({"kind": "twolar_t5"}, "no document states can be cached"),
    ],
    ids=str,
)
def test_what_is_refused(changes: dict[str, Any], message: str, make: Any) -> None:
    with pytest.raises((InputError, ModelError), match=message):
        make(**changes)


def test_checkpointing_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match="turn activation checkpointing off"):
        make(gradient_checkpointing=True, max_steps=1).train()
