"""A saved folder where there is torch and transformers and nothing of ours: ranked, piped, read plainly."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling_tsarank import InputError, TextRankingPipeline, TSARankModel, TwolarModel


READER = """
import hashlib, importlib.util, json, sys
assert importlib.util.find_spec("modeling_tsarank") is None, "the environment is not clean"
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

def digest(model):
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()

task = json.load(open(sys.argv[1]))
answers = {}
for folder, family in task["folders"]:
    ranker = AutoModel.from_pretrained(folder, trust_remote_code=True)
    plain_class = AutoModelForSeq2SeqLM if ranker.config.is_encoder_decoder else AutoModelForCausalLM
    plain = plain_class.from_pretrained(folder)
    piped = pipeline("text-ranking", model=folder, trust_remote_code=True)
    query, documents = task["query"], task["documents"]
    ranker.save_pretrained(folder + "-again")
    again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True)
    pairs = [(query, document) for document in documents]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers[folder] = {
        "class": type(ranker).__name__,
        "scores": ranker.predict(pairs).tolist(),
        "again": again.predict(pairs).tolist(),
        "rank": ranker.rank(query, documents),
        "piped": piped({"query": query, "documents": documents}, return_documents=False),
        "plain_class": type(plain).__name__,
        "plain_module": type(plain).__module__,
        "plain_digest": digest(plain),
        "backbone_digest": digest(ranker.backbone),
        "text": tokenizer.decode(tokenizer(query)["input_ids"]),
    }
json.dump(answers, open(sys.argv[2], "w"))
"""


def _digest(model: torch.nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def test_every_backbone_ranks_without_this_package(zoo, pairs, tmp_path, clean_python) -> None:
    query, documents = pairs[0][0], [document for _, document in pairs[:4]]
    models, folders = {}, []
    for name, folder in zoo.folders.items():
        for cls in (TwolarModel,) if name == "t5" else (TSARankModel, TwolarModel):
            if cls is TwolarModel and name not in ("t5", "llama", "bloom"):
                continue
            model = cls.from_backbone(str(folder))
            saved = tmp_path / f"{name}-{cls.__name__}"
            model.save_pretrained(saved)
            models[str(saved)] = model
            folders.append((str(saved), cls.__name__))
    (tmp_path / "task.json").write_text(json.dumps({"folders": folders, "query": query, "documents": documents}))
    (tmp_path / "reader.py").write_text(READER)
    subprocess.run(
        [clean_python, "-I", tmp_path / "reader.py", tmp_path / "task.json", tmp_path / "answers.json"],
        check=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == 13
    for folder, answer in answers.items():
        model = models[folder]
        expected = model.predict([(query, document) for document in documents])
        assert answer["class"] == type(model).__name__
        np.testing.assert_allclose(np.float32(answer["scores"]), expected, atol=1e-5, err_msg=folder)
        np.testing.assert_array_equal(answer["scores"], answer["again"], err_msg=folder)
        order = list(np.argsort(-expected, kind="stable"))
        assert [row["corpus_id"] for row in answer["rank"]] == order
        assert answer["piped"] == answer["rank"]
        assert answer["plain_module"].startswith("transformers.models."), "the plain reader needs no trust"
        assert answer["plain_class"] == type(model.backbone).__name__
        assert answer["plain_digest"] == answer["backbone_digest"] == _digest(model.backbone)
        assert query in answer["text"]


def test_the_pipeline_takes_one_query_or_many(zoo, pairs) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    ranking = TextRankingPipeline(model=model, tokenizer=model.tokenizer, device="cpu")
    task = {"query": pairs[0][0], "documents": [document for _, document in pairs[:4]]}
    expected = model.rank(task["query"], task["documents"], top_k=2, return_documents=True)
    assert ranking(task, top_k=2) == expected
    assert ranking([task, task], top_k=2, batch_tokens=64)[1][0]["corpus_id"] == expected[0]["corpus_id"]
    with pytest.raises(InputError, match="text-ranking expects"):
        ranking("just a query")
    with pytest.raises(InputError, match="unknown argument top_n; known: top_k"):
        ranking(task, top_n=2)


def test_a_failed_save_names_the_reason(zoo, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="it is a file, expected a folder"):
        model.save_pretrained(tmp_path / "file")


def test_saving_with_a_state_dict_keeps_native_names(zoo, tmp_path) -> None:
    """Trainers pass the wrapper's own state dict, whose names carry the prefix."""
    from safetensors.torch import load_file

    model = TSARankModel.from_backbone(str(zoo.folders["gpt2"]))
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(load_file(zoo.folders["gpt2"] / "model.safetensors"))


def test_what_travels_imports_only_torch_and_transformers(zoo, tmp_path) -> None:
    import ast

    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("*.py"))
    assert len(files) >= 8
    allowed = {"torch", "transformers", "numpy", "tqdm", "safetensors", "huggingface_hub"}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{file.name}: only siblings travel"
                assert (tmp_path / f"{node.module}.py").is_file(), f"{file.name}: {node.module} did not travel"
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                roots = {str(name).split(".")[0] for name in names}
                if file.name == "ranking_engine.py":
                    roots -= {"modeling_tsarank"}  # inside `try`: the installed engine, where there is one
                assert roots <= allowed | set(sys.stdlib_module_names), file.name
