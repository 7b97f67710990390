"""`tsarank describe` says of a model what it does when it scores."""

from __future__ import annotations

import json

import pytest

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.cli import main
from modeling_tsarank.cli.describe import scored_by_saved_code
from modeling_tsarank.models.installed import ENGINE_API, OLDEST_API
from modeling_tsarank.models.resolver import resolve


def test_what_is_said_is_what_is_done(zoo, tmp_path, capsys) -> None:
    template = "{document} Query: {query} Relevant:"
    ranker = TwolarModel.from_backbone(str(zoo.folders["llama"]), template=template, max_length=300)
    ranker.save_pretrained(tmp_path / "ranker")
    asked = ["describe", str(tmp_path / "ranker"), "--device", "cpu", "--dtype", "float32", "--max-length", "310"]
    assert main([*asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["family"], facts["number_format"]) == ("folder", "true_false_logits", "float32")
    ids = ranker.answer_ids()
    assert facts["answer_tokens"] == dict(zip(ranker.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
    assert facts["options"]["max_length"] == 310
    assert facts["options"]["template"] == template
    assert "score_text" not in facts["options"]  # nothing is read off it
    assert facts["context"] == 512
    assert facts["parameters"] == sum(parameter.numel() for parameter in ranker.backbone.parameters())
    assert facts["document_states"] == "can be cached"
    assert facts["scored_by"] == f"the engine of the installed package (API {ENGINE_API})"
    own = f"(API {ENGINE_API} in its code; the installed engine supports {OLDEST_API} to {ENGINE_API})"
    assert facts["scored_by_saved_code"] == f"the engine of the installed package {own}"
    assert main(asked) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["family"] == "true_false_logits"
    assert shown["template"] == repr(template)
    assert shown["max_length"] == "310"
    # Code of other versions.
    code = tmp_path / "ranker" / "ranking_engine.py"
    code.write_text(code.read_text().replace(f"ENGINE_API = {ENGINE_API}\n", "ENGINE_API = 1\n"))
    own = f"(API 1 in its code; the installed engine supports {OLDEST_API} to {ENGINE_API})"
    assert scored_by_saved_code(resolve(str(tmp_path / "ranker"))) == f"plain padded batches {own}"
    code.unlink()
    assert "older than the engine" in scored_by_saved_code(resolve(str(tmp_path / "ranker")))


@pytest.mark.parametrize(
    ("architecture", "cls", "reason"),
    [
        ("t5", TwolarModel, "encoder-decoder"),
        ("gemma2", TSARankModel, "window of 16"),
        ("llama", TwolarModel, "template"),
    ],
)
def test_states_that_cannot_be_kept_are_said_with_the_reason(architecture, cls, reason, zoo, tmp_path, capsys) -> None:
    cls.from_backbone(str(zoo.folders[architecture]), max_length=200, max_query_length=60).save_pretrained(tmp_path)
    assert main(["describe", str(tmp_path), "--device", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert reason in facts["document_states"]
    assert ("plain padded batches" in facts["scored_by"]) is (architecture == "t5")
    assert scored_by_saved_code(resolve(str(zoo.folders[architecture]))) == "it has no code"
    assert (facts["answer_tokens"] == {}) is (cls is TSARankModel)
