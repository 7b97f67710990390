"""Teachers on this machine: rerankers that give scores, and a causal language model that is asked."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from forked import together

from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.jobs.pools import RanksPool, lead
from modeling_tsarank.rankers.chat_local import LocalChat, conversation_text
from modeling_tsarank.rankers.endpoint import RequestRefusedError, Usage
from modeling_tsarank.rankers.listwise import ListwiseOptions, ListwiseRanker
from modeling_tsarank.rankers.listwise_prompt import listwise_messages
from modeling_tsarank.rankers.pointwise import exact_scores, load_scorer
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer, LocalTeacher, ScoringTeacher, TeacherWorker


DOCUMENTS = ["flour yeast dough", "ice valley", "dough crust knead", "ice valley", "ship crane"]


@pytest.fixture
def cache(tmp_path):
    return RequestCache(tmp_path / "cache.jsonl")


@pytest.fixture(scope="module")
def ranker_folder(tmp_path_factory, make_ranker):
    folder = tmp_path_factory.mktemp("teachers") / "ranker"
    make_ranker("tsarank").save_pretrained(folder)
    return folder


def test_this_projects_reranker_orders_by_its_scores(cache, ranker_folder):
    teacher = ScoringTeacher(CachedScorer(str(ranker_folder), cache, dtype="float32", device="cpu"))
    ordering = next(teacher.order_many([("dough", DOCUMENTS)]))
    ranker = load_scorer(str(ranker_folder), dtype="float32", device="cpu")
    assert ordering.scores == pytest.approx([float(x) for x in ranker.predict([("dough", d) for d in DOCUMENTS])])
    assert ordering.outcome == "clean"
    assert ordering.permutation == sorted(range(5), key=lambda place: -ordering.scores[place])
    assert ordering.permutation.index(1) + 1 == ordering.permutation.index(3), "equal scores keep the given order"


def test_scores_are_worked_out_once(cache, ranker_folder):
    first = CachedScorer(str(ranker_folder), cache, dtype="float32")
    scores = list(first.scores_of([("dough", DOCUMENTS)]))
    second = CachedScorer(str(ranker_folder), cache, dtype="float32")
    assert list(second.scores_of([("dough", DOCUMENTS)])) == scores
    assert not second._work._pool._worker._models, "the model was not even loaded"
    assert (second.usage.cached, second.usage.requests, first.usage.requests) == (1, 0, 1)
    list(second.scores_of([("dough", DOCUMENTS[::-1]), ("ice", DOCUMENTS)]))
    list(CachedScorer(str(ranker_folder), cache, dtype="float32", max_length=50).scores_of([("dough", DOCUMENTS)]))
    assert len(cache) == 4


def test_many_lists_are_scored_together_and_kept_one_by_one(cache, ranker_folder, monkeypatch):
    """Three lists in two calls of a ranker, which reads a document that a call's lists share only once."""
    lists = [("dough", DOCUMENTS[:3]), ("ice", DOCUMENTS[:3]), ("a ship", DOCUMENTS[3:])]
    ranker = load_scorer(str(ranker_folder), dtype="float32", device="cpu")
    expected = [[float(score) for score in ranker.predict([(query, d) for d in texts])] for query, texts in lists]
    monkeypatch.setattr("modeling_tsarank.trainers.data.teacher_scores.CHUNK_PAIRS", 6)
    scorer = CachedScorer(str(ranker_folder), cache, dtype="float32", device="cpu")
    monkeypatch.setattr("modeling_tsarank.trainers.data.teacher_scores.load_scorer", lambda *_, **__: ranker)
    calls = []
    predict = ranker.predict
    monkeypatch.setattr(ranker, "predict", lambda pairs, **options: calls.append(pairs) or predict(pairs, **options))
    found = scorer.scores_of(lists)
    assert next(found) == pytest.approx(expected[0], abs=1e-5)
    assert [len(pairs) for pairs in calls] == [6]
    shared = ranker.last_stats["tokens"]
    assert [next(found), next(found)] == [pytest.approx(expected[1], abs=1e-5), pytest.approx(expected[2], abs=1e-5)]
    assert [len(pairs) for pairs in calls] == [6, 2]
    assert len(cache) == 3
    assert (scorer.usage.requests, scorer.usage.answers) == (3, 3)
    alone = 0
    for query, texts in lists[:2]:
        predict([(query, text) for text in texts])
        alone += ranker.last_stats["tokens"]
    assert shared < alone

    again = CachedScorer(str(ranker_folder), cache, dtype="float32", device="cpu")
    orders = list(ScoringTeacher(again).order_many(lists))
    assert [order.scores for order in orders] == [pytest.approx(scores, abs=1e-5) for scores in expected]
    assert not again._work._pool._worker._models
    assert again.usage.cached == 3


