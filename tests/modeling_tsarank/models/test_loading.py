"""`load_ranker` and `from_backbone`: names, folders, GGUF, devices, dtypes, and clear refusals."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from modeling_tsarank import CrossEncoderModel, InputError, ModelError, TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.models.families import families, published_family, published_options
from modeling_tsarank.models.loading import resolve_device, resolve_dtype
from modeling_tsarank.models.published import PUBLISHED


def test_the_kind_of_model_chooses_the_family(zoo, caplog) -> None:
    assert isinstance(load_ranker(zoo.folders["llama"], device="cpu"), TSARankModel)
    assert "is a plain llama model, not a known reranker" in caplog.text
    assert isinstance(load_ranker(zoo.folders["t5"], device="cpu"), TwolarModel)
    chosen = load_ranker(zoo.folders["llama"], device="cpu", family="true_false_logits", strategy="softmax")
    assert isinstance(chosen, TwolarModel)
    assert chosen.options.strategy == "softmax"


def test_saved_choices_hold(zoo, tmp_path, pairs) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["gpt2"]), aggregation="sum", prompt_style="separate")
    model.save_pretrained(tmp_path / "saved")
    again = load_ranker(tmp_path / "saved", device="cpu", dtype="float32")
    assert again.options == model.options
    np.testing.assert_allclose(again.predict(pairs), model.predict(pairs), atol=1e-5)
    direct = TSARankModel.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(direct.predict(pairs), model.predict(pairs), atol=1e-5)
    with pytest.raises(ModelError, match="was saved for the family"):
        TwolarModel.from_pretrained(tmp_path / "saved")


def test_a_loaded_model_can_be_wrapped(zoo, pairs) -> None:
    plain, tokenizer = zoo.causal("llama"), AutoTokenizer.from_pretrained(zoo.folders["llama"])
    model = TSARankModel.from_backbone(plain, tokenizer=tokenizer)
    assert model.backbone is plain
    expected = TSARankModel.from_backbone(str(zoo.folders["llama"])).predict(pairs)
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    with pytest.raises(ModelError, match="without its tokenizer"):
        TSARankModel.from_backbone(plain)


def test_wrapping_draws_no_weights_anew(zoo) -> None:
    """A module the wrapped model gained after loading, like LoRA's matrices, keeps its values."""
    plain, tokenizer = zoo.causal("llama"), AutoTokenizer.from_pretrained(zoo.folders["llama"])
    plain.model.layers[0].extra = torch.nn.Linear(4, 4)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model = TSARankModel.from_backbone(plain, tokenizer=tokenizer)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.slow  # reading a GGUF file takes half a minute
def test_a_gguf_file_loads_by_its_name_in_a_folder(default_folder) -> None:
    from modeling_tsarank.models.default_model import default_gguf

    gguf = default_gguf()
    model = TSARankModel.from_backbone(gguf.parent, gguf_file=gguf.name)
    plain = AutoModelForCausalLM.from_pretrained(default_folder)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.backbone.state_dict()[name]), name


def test_a_missing_gguf_file_is_named() -> None:
    from modeling_tsarank.models.default_model import default_gguf

    gguf = default_gguf()
    with pytest.raises(ModelError, match=r"no GGUF file nothing\.gguf"):
        TSARankModel.from_backbone(gguf.parent, gguf_file="nothing.gguf")
    with pytest.raises(ModelError, match="no GGUF file at"):
        load_ranker(gguf.parent / "nothing.gguf", device="cpu")


