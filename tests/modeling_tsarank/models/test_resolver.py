"""What names stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modeling_tsarank import InputError, ModelError, load_ranker
from modeling_tsarank.models.resolver import Kind, resolve, resolve_language_model
from modeling_tsarank.trainers.base_models import load_base_ranker


@pytest.mark.parametrize(
    ("name", "kind", "full", "label"),
    [
        (None, Kind.RELEASE, "twolar-smollm2-135m-v2", "twolar-smollm2-135m-v2"),
        ("default", Kind.RELEASE, "twolar-smollm2-135m-v2", "twolar-smollm2-135m-v2"),
        ("tsarank-smollm2-135m", Kind.RELEASE, "tsarank-smollm2-135m", "tsarank-smollm2-135m"),
        ("zero-shot", Kind.EMBEDDED, "smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("smollm2-135m-instruct", Kind.EMBEDDED, "smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("castorini/monoT5-base-msmarco", Kind.PUBLISHED, "castorini/monoT5-base-msmarco", "monoT5-base-msmarco"),
        ("some/model", Kind.HUB, "some/model", "model"),
        ("gone/model.GGUF", Kind.GGUF, "gone/model.GGUF", "model"),
        ("ce:org/encoder", Kind.CROSS_ENCODER, "org/encoder", "encoder"),
        ("dense:org/encoder", Kind.BI_ENCODER, "org/encoder", "encoder"),
        ("st:org/encoder", Kind.SENTENCE_TRANSFORMERS, "org/encoder", "encoder"),
        ("https://host/rerank", Kind.SERVICE, "https://host/rerank", "https://host/rerank"),
    ],
)
def test_a_name_stands_for_one_thing(name: str | None, kind: Kind, full: str, label: str) -> None:
    source = resolve(name)
    assert (source.kind, source.name, source.label) == (kind, full, label)


def test_folders_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    contents = {
        "ranker": ({"config.json": {"tsarank": {}}, "modules.json": []}, Kind.FOLDER),
        "plain": ({"config.json": {"model_type": "llama"}}, Kind.FOLDER),
        "sentence": ({"config.json": {"model_type": "bert"}, "modules.json": []}, Kind.SENTENCE_TRANSFORMERS),
        "adapter": ({"adapter_config.json": {}, "config.json": {}}, Kind.ADAPTER),
        "classifier": ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, Kind.FOLDER),
        "cross-encoder": (
            {
                "config.json": {"architectures": ["BertForSequenceClassification"]},
                "modules.json": [{"type": "sentence_transformers.base.modules.transformer.Transformer"}],
            },
            Kind.FOLDER,
        ),
        "more modules": (
            {
                "config.json": {"architectures": ["BertForSequenceClassification"]},
                "modules.json": [{"type": "x.Transformer"}, {"type": "x.Dense"}],
            },
            Kind.SENTENCE_TRANSFORMERS,
        ),
        "prompts": (
            {
                "config.json": {"architectures": ["BertForSequenceClassification"]},
                "config_sentence_transformers.json": {"prompts": {"a": "find: "}, "default_prompt_name": "a"},
            },
            Kind.SENTENCE_TRANSFORMERS,
        ),
        "empty": ({}, Kind.FOLDER),
    }
    for name, (files, kind) in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, value in files.items():
            (folder / file).write_text(json.dumps(value))
        assert resolve(folder).kind is kind, name
        assert resolve(f"{folder}/").label == name
    for name in ("sentence", "more modules"):
        with pytest.raises(ModelError, match=r"is a model of sentence-transformers, which .* accepts ce:M"):
            load_ranker(tmp_path / name)


@pytest.mark.parametrize("name", ["", "  ", "ce:", "dense: "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a model's name or path is expected, got int"):
        resolve(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a model's name"):
        resolve(name)


def test_training_asks_which_default_is_meant() -> None:
    assert resolve_language_model(None).kind is Kind.EMBEDDED
    assert resolve_language_model("twolar-smollm2-135m-v2").kind is Kind.RELEASE
    for call in (resolve_language_model, lambda name: load_base_ranker(name, default_family="query_likelihood")):
        with pytest.raises(InputError, match="'default' is the released ranker: name smollm2-135m-instruct"):
            call("default")
    with pytest.raises(InputError, match="a language model is expected"):
        resolve_language_model("dense:org/encoder")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    from modeling_tsarank.models.default_model import unpacked_folder

    elsewhere = Path("/elsewhere/cache/models") / unpacked_folder().name
    for base, expected in (("org/base", ("org/base", "abc")), (str(elsewhere), ("smollm2-135m-instruct", None))):
        settings = {"base_model_name_or_path": base, "revision": "abc"}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        assert resolve(tmp_path).adapter_base() == expected
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/\0base"}))
    with pytest.raises(ModelError, match="names no base"):
        resolve(tmp_path).adapter_base()
