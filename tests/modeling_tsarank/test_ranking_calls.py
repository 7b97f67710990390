"""Calls on a model that other threads use and change meanwhile, and attention that ranking cannot use."""

from __future__ import annotations

import copy
import importlib.util
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel, AutoTokenizer

from modeling_tsarank import ModelError, TSARankModel, TwolarModel
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.trainers.base_models import load_base_model, load_base_ranker


def in_another_thread(change: Callable[[], Any]) -> Callable[[], bool]:
    """A `stop` that does something once, in another thread, after the first batch, and never stops."""
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        if len(asked) == 2:
            thread = threading.Thread(target=change)
            thread.start()
            thread.join()
        return False

    return stop


TEMPLATE = {
    "template": "Document: {document} Query: {query} Relevant:",
    "strategy": "single_token",
    "score_text": "<s>",
}
FAMILIES = {"likelihood": (TSARankModel, {}), "answer": (TwolarModel, TEMPLATE)}
CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "the store is taken away": lambda model, other: setattr(model, "document_store", None),
    "another store is set": lambda model, other: setattr(model, "document_store", MemoryStore()),
    "other options": lambda model, other: model.set_options(
        **({"aggregation": "sum"} if isinstance(model, TSARankModel) else {"score_text": "</s>"})
    ),
    "another tokenizer": lambda model, other: setattr(model, "tokenizer", other),
    "no tokenizer": lambda model, other: setattr(model, "tokenizer", None),
    "another call": lambda model, other: model.predict(("bees", "they dance")),
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_another_thread_changes_does_not_reach_a_running_call(family, change, stored, zoo, pairs) -> None:
    cls, options = FAMILIES[family]
    model = cls.from_backbone(str(zoo.folders["qwen2"]), **options)
    other = AutoTokenizer.from_pretrained(zoo.folders["llama"])  # it puts a BOS in front

    def run(stop: Any = None) -> np.ndarray:
        return model.predict(pairs, batch_tokens=48, stop=stop)

    if stored:
        model.document_store = MemoryStore()
        run()
    expected, stats = run(), model.last_stats
    found = run(in_another_thread(lambda: CHANGES[change](model, other)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model.last_stats == stats


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_are_indexed_with_the_options_that_a_call_began_with(family, zoo, pairs) -> None:
    cls, options = FAMILIES[family]
    documents = list(dict.fromkeys(document for _, document in pairs))
    model = cls.from_backbone(str(zoo.folders["llama"]), **options)
    store = MemoryStore()
    changed = in_another_thread(lambda: model.set_options(max_length=40, max_query_length=8))
    assert model.index(documents, store, batch_tokens=16, stop=changed) == len(documents)
    again = cls.from_backbone(str(zoo.folders["llama"]), **options)
    assert again.index(documents, store) == 0


def test_the_end_of_one_call_does_not_switch_dropout_on_in_another(zoo, pairs) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["gpt2"]))
    assert any(module.p for module in model.modules() if type(module).__name__ == "Dropout")
    expected = model.predict(pairs, batch_tokens=48)
    model.train()
    first_is_done, second_runs = threading.Event(), threading.Event()
    found: list[np.ndarray] = []

    def wait() -> bool:
        second_runs.set()
        assert first_is_done.wait(60)
        return False

    second = threading.Thread(target=lambda: found.append(model.predict(pairs, batch_tokens=48, stop=wait)))

    def start() -> bool:
        if not second_runs.is_set():
            second.start()
            assert second_runs.wait(60)
        return False

    found.append(model.predict(pairs, batch_tokens=48, stop=start))
    first_is_done.set()
    second.join()
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert model.training
    assert copy.deepcopy(model).eval().predict(pairs[0]) == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize("family", [*FAMILIES, "encoder-decoder"])
