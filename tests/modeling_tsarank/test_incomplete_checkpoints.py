"""Checkpoints whose weights are not exactly the model's: refused by name, never filled up with random numbers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    LlamaModel,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    Qwen3ForSequenceClassification,
    RemBertConfig,
    RemBertForMaskedLM,
    RoFormerConfig,
    RoFormerForMaskedLM,
    T5EncoderModel,
    T5ForSequenceClassification,
    XLMConfig,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMWithLMHeadModel,
)

from modeling_tsarank import ModelError, TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.rankers.chat_local import LocalChat
from modeling_tsarank.trainers.base_models import load_base_model, load_base_ranker
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """The weights of a folder, changed."""
    state = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(change(state), folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def copied(source: Path, target: Path, change: Callable[[dict], dict] | None = None) -> Path:
    shutil.copytree(source, target)
    if change is not None:
        rewrite(target, change)
    return target


def saved(model: Any, zoo: Any, target: Path, tokenizer: str = "llama") -> Path:
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(zoo.folders[tokenizer]).save_pretrained(target)
    return target


def _config(zoo: Any, name: str, **changes: Any) -> Any:
    config = AutoConfig.from_pretrained(zoo.folders[name])
    for key, value in changes.items():
        setattr(config, key, value)
    return config


_ENCODER = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def _without(part: str) -> Callable[[dict], dict]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


# Models that have no head over the vocabulary, but rank by the head that they have.
CLASSIFIERS = {"a classifier", "a trained head of a tied classifier", "a BERT classifier", "an XLM-RoBERTa classifier"}
# A way to make each, and what the refusal says where a language model is expected.
DECODERS: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "a classifier": (
        lambda zoo, to: saved(LlamaForSequenceClassification(_config(zoo, "llama")), zoo, to),
        r"complete LlamaForCausalLM but a LlamaForSequenceClassification: missing weights: lm_head\.weight; .*score\.",
    ),
    "no head": (
        lambda zoo, to: saved(LlamaModel(_config(zoo, "llama")), zoo, to),
        r"but a LlamaModel: missing weights: lm_head\.weight$",
    ),
    "a trained head of a tied classifier": (
        lambda zoo, to: saved(
            Qwen3ForSequenceClassification(_config(zoo, "qwen3", tie_word_embeddings=True)), zoo, to
        ),
        r"but a Qwen3ForSequenceClassification: unexpected weights: score\.weight$",
    ),
    "a value head": (
        lambda zoo, to: copied(zoo.folders["llama"], to, lambda state: {**state, "v_head.weight": torch.ones(1, 32)}),
        r"unexpected weights: v_head\.weight",
    ),
    "names that a wrapper has changed": (
        lambda zoo, to: copied(
            zoo.folders["llama"], to, lambda state: {f"module.{name}": value for name, value in state.items()}
        ),
        r"missing weights: lm_head\.weight, .* and \d+ more; unexpected weights: module\.lm_head\.weight, .*more$",
    ),
    "a missing layer": (
        lambda zoo, to: copied(zoo.folders["gpt2"], to, _without("h.1.")),
        r"missing weights: transformer\.h\.1\.attn\.c_attn\.bias, .* and 9 more$",
    ),
    "a missing norm": (
        lambda zoo, to: copied(zoo.folders["gemma"], to, _without("layers.0.input_layernorm")),
        r"missing weights: model\.layers\.0\.input_layernorm\.weight$",
    ),
    "a missing expert": (
        lambda zoo, to: copied(zoo.folders["mixtral"], to, _without("layers.1.block_sparse_moe.experts.2")),
        r"weights of another shape: model\.layers\.1\.mlp\.experts",
    ),
    "more layers than the configuration says": (
        lambda zoo, to: copied(zoo.folders["bloom"], to),
        r"unexpected weights: (transformer\.)?h\.1\.",
    ),
    "another shape": (
        lambda zoo, to: copied(
            zoo.folders["opt"],
            to,
            lambda state: {n: v[:, :16].contiguous() if n.endswith("0.fc1.weight") else v for n, v in state.items()},
        ),
        r"weights of another shape: model\.decoder\.layers\.0\.fc1\.weight$",
    ),
    "a BERT classifier": (
        lambda zoo, to: saved(BertForSequenceClassification(BertConfig(**_ENCODER)), zoo, to),
        r"but a BertForSequenceClassification: missing weights: cls\.predictions",
    ),
    "an XLM-RoBERTa classifier": (
        lambda zoo, to: saved(XLMRobertaForSequenceClassification(XLMRobertaConfig(**_ENCODER)), zoo, to),
        r"but a XLMRobertaForSequenceClassification: missing weights: lm_head\.bias",
    ),
}
ENCODER_DECODERS: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "an encoder alone": (
        lambda zoo, to: saved(T5EncoderModel(_config(zoo, "t5")), zoo, to, "t5"),
        r"but a T5EncoderModel: missing weights: decoder\..* more",
    ),
    "a T5 classifier": (
        lambda zoo, to: saved(T5ForSequenceClassification(_config(zoo, "t5")), zoo, to, "t5"),
        r"unexpected weights: classification_head\.dense\.bias, .* and 1 more",
    ),
    "a missing block": (
        lambda zoo, to: copied(zoo.folders["t5"], to, _without("decoder.block.1")),
        r"missing weights: decoder\.block\.1\.",
    ),
}


def _teach(folder: Path, cache: Path) -> Any:
    answers = RequestCache(cache / "answers.jsonl")
    return LocalChat(str(folder), answers, device="cpu").complete([{"role": "user", "content": "who?"}])


@pytest.mark.parametrize("case", DECODERS)
def test_a_decoder_with_other_weights_is_refused_wherever_it_is_loaded(case, zoo, tmp_path) -> None:
    make, message = DECODERS[case]
    folder = make(zoo, tmp_path / "model")
    if case == "more layers than the configuration says":
        configure(folder, n_layer=1)
    ways: list[Callable[[], Any]] = [
        lambda: load_ranker(folder, device="cpu", family="query_likelihood" if case in CLASSIFIERS else None),
        lambda: TSARankModel.from_backbone(str(folder)),
        lambda: TwolarModel.from_backbone(str(folder), backbone_options={"ignore_mismatched_sizes": True}),
        lambda: load_base_model(folder),
        lambda: load_base_ranker(folder, family="query_likelihood", default_family="query_likelihood"),
        lambda: load_base_ranker(folder, family="true_false_logits", default_family="query_likelihood"),
        lambda: _teach(folder, tmp_path),
    ]
    for load in ways:
        with pytest.raises(ModelError, match=message) as caught:
            load()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", ENCODER_DECODERS)
def test_an_encoder_decoder_with_other_weights_is_refused_wherever_it_is_loaded(case, zoo, tmp_path) -> None:
    from modeling_tsarank.trainers.data.query_generation import QueryGenerator

    make, message = ENCODER_DECODERS[case]
    folder = make(zoo, tmp_path / "model")
    configure(folder, is_encoder_decoder=True)
    family = "true_false_logits"
    ways: list[Callable[[], Any]] = [
        lambda: load_ranker(folder, device="cpu", family=family),
        lambda: TwolarModel.from_backbone(str(folder)),
        lambda: load_base_ranker(folder, family=family, default_family=family),
        lambda: QueryGenerator(str(folder), device="cpu").generate(["bread rises"]),
    ]
    for load in ways:
        with pytest.raises(ModelError, match=message):
            load()


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
def test_a_saved_ranker_that_lost_a_weight_is_refused(name, zoo, tmp_path) -> None:
    """By the class, and by `AutoModel` with the code that travels with the folder."""
    cls = TwolarModel if name == "t5" else TSARankModel
    folder = tmp_path / "ranker"
    cls.from_backbone(str(zoo.folders[name])).save_pretrained(folder)
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, cls)
    assert not info["missing_keys"]
    lost = next(key for key in load_file(folder / "model.safetensors") if "norm" in key)
    rewrite(folder, _without(lost))
    for load in (
        lambda: cls.from_pretrained(folder),
        lambda: AutoModel.from_pretrained(folder, trust_remote_code=True),
        lambda: load_ranker(folder, device="cpu"),
    ):
        # The code that travels has error classes of its own.
        with pytest.raises(ValueError, match=rf"missing (weights: )?(backbone\.)?{lost}$") as caught:
            load()
        assert type(caught.value).__name__ == "ModelError"


def test_the_command_line_refuses_a_model_without_its_head_in_one_line(zoo, tmp_path, run_command) -> None:
    folder = DECODERS["no head"][0](zoo, tmp_path / "model")
    (tmp_path / "documents.txt").write_text("bread\nships\n")
    done = run_command(
        "rank", "--query", "yeast", "--documents", str(tmp_path / "documents.txt"), "--model", str(folder)
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "lm_head.weight" in done.stderr


ENCODERS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**_ENCODER)),
    "megatron-bert": lambda: MegatronBertForMaskedLM(MegatronBertConfig(**_ENCODER)),
    "rembert": lambda: RemBertForMaskedLM(
        RemBertConfig(**_ENCODER, input_embedding_size=32, output_embedding_size=32)
    ),
    "roformer": lambda: RoFormerForMaskedLM(RoFormerConfig(**_ENCODER)),
    "xlm": lambda: XLMWithLMHeadModel(XLMConfig(vocab_size=420, emb_dim=32, n_layers=1, n_heads=4)),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_no_language_model_even_with_its_head(kind, zoo, tmp_path) -> None:
    """All weights of a masked language model fit, but its tokens see those behind them."""
    folder = saved(ENCODERS[kind](), zoo, tmp_path / "masked")
    for load in (lambda: load_ranker(folder, device="cpu"), lambda: TwolarModel.from_backbone(str(folder))):
        with pytest.raises(ModelError, match=f"{kind} model is an encoder"):
            load()


def test_an_encoder_made_a_decoder_ranks(zoo) -> None:
    folder = zoo.folders["llama"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    decoder = BertLMHeadModel(BertConfig(**_ENCODER, is_decoder=True))
    assert TSARankModel.from_backbone(decoder, tokenizer=tokenizer).predict(("bread", "yeast")) < 0


def test_a_loaded_model_of_the_wrong_kind_is_refused(zoo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    plain = LlamaModel(_config(zoo, "llama"))
    for wrong in (plain, LlamaForSequenceClassification(plain.config)):
        with pytest.raises(ModelError, match="has no head over the vocabulary"):
            TSARankModel.from_backbone(wrong, tokenizer=tokenizer)
    encoder_decoder = AutoModelForSeq2SeqLM.from_pretrained(zoo.folders["t5"])
    with pytest.raises(ModelError, match="needs a decoder-only model"):
        TSARankModel.from_backbone(encoder_decoder, tokenizer=AutoTokenizer.from_pretrained(zoo.folders["t5"]))


def test_complete_checkpoints_still_load(zoo, tmp_path, pairs) -> None:
    """Tied and untied heads, constants of older versions, keys that transformers itself ignores."""
    for name, folder in zoo.folders.items():
        load_ranker(folder, device="cpu", dtype="float32")
        assert name in folder.parts
    tied = copied(zoo.folders["gemma"], tmp_path / "tied", _without("lm_head"))
    constants = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
    }
    old = copied(zoo.folders["llama"], tmp_path / "old", lambda state: {**state, **constants})
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 512, 512), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    older = copied(zoo.folders["gpt2"], tmp_path / "older", lambda state: {**state, **masks})
    oldest = copied(
        zoo.folders["gpt_neox"],
        tmp_path / "oldest",
        lambda state: {**state, "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8)},
    )
    for folder, same in ((tied, "gemma"), (old, "llama"), (older, "gpt2"), (oldest, "gpt_neox")):
        expected = TSARankModel.from_backbone(str(zoo.folders[same])).predict(pairs)
        assert TSARankModel.from_backbone(str(folder)).predict(pairs) == pytest.approx(expected, abs=1e-6)
    untied = _config(zoo, "t5", tie_word_embeddings=False)
    flan = saved(AutoModelForSeq2SeqLM.from_config(untied), zoo, tmp_path / "flan", "t5")
    ignored = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    rewrite(flan, lambda state: {**state, ignored: torch.ones(32, 4)})
    assert "lm_head.weight" in load_file(flan / "model.safetensors")
    TwolarModel.from_backbone(str(flan))


def test_an_adapter_does_not_hide_what_its_base_lacks(zoo, tmp_path, pairs) -> None:
    peft = pytest.importorskip("peft")

    def with_adapter(folder: Path, auto: Any, kind: str) -> Path:
        adapted = peft.get_peft_model(
            auto.from_pretrained(folder),
            peft.LoraConfig(task_type=kind, target_modules=["q_proj"], init_lora_weights=False),
        )
        adapted.save_pretrained(folder)
        return folder

    whole = with_adapter(copied(zoo.folders["llama"], tmp_path / "whole"), AutoModelForCausalLM, "CAUSAL_LM")
    plain = TSARankModel.from_backbone(str(zoo.folders["llama"])).predict(pairs)
    assert abs(TSARankModel.from_backbone(str(whole)).predict(pairs) - plain).max() > 1e-3
    headless = with_adapter(
        saved(LlamaModel(_config(zoo, "llama")), zoo, tmp_path / "headless"), AutoModelForCausalLM, "CAUSAL_LM"
    )
    with pytest.raises(ModelError, match=r"missing weights: lm_head\.weight$"):
        TSARankModel.from_backbone(str(headless))
    classifier = with_adapter(
        saved(LlamaForSequenceClassification(_config(zoo, "llama")), zoo, tmp_path / "classifier"),
        AutoModelForSequenceClassification,
        "SEQ_CLS",
    )
    with pytest.raises(ModelError, match=r"missing weights: lm_head\.weight; .*score"):
        TSARankModel.from_backbone(str(classifier))
    cut = copied(whole, tmp_path / "cut")
    adapter = load_file(cut / "adapter_model.safetensors")
    save_file(dict(list(adapter.items())[1:]), cut / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"missing weights: .*lora_A"):
        TSARankModel.from_backbone(str(cut))


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_without_its_base_says_which_one_it_is_for(with_config, zoo, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(zoo.folders["llama"])
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    peft.get_peft_model(base, config).save_pretrained(folder)
    if with_config:
        shutil.copy(zoo.folders["llama"] / "config.json", folder)
    message = f"holds only the adapter of '{zoo.folders['llama']}': merge it"
    for load, said in (
        (TSARankModel.from_backbone, message),
        (TSARankModel.from_pretrained, "cannot load the model"),
        (load_base_model, message),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"has only the adapter of '.*gone', which cannot be loaded") as caught:
        load_ranker(folder)
    assert "\n" not in str(caught.value)
    for content in ("{}", "[]", "{", json.dumps({"base_model_name_or_path": None})):
        (folder / "adapter_config.json").write_text(content)
        with pytest.raises(ModelError, match="has only an adapter that names no base"):
            load_ranker(folder)


@pytest.mark.parametrize("kind", ["whole", "a missing layer", "a classifier's head"])
def test_a_gguf_file_is_looked_at_too(kind, zoo, tmp_path) -> None:
    gguf = pytest.importorskip("gguf")
    model = zoo.causal("llama")
    config = model.config
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if kind != "a missing layer" or "layers.1." not in name:
            writer.add_tensor(names.get_name(name, (".weight",)), value.numpy())
    if kind == "a classifier's head":
        writer.add_tensor("cls.output.weight", torch.ones(1, config.hidden_size).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    if kind == "whole":
        assert TSARankModel.from_backbone(path, tokenizer=tokenizer).predict(("bread", "yeast")) < 0
        return
    with pytest.raises(ModelError, match=r"missing .* model\.layers\.1\." if "layer" in kind else r"cls\.output"):
        TSARankModel.from_backbone(path, tokenizer=tokenizer)


def test_a_plain_encoder_is_no_cross_encoder(tmp_path, zoo) -> None:
    pytest.importorskip("sentence_transformers")
    from transformers import BertModel

    from modeling_tsarank.models.sentence_encoders import load_encoder
    from modeling_tsarank.rankers.pointwise import load_scorer

    config = BertConfig(**_ENCODER)
    folder = saved(BertModel(config, add_pooling_layer=False), zoo, tmp_path / "encoder")
    load_encoder(str(folder), "cpu")  # its pooler is of no use to sentence-transformers
    with pytest.raises(ModelError, match=r"its results would be random: missing .*classifier\.bias"):
        load_scorer(f"ce:{folder}", device="cpu")
    rewrite(folder, _without("layer.0.output"))
    with pytest.raises(ModelError, match=r"missing .*layer\.0\.output"):
        load_scorer(f"dense:{folder}", device="cpu")


def test_a_tokenizer_of_another_model_is_refused_by_its_size(zoo: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo.folders["llama"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer) - 5)
    model.save_pretrained(folder)
    for load in (load_ranker, TSARankModel.from_backbone, load_base_model):
        with pytest.raises(ModelError, match=r"the tokenizer does not belong to the model: \d+ of its [\d,]+ tokens"):
            load(str(folder))


@pytest.mark.parametrize("value", [1e30, -0.5, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused_before_a_training_meets_it(value, zoo, tmp_path) -> None:
    folder = copied(zoo.folders["llama"], tmp_path / "model")
    configure(folder, attention_dropout=value)
    with pytest.raises(ModelError, match=r"has attention_dropout .*; expected a probability from 0 to 1"):
        load_base_model(folder)