def test_a_cross_encoder_orders_too(cache, tmp_path, t5_tokenizer, bert_config):
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    bert_config.num_labels = 1
    folder = tmp_path / "cross-encoder"
    BertForSequenceClassification(bert_config).save_pretrained(folder)
    t5_tokenizer.save_pretrained(folder)
    teacher = ScoringTeacher(CachedScorer(f"ce:{folder}", cache, device="cpu"))
    assert teacher.name == "cross-encoder"
    ordering = next(teacher.order_many([("dough", DOCUMENTS)]))
    expected = CrossEncoder(str(folder), device="cpu").predict([("dough", text) for text in DOCUMENTS])
    assert ordering.scores == pytest.approx([float(score) for score in expected], abs=1e-6)
    if cpu_has_bfloat16():
        half = load_scorer(f"ce:{folder}", device="cpu", dtype="bfloat16").predict(
            [("dough", one) for one in DOCUMENTS]
        )
        assert half == pytest.approx(ordering.scores, abs=0.02)
        assert list(half) != ordering.scores
        assert len(set(half.tolist())) == len(set(DOCUMENTS))
    with pytest.raises(ModelError, match="cannot be loaded as a CrossEncoder"):
        load_scorer(f"ce:{tmp_path / 'nothing'}")


def test_the_layer_that_gives_the_score_is_exact_under_autocast():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 1))
    torch.nn.init.constant_(model[1].bias, 50.0)
    inputs = torch.randn(40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(inputs).flatten().tolist()
        exact_scores(model)
        exact = model(inputs).flatten().tolist()
    assert len(set(rounded)) < 20
    assert len(set(exact)) == 40


def test_a_bi_encoder_scores_by_cosine_and_encodes_a_text_once(cache, tmp_path, make_bi_encoder, monkeypatch):
    from sentence_transformers import SentenceTransformer

    folder = make_bi_encoder(tmp_path)
    scorer = load_scorer(f"dense:{folder}", device="cpu", max_length=12)
    encoder = SentenceTransformer(str(folder), device="cpu")
    encoder.max_seq_length = 12
    vectors = encoder.encode(["dough", *DOCUMENTS], convert_to_numpy=True).astype("float64")
    vectors /= (vectors**2).sum(1, keepdims=True) ** 0.5
    expected = vectors[1:] @ vectors[0]
    assert expected.std() > 1e-3
    assert scorer.predict([("dough", text) for text in DOCUMENTS]) == pytest.approx(expected, abs=1e-6)
    read: list[str] = []
    plain = type(scorer._encoder).encode_document
    monkeypatch.setattr(
        type(scorer._encoder),
        "encode_document",
        lambda self, texts, **kw: read.extend(texts) or plain(self, texts, **kw),
    )
    scorer.predict([("dough", "ice valley"), ("ice", "a new one"), ("ice", "a new one")])
    assert read == ["a new one"]
    teacher = ScoringTeacher(CachedScorer(f"dense:{folder}", cache, device="cpu"))
    assert teacher.name == "bi-encoder"
    assert next(teacher.order_many([("dough", DOCUMENTS)])).outcome == "clean"
    CachedScorer(f"ce:{folder}", cache, device="cpu")
    with pytest.raises(ModelError, match="cannot be loaded as a sentence-transformers model"):
        load_scorer(f"dense:{tmp_path / 'nothing'}")


def test_scores_of_training_rows(tmp_path, ranker_folder, capsys):
    """`tsarank data scores`: what a ranker gives, in order, for all layouts; a second run asks nothing."""
    import argparse
    import json

    from modeling_tsarank.trainers.data.commands import register_commands
    from modeling_tsarank.trainers.training_data import load_training_rows

    rows = [
        {"query_id": f"q{n}", "query": query, "pos": [DOCUMENTS[n]], "neg": [DOCUMENTS[n - 1], f"ship {n}"]}
        for n, query in enumerate(("dough", "ice", "crane"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = argparse.ArgumentParser()
    register_commands(parser.add_subparsers(required=True))
    arguments = ["scores", str(tmp_path / "rows.jsonl"), "--teacher", str(ranker_folder), "--dtype", "float32"]
    args = parser.parse_args([*arguments, "--device", "cpu", "--output", str(tmp_path / "scored.jsonl")])
    assert args.run(args) == 0
    scored = load_training_rows(tmp_path / "scored.jsonl", positives=True)
    ranker = load_scorer(str(ranker_folder), dtype="float32", device="cpu")
    first = 0
    for row, got in zip(rows, scored, strict=True):
        expected = ranker.predict([(row["query"], text) for text in row["pos"] + row["neg"]])
        assert got["teacher_scores"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (got["query_id"], got["documents"][0]["text"]) == (row["query_id"], row["pos"][0])
        assert got["labels"] == [1.0, 0.0, 0.0]
        first += expected[0] > max(expected[1:])
    assert f"{first / 3:.1%}" in capsys.readouterr().out
    report = json.loads((tmp_path / "scored.report.txt").read_text())
    assert (report["rows"], report["documents"], report["labelled_first"]) == (3, 9, first)
    before = (tmp_path / "scored.jsonl").read_bytes()
    args.device = "no such device"
    assert args.run(args) == 0
    assert (tmp_path / "scored.jsonl").read_bytes() == before
    # The round trip: a labelled document that the teacher does not put first is not what the query asks for.
    agreeing = [row["teacher_scores"][0] > max(row["teacher_scores"][1:]) for row in scored]
    assert any(agreeing), "choose other words: this random model agrees with no label"
    assert not all(agreeing), "choose other words: this random model agrees with every label"
    args.consistent_only = True
    assert args.run(args) == 0
    assert re.search(r"rows kept +(\d+)", capsys.readouterr().out)[1] == str(first)
    kept = (tmp_path / "scored.jsonl").read_bytes().splitlines()
    assert kept == [line for line, good in zip(before.splitlines(), agreeing, strict=True) if good]
    wrong = [
        row | {"pos": row["neg"][:1], "neg": row["pos"]} for row, good in zip(rows, agreeing, strict=True) if good
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    args.device = "cpu"
    with pytest.raises(InputError, match=f"first in none of {first} rows"):
        args.run(args)
    assert not (tmp_path / "scored.jsonl").exists()


def test_a_local_model_is_asked_and_remembered(cache, ranker_folder):
    teacher = LocalChat(str(ranker_folder), cache, max_new_tokens=5, device="cpu", dtype="float32")
    short = ListwiseRanker(teacher, ListwiseOptions(attempts=1))
    with pytest.raises(RequestRefusedError, match="more than the 256 of ranker; use windows"):
        teacher.complete(listwise_messages("dough", DOCUMENTS))
    assert short.order("dough", DOCUMENTS).outcome == "refused"
    messages = [{"role": "user", "content": "bread dough oven"}]
    answer = teacher.complete(messages)
    assert answer.completion_tokens <= 5
    assert answer.finish_reason in ("stop", "length")
    other = LocalChat(str(ranker_folder), cache, max_new_tokens=5, device="cpu", dtype="float32")
    again = other.complete(messages)
    assert (again.text, again.cached) == (answer.text, True)
    assert other._model is None
    with pytest.raises(InputError, match="at least 1, got 0"):
        LocalChat(str(ranker_folder), cache, max_new_tokens=0)


def test_a_local_model_is_asked_in_all_processes_and_about_a_list_once(ranker_folder, tmp_path):
    how = ListwiseOptions(attempts=2, prompt="single", passage_words=2)
    lists = [(query, DOCUMENTS[:count]) for query in ("dough", "ice", "ship", "oven") for count in (2, 3)]
    place = {"max_new_tokens": 4, "device": "cpu", "dtype": "float32"}
    folder = shutil.copytree(ranker_folder, tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    alone = ListwiseRanker(LocalChat(str(folder), **place), how)
    expected = [(one.outcome, one.answers, one.reason) for one in (alone.order(*texts) for texts in lists)]
    assert {outcome for outcome, _, _ in expected} == {"failed"}, "a model of random weights names nothing"

    class Noting(TeacherWorker):
        def __call__(self, task):
            (tmp_path / f"worked-{os.environ.get('RANK')}").touch()
            return super().__call__(task)

    def ask(pool):
        teacher = LocalTeacher(str(folder), how, RequestCache(tmp_path / "kept.jsonl"), Usage(), pool, **place)
        found = [(one.outcome, one.answers, one.reason) for one in teacher.order_many(lists)]
        return found, teacher.usage.requests, teacher.usage.cached

    for outcome in together(2, lambda: lead(ask, Noting()), tmp_path):
        assert outcome == (expected, 2 * len(lists), 0)
    assert {path.name for path in tmp_path.glob("worked-*")} == {"worked-0", "worked-1"}
    worker = TeacherWorker()
    assert ask(RanksPool(worker)) == (expected, 0, 2 * len(lists))
    assert not worker._models, "the model was not even loaded"


def test_a_local_model_writes_what_generate_writes(cache, ranker_folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    teacher = LocalChat(str(ranker_folder), cache, max_new_tokens=8, device="cpu", dtype="float32")
    answer = teacher.complete([{"role": "user", "content": "ice"}])
    tokenizer = AutoTokenizer.from_pretrained(ranker_folder)
    model = AutoModelForCausalLM.from_pretrained(ranker_folder)
    ids = tokenizer("<s>\nUser: ice\nAssistant:", return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        output = model.generate(input_ids=ids, do_sample=False, max_new_tokens=8, pad_token_id=3)
    assert answer.prompt_tokens == ids.shape[1]
    assert answer.text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_reasoning_that_the_prompt_opens_is_no_answer(cache, ranker_folder, tmp_path):
    import shutil

    from modeling_tsarank.rankers.listwise_answers import without_reasoning

    folder = shutil.copytree(ranker_folder, tmp_path / "thinker")
    template = "{% for m in messages %}{{ m.content }} {% endfor %}<think>\n"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    teacher = LocalChat(str(folder), cache, max_new_tokens=4, device="cpu", dtype="float32")
    answer = teacher.complete([{"role": "user", "content": "ice"}]).text
    assert answer.startswith("<think>")
    assert without_reasoning(answer) == ""


def test_chat_templates_with_and_without_a_system_message(causal_tokenizer):
    import copy

    messages = listwise_messages("q", ["a", "b"])
    tokenizer = copy.deepcopy(causal_tokenizer)
    body = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    tokenizer.chat_template = body
    text = conversation_text(tokenizer, messages)
    assert text.startswith("<system>")
    assert text.endswith("<go>")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + body
    )
    without = conversation_text(tokenizer, messages)
    assert without.startswith(f"<user>{messages[0]['content']}\n\n{messages[1]['content']}<assistant>")
    tokenizer.chat_template = "{{ raise_exception('nothing at all') }}"
    with pytest.raises(ModelError, match="accepts neither"):
        conversation_text(tokenizer, messages)


def test_no_such_local_model(cache, tmp_path):
    (tmp_path / "empty").mkdir()
    teacher = LocalChat(str(tmp_path / "empty"), cache)
    with pytest.raises(ModelError, match="cannot load empty as a causal"):
        teacher.complete([{"role": "user", "content": "x"}])