def test_flex_attention_is_refused_wherever_it_is_chosen(family, zoo, pairs, tmp_path) -> None:
    cls, options = FAMILIES.get(family, (TwolarModel, {}))
    source = str(zoo.folders["t5" if family == "encoder-decoder" else "llama"])
    model = cls.from_backbone(source, **options)
    model.save_pretrained(tmp_path / "ranker")
    flex = {"attn_implementation": "flex_attention"}
    plain = model.backbone
    loads: list[Callable[[], Any]] = [
        lambda: cls.from_backbone(source, backbone_options=flex),
        lambda: cls.from_pretrained(tmp_path / "ranker", **flex),
        lambda: AutoModel.from_pretrained(tmp_path / "ranker", trust_remote_code=True, **flex),
        lambda: load_base_ranker(source, default_family=cls.options_class.family, **flex),
        lambda: model.set_attn_implementation("flex_attention"),
        lambda: model.set_attn_implementation({"": "flex_attention"}),
    ]
    for load in loads:
        with pytest.raises(ValueError, match="flex_attention cannot be used for ranking") as caught:
            load()
        assert type(caught.value).__name__ == "ModelError"
        assert "\n" not in str(caught.value)
    before = plain.config._attn_implementation
    ids = AutoTokenizer.from_pretrained(source)("bread rises", return_tensors="pt")["input_ids"]
    more = {"query_mask": (ids * 0).index_fill(1, ids.new_tensor([1]), 1)} if cls is TSARankModel else {}
    calls: dict[str, Callable[[], Any]] = {
        "cold": lambda: model.predict(pairs[:1]),
        "shared": lambda: model.predict(pairs),
        "explained": lambda: (model.token_log_probs if more else model.answer_scores)(*pairs[0]),
        "trained": lambda: model(input_ids=ids, **more),
    }
    if family != "encoder-decoder":
        calls["stored"] = lambda: model.index([pairs[0][1]], MemoryStore())
    for what in calls:
        plain.config._attn_implementation = "flex_attention"  # past every check
        with pytest.raises(ModelError, match="flex_attention cannot be used"):
            calls[what]()
        plain.config._attn_implementation = before
    assert np.isfinite(model.predict(pairs)).all()


UNUSABLE = {
    "unknown": "nonsense",
    "not installed": "flash_attention_2",
    "paged": "paged|eager",
    "flex": "flex_attention",
}


@pytest.mark.parametrize("name", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("architecture", ["llama", "bloom", "t5"])
def test_attention_that_cannot_be_used_is_one_line_and_changes_nothing(
    architecture, name, zoo, pairs, tmp_path
) -> None:
    if name == "flash_attention_2" and importlib.util.find_spec("flash_attn"):
        pytest.skip("it is installed")
    cls, source = TwolarModel if architecture == "t5" else TSARankModel, str(zoo.folders[architecture])
    model = cls.from_backbone(source)
    model.save_pretrained(tmp_path / "ranker")
    expected, used = model.predict(pairs), model.backbone.config._attn_implementation
    choices: list[Callable[[], Any]] = [
        lambda: model.set_attn_implementation(name),
        lambda: cls.from_backbone(source, backbone_options={"attn_implementation": name}),
        lambda: cls.from_pretrained(tmp_path / "ranker", attn_implementation=name),
    ]
    for choose in choices:
        with pytest.raises(ModelError) as caught:
            choose()
        assert "\n" not in str(caught.value)
    assert model.backbone.config._attn_implementation == used
    np.testing.assert_array_equal(model.predict(pairs), expected)


def test_attention_is_not_changed_under_a_running_call(zoo, pairs) -> None:
    """A call's scores are those of the attention that it began with; a change meanwhile is refused, not made."""
    model = TSARankModel.from_backbone(str(zoo.folders["qwen2"]))
    refused: list[str] = []

    def choose() -> None:
        try:
            model.set_attn_implementation("eager")
        except ModelError as error:
            refused.append(str(error))

    expected = model.predict(pairs, batch_tokens=48)
    found = model.predict(pairs, batch_tokens=48, stop=in_another_thread(choose))
    assert refused == [
        "set_attn_implementation would change the scores of a call that is running; wait until it is done"
    ]
    np.testing.assert_array_equal(found, expected)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == model.backbone.config._attn_implementation == "eager"
    np.testing.assert_allclose(model.predict(pairs, batch_tokens=48), expected, atol=1e-5)


def test_flex_attention_may_train_a_plain_model(zoo) -> None:
    assert load_base_model(zoo.folders["llama"], attn_implementation="flex_attention") is not None