def test_a_gguf_file_is_no_hub_id(tmp_path, monkeypatch) -> None:
    """`models/x.gguf` would be a valid Hub id, whose files must not decide how the file here is read."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/x.gguf").write_bytes(b"GGUF abc")
    asked: list[Any] = []
    monkeypatch.setattr("modeling_tsarank.models.sentence_rerankers.repository_file", lambda *name: asked.append(name))
    with pytest.raises(ModelError, match=r"cannot load the model models/x\.gguf"):
        load_ranker("models/x.gguf", device="cpu")
    assert not asked


def test_no_model_is_one_clear_line(tmp_path, zoo) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    shutil.copytree(zoo.folders["llama"], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\0" * 64)
    cases = {
        tmp_path / "empty": "holds no config.json",
        tmp_path / "file.txt": "is a file; a model is a folder",
        tmp_path / "broken": "cannot load the model",
        tmp_path / "gone": "there is no folder or file .*gone",
        "./gone": "there is no folder or file gone",
        "a/b/c": "a Hub id is NAME or OWNER/NAME",
    }
    for path, message in cases.items():
        for load in (lambda p: load_ranker(p, device="cpu"), lambda p: TSARankModel.from_backbone(str(p))):
            with pytest.raises(ModelError, match=message) as caught:
                load(path)
            assert "\n" not in str(caught.value)


def test_a_model_of_another_library_is_told_its_place() -> None:
    with pytest.raises(ModelError, match=r"encoder is a bi-encoder .* `tsarank evaluate --model` accepts"):
        load_ranker("dense:encoder", device="cpu")


def test_a_foreign_ranking_config_is_refused(zoo, tmp_path) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(zoo.folders["llama"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["tsarank"] = {"family": "telepathy"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="unknown family 'telepathy'"):
        load_ranker(folder, device="cpu")


def test_a_pickle_that_runs_code_is_refused(zoo, tmp_path) -> None:
    """Published checkpoints may be pickles: torch's weights-only loader reads tensors and nothing that acts."""
    import pickle

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    folder = tmp_path / "pickled"
    shutil.copytree(zoo.folders["llama"], folder)
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"model.embed_tokens.weight": Attack()}, file)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_ranker(folder, device="cpu")
    assert not (tmp_path / "harm").exists()
    # The same weights as an honest pickle do load.
    torch.save(zoo.causal("llama").state_dict(), folder / "pytorch_model.bin")
    pair = ("bread", "yeast")
    expected = TSARankModel.from_backbone(str(zoo.folders["llama"])).predict(pair)
    assert load_ranker(folder, device="cpu", dtype="float32").predict(pair) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("device", ["meta", "xla", "hpu", "vulkan"])
def test_a_device_that_holds_no_numbers_is_refused(device) -> None:
    with pytest.raises(InputError, match=f"there is no device '{device}' here"):
        resolve_device(device)


def test_devices_and_dtypes() -> None:
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_dtype("auto", cpu) == (torch.bfloat16 if cpu_has_bfloat16() else torch.float32)
    assert resolve_dtype("fp32", cpu) == resolve_dtype(torch.float32, cpu) == torch.float32
    with pytest.raises(InputError, match="unknown dtype 'int3'"):
        resolve_dtype("int3", cpu)
    with pytest.raises(InputError, match="float16 is slow"):
        resolve_dtype("fp16", cpu)
    with pytest.raises(InputError, match="unknown device 'abacus'"):
        resolve_device("abacus")
    with pytest.raises(InputError, match="there is no device 'cuda:99'"):
        resolve_device("cuda:99")
    if not cpu_has_bfloat16():
        with pytest.raises(InputError, match="no bfloat16 instructions"):
            resolve_dtype("bf16", cpu)
    with pytest.raises(InputError, match="unknown family"):
        load_ranker("x", family="nearest")


def test_published_checkpoints_are_known_by_name() -> None:
    assert published_options(TSARankModel, "zyznull/RankingGPT-bloom-560m")["prompt_style"] == "separate"
    assert published_options(TwolarModel, "dundalia/twolar-XL")["template"].endswith(" ")
    assert published_options(TwolarModel, "castorini/monot5-base-msmarco")["strategy"] == "softmax"
    assert published_options(TwolarModel, "Soyoung97/RankT5-base")["strategy"] == "single_token"
    assert published_family("Soyoung97/RankT5-base") is TwolarModel
    assert published_family("meta-llama/Llama-3") is None
    for cls in families().values():
        for options in cls.published.values():  # each is a valid set of options
            cls.options_class.from_dict(dict(options))


def test_another_family_takes_a_rankers_weights(zoo, tmp_path, pairs) -> None:
    TSARankModel.from_backbone(str(zoo.folders["llama"]), aggregation="sum").save_pretrained(tmp_path / "saved")
    found = load_ranker(tmp_path / "saved", device="cpu", dtype="float32", family="true_false_logits")
    expected = TwolarModel.from_backbone(str(zoo.folders["llama"]))
    assert found.options == expected.options
    np.testing.assert_allclose(found.predict(pairs), expected.predict(pairs), atol=1e-6)
    found.save_pretrained(tmp_path / "again")
    assert isinstance(load_ranker(tmp_path / "again", device="cpu"), TwolarModel)


