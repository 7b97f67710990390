"""Continual pre-training: its tokens are a ranker's, its loss the query's, its output a plain language model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_tsarank.modeling_tsarank import PROMPT_STYLES, QueryLikelihoodOptions, TSARankModel
from modeling_tsarank.ranking_errors import InputError, ModelError, NonFiniteScoreError
from modeling_tsarank.trainers.base_models import load_base_model, load_base_ranker
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.cpt_trainer import CPTTrainer, PairTokenizer
from modeling_tsarank.trainers.rows import to_row
from modeling_tsarank.trainers.trainable import block_stacks


ROWS = [
    {"query": query, "document": document}
    for query, document in [
        ("bread yeast", "flour and yeast in the dough, then the oven " * 3),
        ("who is the pilot", "the ship is in the channel"),
        ("ice", "snow in the valley melts, and a moraine of stone is left " * 8),
        ("honey of a bee", "flower pollen hive"),
        ("anchor", "tide at the quay"),
        ("salt in bread", "dough"),
        ("seed", "a flower in the garden"),
        ("melt water", "the glacier ends in a valley"),
    ]
]
SETTINGS: dict[str, Any] = {
    # Not left to the processor: losses are compared with float32 ones.
    "bf16": False,
    "use_cpu": True,
    "disable_tqdm": True,
    "max_length": 120,
    "max_query_length": 30,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(scope="session")
def plain_folder(make_ranker: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain causal language model, as any tool would save it."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(folder)
    ranker.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_cpt(plain_folder: Path, tmp_path: Path) -> Callable[..., CPTTrainer]:
    """Makes a trainer on the rows above: `make_cpt(trainable="lora", …)`."""

    def make(model: Any = None, rows: Any = None, eval_rows: Any = None, **changes: Any) -> CPTTrainer:
        args = CPTConfig(**{"output_dir": str(tmp_path / "run"), **SETTINGS, **changes})
        return CPTTrainer(model or plain_folder, args, ROWS if rows is None else rows, eval_dataset=eval_rows)

    return make


def weights(trainer: CPTTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.backbone.named_parameters()}


# ---- tokens ----------------------------------------------------------------------------------------


@given(
    query=st.text("abe ry.,é漢\n", min_size=1, max_size=30).filter(str.strip),
    document=st.text("breadoven Query:\n é漢", max_size=200),
    style=st.sampled_from(PROMPT_STYLES),
    eos=st.booleans(),
    max_length=st.integers(20, 60),
)
@settings(max_examples=60, deadline=None)
def test_tokens_are_those_the_ranker_scores(
    causal_tokenizer: Any, query: str, document: str, style: str, eos: bool, max_length: int
) -> None:
    options = QueryLikelihoodOptions(max_length=max_length, max_query_length=8, prompt_style=style)
    row = PairTokenizer(causal_tokenizer, options, eos)(columns(query, document))
    ids, mask = row["input_ids"][0], row["completion_mask"][0]
    backbone = AutoModelForCausalLM.from_config(_tiny_config(causal_tokenizer))
    ranker = TSARankModel.from_backbone(backbone, tokenizer=causal_tokenizer, **_as_dict(options))
    (pair,) = ranker.encoder.pairs([(query.strip(), document.strip())])
    ending = [causal_tokenizer.eos_token_id] if eos else []
    assert ids == [*pair.prompt, *pair.query, *ending]
    assert [i for i, learned in zip(ids, mask, strict=True) if learned] == [*pair.query, *ending]
    assert len(ids) <= max_length + len(ending)


def columns(query: str, *documents: str, labels: list[float] | None = None) -> dict[str, list[Any]]:
    """One row as `Dataset.map` gives a batch."""
    row = to_row({"query": query, "documents": list(documents), "labels": labels or [1.0] * len(documents)})
    return {name: [value] for name, value in row.items()}


def test_every_positive_of_a_row_makes_a_pair(causal_tokenizer: Any) -> None:
    tokenize = PairTokenizer(causal_tokenizer, QueryLikelihoodOptions())
    found = tokenize(columns("bread", "yeast", "ship", "flour", labels=[1.0, 0.0, 2.0]))
    expected = [tokenize(columns("bread", document))["input_ids"][0] for document in ("yeast", "flour")]
    assert found["input_ids"] == expected


def _tiny_config(tokenizer: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=128,
    )


def _as_dict(options: QueryLikelihoodOptions) -> dict[str, Any]:
    values = options.to_dict()
    del values["family"]
    return values


def test_a_pair_is_tokenized_in_two_parts_without_a_merge_across_the_border(causal_tokenizer: Any) -> None:
    row = PairTokenizer(causal_tokenizer, QueryLikelihoodOptions())(columns("bread", "yeast"))
    prompt = causal_tokenizer("Document: yeast Query:", add_special_tokens=False)["input_ids"]
    query = causal_tokenizer(" bread", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [[*prompt, *query, causal_tokenizer.eos_token_id]]
    assert row["completion_mask"] == [[0] * len(prompt) + [1] * (len(query) + 1)]


def test_only_the_document_is_cut(make_cpt: Callable[..., CPTTrainer], causal_tokenizer: Any) -> None:
    trainer = make_cpt(max_length=40, max_query_length=12)
    # The row whose document is by far the longest.
    row = max(trainer.train_dataset, key=lambda row: len(row["input_ids"]))
    assert len(row["input_ids"]) == 40
    learned = [label for label in row["labels"] if label != -100]

    def ids(text: str) -> list[int]:
        return causal_tokenizer(text, add_special_tokens=False)["input_ids"]

    (pair,) = [pair for pair in ROWS if [*ids(f" {pair['query']}"), causal_tokenizer.eos_token_id] == learned]
    before, after = ids("Document:"), ids(" Query:")
    room = 40 - len(before) - len(after) - len(learned)
    assert row["input_ids"] == [*before, *ids(f" {pair['document']}")[:room], *after, *learned]


# ---- loss ------------------------------------------------------------------------------------------


def reference_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]], everything: bool = False) -> float:
    """Minus the mean log-probability of all learned tokens, one pair at a time, from the plain model's logits."""
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer(f"Document: {row['document'].strip()} Query:", add_special_tokens=False)["input_ids"]
        query = tokenizer(f" {row['query']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + query])
        with torch.no_grad():
            log_probs = model(ids).logits[0].double().log_softmax(-1)
        for position in range(1 if everything else len(prompt), ids.shape[1]):
            total -= float(log_probs[position - 1, ids[0, position]])
            count += 1
    return total / count


SHORT = [row for row in ROWS if len(row["document"]) < 100]


@pytest.mark.parametrize("everything", [False, True])
def test_the_loss_is_that_of_query_and_eos(
    make_cpt: Callable[..., CPTTrainer], plain_folder: Path, causal_tokenizer: Any, everything: bool
) -> None:
    trainer = make_cpt(eval_rows=SHORT, completion_only_loss=not everything, per_device_eval_batch_size=64)
    plain = AutoModelForCausalLM.from_pretrained(plain_folder)
    expected = reference_loss(plain, causal_tokenizer, SHORT, everything)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_of_learned_tokens_alone_is_trls(
    make_cpt: Callable[..., CPTTrainer], monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    found = {}
    for own in (True, False):
        trainer = make_cpt(packing=packing)
        if not own:
            monkeypatch.setattr(CPTTrainer, "_scores_learned_tokens_only", False)
        batch = next(iter(trainer.get_train_dataloader()))
        trainer.model.train()
        losses = []
        for count in (None, torch.tensor(7)):
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
            loss.backward()
            losses.append(loss.item())
        gradients = {name: value.grad for name, value in trainer.model.named_parameters()}
        accuracy = trainer._metrics["train"]["mean_token_accuracy"]
        found[own] = losses, accuracy, gradients
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-5)
    assert found[True][1] == found[False][1]
    for name, gradient in found[True][2].items():
        torch.testing.assert_close(gradient, found[False][2][name], rtol=1e-4, atol=1e-5, msg=name)


def test_packing_changes_the_batches_and_not_the_loss(make_cpt: Callable[..., CPTTrainer]) -> None:
    apart = make_cpt(eval_rows=SHORT, per_device_eval_batch_size=64)
    packed = make_cpt(eval_rows=SHORT, per_device_eval_batch_size=64, packing=True)
    assert len(packed.eval_dataset) < len(apart.eval_dataset)
    assert packed.evaluate()["eval_loss"] == pytest.approx(apart.evaluate()["eval_loss"], rel=1e-5)


def test_training_makes_queries_likelier(make_cpt: Callable[..., CPTTrainer], plain_folder: Path) -> None:
    pairs = [(row["query"], row["document"]) for row in ROWS]
    before = TSARankModel.from_backbone(plain_folder, max_length=120, max_query_length=30).predict(pairs)
    trainer = make_cpt(num_train_epochs=15)
    trainer.train()
    trainer.save_model()
    after = TSARankModel.from_backbone(trainer.args.output_dir, max_length=120, max_query_length=30).predict(pairs)
    assert after.mean() > before.mean() + 1
    assert trainer.state.log_history[-2]["loss"] < trainer.state.log_history[0]["loss"] - 1


# ---- what is trained -------------------------------------------------------------------------------


def test_every_parameter_changes_in_full_training(make_cpt: Callable[..., CPTTrainer]) -> None:
    trainer = make_cpt(max_steps=2)
    before = weights(trainer)
    trainer.train()
    same = [name for name, value in weights(trainer).items() if torch.equal(value, before[name])]
    assert same == []


def test_top_blocks_leaves_the_rest_bit_identical(make_cpt: Callable[..., CPTTrainer]) -> None:
    trainer = make_cpt(trainable="top_blocks", top_blocks=2, max_steps=2)
    (stack,) = block_stacks(trainer.backbone)
    trained = {f"{stack.name}.{index}." for index in (len(stack.blocks) - 2, len(stack.blocks) - 1)}
    before = weights(trainer)
    trainer.train()
    for name, value in weights(trainer).items():
        changed = not torch.equal(value, before[name])
        assert changed == any(name.startswith(prefix) for prefix in trained), name


def test_lora_is_merged_into_a_plain_model(make_cpt: Callable[..., CPTTrainer], plain_folder: Path) -> None:
    from peft import PeftModel

    trainer = make_cpt(trainable="lora", max_steps=3)
    adapted = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert adapted
    assert all(".lora_" in name and "lm_head" not in name for name in adapted)
    trainer.train()
    trainer.save_model()
    output = Path(trainer.args.output_dir)
    original = AutoModelForCausalLM.from_pretrained(plain_folder)
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(output)(ids).logits
        before = original(ids).logits.clone()
        by_adapter = PeftModel.from_pretrained(original, output / "adapter")(ids).logits
    torch.testing.assert_close(merged, by_adapter, rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max() > 1e-2
    assert set(load_file(output / "model.safetensors")) == set(load_file(plain_folder / "model.safetensors"))


def test_an_adapter_alone_on_demand(make_cpt: Callable[..., CPTTrainer]) -> None:
    trainer = make_cpt(trainable="lora", merge_adapter=False, max_steps=1)
    trainer.train()
    trainer.save_model()
    output = Path(trainer.args.output_dir)
    assert (output / "adapter" / "adapter_config.json").is_file()
    assert not (output / "model.safetensors").exists()


# ---- what is written -------------------------------------------------------------------------------


def test_a_ranking_folder_as_base_becomes_a_plain_model_again(
    make_cpt: Callable[..., CPTTrainer], make_ranker: Callable[..., Any], tmp_path: Path
) -> None:
    make_ranker("tsarank").save_pretrained(tmp_path / "ranker")
    assert "tsarank" in json.loads((tmp_path / "ranker" / "config.json").read_text())
    trainer = make_cpt(tmp_path / "ranker", max_steps=1)
    trainer.train()
    trainer.save_model()
    output = Path(trainer.args.output_dir)
    config = json.loads((output / "config.json").read_text())
    assert not {"tsarank", "auto_map", "custom_pipelines"} & set(config)
    assert config["dtype"] == "float32"
    assert not list(output.glob("*.py"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    text = tokenizer("Document: bread Query:", return_tensors="pt", return_token_type_ids=False)
    assert model.generate(**text, max_new_tokens=2).shape[1] > text["input_ids"].shape[1]
    assert load_base_ranker(output, default_family="query_likelihood").options == QueryLikelihoodOptions()


def test_no_card_and_no_telemetry(make_cpt: Callable[..., CPTTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the training was reported to TRL's makers")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    monkeypatch.delenv("CI", raising=False)
    trainer = make_cpt(trainable="lora", max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert len(list(Path(trainer.args.output_dir).glob("checkpoint-*"))) == 2
    assert not list(Path(trainer.args.output_dir).rglob("README.md"))


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    make_cpt: Callable[..., CPTTrainer], tmp_path: Path, trainable: str
) -> None:
    settings = {"trainable": trainable, "num_train_epochs": 3, "lora_dropout": 0.1, "save_strategy": "steps"}
    whole = make_cpt(output_dir=str(tmp_path / "whole"), save_steps=4, **settings)
    whole.train()
    again = make_cpt(output_dir=str(tmp_path / "again"), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert again.state.global_step == whole.state.global_step == 6
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_resuming_notices_another_attention_and_another_configuration(plain_folder: Path, tmp_path: Path) -> None:
    saved = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "run")}

    def trained(**options: Any) -> CPTTrainer:
        model, tokenizer = load_base_model(plain_folder, **options)
        return CPTTrainer(model, CPTConfig(**{**SETTINGS, **saved}), ROWS, tokenizer=tokenizer)

    trained().train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    for options, message in (
        ({"attn_implementation": "eager"}, 'attn_implementation was "sdpa", now "eager"'),
        ({"rms_norm_eps": 0.1}, "the model's configuration"),
    ):
        with pytest.raises(InputError, match=message):
            trained(**options).train(resume_from_checkpoint=True)
    trained().train(resume_from_checkpoint=True)


def test_another_run_does_not_overwrite_checkpoints(make_cpt: Callable[..., CPTTrainer]) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_cpt(**settings).train()
    with pytest.raises(InputError, match="already contains checkpoint-2 of another run"):
        make_cpt(**settings).train()


def test_nan_stops_with_the_batch_saved_and_checkpoints_kept(make_cpt: Callable[..., CPTTrainer]) -> None:
    trainer = make_cpt(max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    kept = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    again = make_cpt(max_steps=4, save_strategy="steps", save_steps=2)
    again._load_from_checkpoint(str(checkpoint))
    with torch.no_grad():
        again.backbone.get_output_embeddings().weight[5] = float("nan")
    before = weights(again)
    again.args.output_dir = str(checkpoint.parent / "second")
    with pytest.raises(NonFiniteScoreError, match="became nan at step 1"):
        again.train()
    (saved,) = (checkpoint.parent / "second").glob("failed_batch-step1-*.json")
    record = json.loads(saved.read_text())
    assert len(record["texts"]) == 4
    assert all("Document" in text and "Query" in text for text in record["texts"])
    for name, value in weights(again).items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == kept


# ---- what the user can get wrong -------------------------------------------------------------------


def test_bad_rows_are_named(make_cpt: Callable[..., CPTTrainer]) -> None:
    with pytest.raises(InputError, match=r"row 2: documents\[0\]: the document is empty"):
        make_cpt(rows=Dataset.from_list([ROWS[0], {"query": "bread", "document": " "}]))
    with pytest.raises(InputError, match="1 row"):
        make_cpt(rows=Dataset.from_list(ROWS[:1]))
    with pytest.raises(InputError, match="query"):
        make_cpt(rows=[{"document": "no query"}, {"document": "none"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token": "zzz"}, "eos_token.*is not found in the vocabulary"),
        ({"padding_free": True}, "padding_free"),
        ({"router_aux_loss_coef": 3.0}, "router_aux_loss_coef"),
    ],
)
def test_what_trl_refuses_is_an_error_of_ours(
    changes: dict[str, Any], message: str, make_cpt: Callable[..., CPTTrainer]
) -> None:
    with pytest.raises(InputError, match=message):
        make_cpt(**changes)


def test_models_that_cannot_be_trained_so(
    make_cpt: Callable[..., CPTTrainer], make_ranker: Callable[..., Any], plain_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="top_blocks must be between 1 and 4"):
        make_cpt(trainable="top_blocks", top_blocks=5)
    with pytest.raises(ModelError, match="supports"):
        make_cpt(max_length=2000)
    t5 = make_ranker("twolar_t5")
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="encoder-decoder"):
        make_cpt(tmp_path / "t5")
    tokenizer = AutoTokenizer.from_pretrained(plain_folder)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        PairTokenizer(tokenizer, QueryLikelihoodOptions())


@pytest.mark.slow
def test_the_embedded_default_is_a_base_model(tmp_path: Path) -> None:
    model, tokenizer = load_base_model(None, dtype=torch.float32)
    args = CPTConfig(str(tmp_path), **{**SETTINGS, "max_steps": 1, "trainable": "lora"})
    trainer = CPTTrainer(model, args, ROWS, tokenizer=tokenizer)
    trainer.train()
    assert 0 < trainer.state.log_history[0]["loss"] < 12
