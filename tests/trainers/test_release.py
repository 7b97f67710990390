"""Several stages' adapters as one, and the release that the package loads by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from modeling_tsarank.models import embedded_models
from modeling_tsarank.models.default_model import GGUF_SHA256
from modeling_tsarank.models.embedded_models import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    RELEASE_FILE,
    add_adapter,
    merged_ranker,
    read_adapter,
    read_release,
)
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.release import make_release, record_example, stack_adapters
from modeling_tsarank.trainers.trainable import make_trainable, save_ranker, trained_parameters
from modeling_tsarank.trainers.training_record import RECORD_NAME


PAIRS = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard"), ("bee hive", "ice")]
IDS = torch.randint(4, 60, (2, 11), generator=torch.Generator().manual_seed(0))


def train(ranker: Any, folder: Path, seed: int, **options: Any) -> Any:
    """A stage: an adapter with random matrices, saved, and the ranker with it merged in."""
    part = make_trainable(ranker, "lora", **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in trained_parameters(ranker.backbone):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    part.adapter.save_pretrained(folder / "adapter")
    save_ranker(ranker, part, folder)
    return type(ranker).from_backbone(str(folder), max_query_length=33)


@pytest.fixture
def stages(make_ranker: Any, tmp_path: Path) -> tuple[Path, Path, Any]:
    """Two stages on one base: all blocks with rank 4, then the top two with rank 6 and another scaling."""
    first = train(make_ranker(), tmp_path / "first", 1, lora_r=4, lora_alpha=8)
    second = train(first, tmp_path / "second", 2, lora_r=6, lora_alpha=9, lora_top_blocks=2)
    return tmp_path / "first" / "adapter", tmp_path / "second" / "adapter", second


def logits(backbone: Any) -> torch.Tensor:
    with torch.no_grad():
        return backbone.double()(IDS).logits


def test_stacked_adapters_add_what_both_add(stages: Any, make_ranker: Any, tmp_path: Path) -> None:
    first, second, ranker = stages
    stack_adapters([first, second], tmp_path / "both", torch.float32)
    expected = logits(ranker.backbone)
    with_peft = PeftModel.from_pretrained(make_ranker().backbone, str(tmp_path / "both"))
    torch.testing.assert_close(logits(with_peft), expected, rtol=0, atol=1e-5)
    plain = make_ranker().backbone
    add_adapter(plain, tmp_path / "both")
    torch.testing.assert_close(logits(plain), expected, rtol=0, atol=1e-5)
    assert (logits(make_ranker().backbone) - expected).abs().max() > 0.1


def test_an_adapter_of_the_top_blocks_alone_touches_nothing_else(make_ranker: Any, tmp_path: Path) -> None:
    ranker = train(make_ranker(), tmp_path / "only", 3, lora_top_blocks=1)
    stack_adapters([tmp_path / "only" / "adapter"], tmp_path / "one", torch.float32)
    loaded = PeftModel.from_pretrained(make_ranker().backbone, str(tmp_path / "one"))
    assert all(".layers.3." in name for name in loaded.state_dict() if "lora" in name)
    torch.testing.assert_close(logits(loaded), logits(ranker.backbone), rtol=0, atol=1e-5)


def test_bfloat16_halves_the_file_and_hardly_moves_the_scores(stages: Any, make_ranker: Any, tmp_path: Path) -> None:
    first, second, ranker = stages
    whole = stack_adapters([first, second], tmp_path / "float32", torch.float32)
    half = stack_adapters([first, second], tmp_path / "bfloat16")
    assert half < 0.62 * whole
    plain = make_ranker()
    add_adapter(plain.backbone, tmp_path / "bfloat16")
    assert np.abs(plain.predict(PAIRS) - ranker.predict(PAIRS)).max() < 0.05


def test_checkpoints_joined_by_a_plus_give_their_mean(make_ranker: Any, stages: Any, tmp_path: Path) -> None:
    train(make_ranker(), tmp_path / "later", 5, lora_r=4, lora_alpha=8)
    pair = [tmp_path / "first" / "adapter", tmp_path / "later" / "adapter"]
    stack_adapters([f"{pair[0]}+{pair[1]}", stages[1]], tmp_path / "mean", torch.float32)
    (_, first), (_, later), (_, mean) = (read_adapter(folder) for folder in (*pair, tmp_path / "mean"))
    for name, (a, b) in mean.items():
        torch.testing.assert_close(a[:4], (first[name][0] + later[name][0]) / 2)
        torch.testing.assert_close(b[:, :4], (first[name][1] + later[name][1]) / 2)
    with pytest.raises(InputError, match="not checkpoints of one training"):
        stack_adapters([f"{pair[0]}+{stages[1]}"], tmp_path / "out")


@pytest.mark.parametrize("change", [{"peft_type": "LOHA"}, {"use_dora": True}, {"bias": "all"}])
def test_other_adapters_are_refused(stages: Any, make_ranker: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    path = stages[0] / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match="plain LoRA adapter"):
        stack_adapters([stages[0]], tmp_path / "out")
    with pytest.raises(ModelError, match="plain LoRA adapter"):
        add_adapter(make_ranker().backbone, stages[0])
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused(stages: Any, make_ranker: Any, tmp_path: Path) -> None:
    train(make_ranker(architecture="bloom"), tmp_path / "other", 4)
    with pytest.raises(ModelError, match="an adapter for another model"):
        add_adapter(make_ranker().backbone, tmp_path / "other" / "adapter")
    with pytest.raises(InputError, match="has no adapter"):
        stack_adapters([tmp_path], tmp_path / "out")
    with pytest.raises(InputError, match="no adapter was given"):
        stack_adapters([], tmp_path / "out")


@pytest.fixture
def release(stages: Any, tmp_path: Path) -> Path:
    ranker = tmp_path / "second"
    (ranker / RECORD_NAME).write_text(json.dumps({"kind": "sft"}))
    make_release(stages[:2], ranker, tmp_path / "releases" / "tsarank-tiny")
    return tmp_path / "releases" / "tsarank-tiny"


def test_a_release_ranks_like_the_trained_model(
    release: Path, stages: Any, make_ranker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_models, "read_default_model", lambda: (make_ranker().backbone, stages[2].tokenizer))
    found = read_release(release)
    ranker = merged_ranker(found)
    assert ranker.options == type(ranker).options_class.from_dict(found.ranking)
    assert np.abs(ranker.predict(PAIRS) - stages[2].predict(PAIRS)).max() < 0.05
    (release.parent / "texts.txt").write_text("yeast and flour\nice\n")
    scores = record_example(release, "bread oven", release.parent / "texts.txt")
    np.testing.assert_allclose(
        list(scores.values()), ranker.predict([("bread oven", "yeast and flour"), ("bread oven", "ice")]), atol=1e-5
    )
    example = json.loads((release / RELEASE_FILE).read_text())["example"]
    assert example == {"query": "bread oven", "documents": "texts.txt", "scores": scores}
    assert merged_ranker(found, options={"max_length": 77}).options.max_length == 77
    assert merged_ranker(found, "true_false_logits", {}).options.family == "true_false_logits"


def test_a_release_may_stand_on_another(
    stages: Any, make_ranker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_models, "read_default_model", lambda: (make_ranker().backbone, stages[2].tokenizer))
    releases = tmp_path / "releases"
    for name in ("first", "second"):
        (tmp_path / name / RECORD_NAME).write_text(json.dumps({"kind": "sft"}))
    make_release([stages[0]], tmp_path / "first", releases / "below")
    make_release([stages[1]], tmp_path / "second", releases / "above", on="below")
    make_release(stages[:2], tmp_path / "second", releases / "whole")
    below, above, whole = (read_release(releases / name) for name in ("below", "above", "whole"))
    assert [part.name for part in above.parts] == ["below", "above"]
    assert merged_ranker(above).predict(PAIRS) == pytest.approx(merged_ranker(whole).predict(PAIRS), abs=1e-5)
    assert abs(merged_ranker(above).predict(PAIRS) - merged_ranker(below).predict(PAIRS)).max() > 0.1
    assert len({one.cached_folder.name.rpartition("-")[2] for one in (below, above, whole)}) == 3
    before = above.cached_folder
    make_release([stages[0]], tmp_path / "second", releases / "below")  # other options, the same adapter
    assert read_release(releases / "above").cached_folder == before
    make_release([stages[1]], tmp_path / "first", releases / "below")
    assert read_release(releases / "above").cached_folder != before
    with pytest.raises(ModelError, match="above was trained from another version of below"):
        merged_ranker(read_release(releases / "above"))
    with pytest.raises(InputError, match="no release 'nowhere' next to"):
        make_release([stages[1]], tmp_path / "second", releases / "above", on="nowhere")
    for on in ("above", str(releases / "below")):
        with pytest.raises(InputError, match="must be another release"):
            make_release([stages[1]], tmp_path / "second", releases / "above", on=on)
    shutil.rmtree(releases / "below")
    alone = read_release(releases / "above")  # still read, since every model's name is looked up among the releases
    with pytest.raises(ModelError, match="above is based on below, which is missing"):
        merged_ranker(alone)


def test_a_release_is_refused_with_another_base_or_damaged(release: Path) -> None:
    assert read_release(release).name == "tsarank-tiny"
    facts = json.loads((release / RELEASE_FILE).read_text())
    assert facts["base"]["sha256"] == GGUF_SHA256
    with (release / ADAPTER_WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match=r"tsarank-tiny is damaged .* install the package again"):
        merged_ranker(read_release(release))
    facts["base"]["sha256"] = "0" * 64
    (release / RELEASE_FILE).write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="trained from another base"):
        merged_ranker(read_release(release))


def test_a_release_needs_a_trained_ranker(stages: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a ranking folder"):
        make_release(stages[:1], stages[0], tmp_path / "out")
    shutil.copytree(tmp_path / "second", tmp_path / "bare")
    (tmp_path / "bare" / RECORD_NAME).unlink(missing_ok=True)
    with pytest.raises(InputError, match="was not written by a training"):
        make_release(stages[:1], tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()