def test_arguments_reach_from_pretrained(zoo, pairs) -> None:
    plain = load_ranker(zoo.folders["llama"], device="cpu", dtype="float32")
    chosen = load_ranker(
        zoo.folders["llama"],
        dtype="float32",
        model_kwargs={"attn_implementation": "eager", "device_map": "cpu"},
    )
    assert plain.backbone.config._attn_implementation == "sdpa"
    assert chosen.backbone.config._attn_implementation == "eager"
    placed = load_ranker(zoo.folders["llama"], dtype="float32", model_kwargs={"device_map": "meta"})
    assert placed.device.type == "meta"  # nothing moves what a device_map has placed
    np.testing.assert_allclose(chosen.predict(pairs), plain.predict(pairs), atol=1e-5)
    with pytest.raises(InputError, match="device_map in model_kwargs decides"):
        load_ranker(zoo.folders["llama"], device="cpu", model_kwargs={"device_map": "auto"})
    with pytest.raises(InputError, match="model_kwargs holds dtype"):
        load_ranker(zoo.folders["llama"], model_kwargs={"dtype": "float32"})


@pytest.mark.parametrize("recorded", [True, False])
def test_an_adapter_loads_on_its_base(recorded, zoo, tmp_path, pairs) -> None:
    """Its scores are those of PEFT's merged model; how it ranks is what its training recorded, else its base's way."""
    peft = pytest.importorskip("peft")
    folder = tmp_path / "run" / "adapter"
    base = AutoModelForCausalLM.from_pretrained(zoo.folders["llama"])
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=4, lora_alpha=12)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    options = {"family": "true_false_logits", "template": "{document} ? {query} :", "max_length": 300}
    if recorded:
        (folder.parent / "training_run.json").write_text(json.dumps({"ranking_options": options}))
    found = load_ranker(folder, device="cpu", dtype="float32")
    changed = {name: value for name, value in options.items() if name != "family"} if recorded else {}
    cls = TwolarModel if recorded else TSARankModel
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    expected = cls.from_backbone(adapted.merge_and_unload(), tokenizer=tokenizer, **changed)
    assert type(found) is cls
    assert found.options == expected.options
    np.testing.assert_allclose(found.predict(pairs), expected.predict(pairs), atol=1e-5)
    plain = cls.from_backbone(str(zoo.folders["llama"]), **changed)
    assert np.abs(found.predict(pairs) - plain.predict(pairs)).max() > 1e-2


@pytest.mark.parametrize("row", [{}, PUBLISHED["cross_encoder"]["castorini/rankllama-*"]], ids=["plain", "rankllama"])
def test_an_adapter_brings_its_sequence_classification_head(row: Any, zoo: Any, pairs: Any, tmp_path: Path) -> None:
    """RankLLaMA's form: LoRA and head of a plain language model; equal to PEFT's own way of loading it."""
    peft = pytest.importorskip("peft")
    plain = {"pretrained_model_name_or_path": zoo.folders["llama"], "num_labels": 1, "dtype": torch.float32}
    model = AutoModelForSequenceClassification.from_pretrained(**plain)
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path / "adapter"
    peft.get_peft_model(model, config).save_pretrained(folder)
    ranker = load_ranker(folder, device="cpu", dtype="float32", **row)
    assert type(ranker) is CrossEncoderModel
    other = AutoModelForSequenceClassification.from_pretrained(**plain)  # with another random head
    merged = peft.PeftModel.from_pretrained(other, str(folder)).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    query, document = (row.get(f"{name}_template", f"{{{name}}}") for name in ("query", "document"))
    with torch.inference_mode():
        expected = []
        for asked, text in pairs:
            inputs = tokenizer(query.format(query=asked), document.format(document=text), return_tensors="pt")
            expected.append(float(merged(**inputs).logits[0, 0]))
    np.testing.assert_allclose(ranker.predict(pairs), expected, atol=1e-5)
    file = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(ModelError, match=r"of a sequence-classification model without score\.weight"):
        load_ranker(folder, device="cpu")


@pytest.mark.hub
def test_twolar_xl_gives_its_published_scores() -> None:
    """The example of the model's own card, read from the Hub, with the three scores printed there."""
    card = Path(hf_hub_download("Dundalia/TWOLAR-xl", "README.md")).read_text(encoding="utf-8")
    query = ast.literal_eval(re.search(r"^query = (\".*\")$", card, re.MULTILINE).group(1))
    documents = ast.literal_eval(re.search(r"^documents = (\[.*?^\])", card, re.MULTILINE | re.DOTALL).group(1))
    model = TwolarModel.from_backbone("Dundalia/TWOLAR-xl", dtype=torch.float32)
    scores = model.predict([(query, document) for document in documents])
    np.testing.assert_allclose(scores, [2.6042, 1.3059, 1.6411], atol=0.001)
