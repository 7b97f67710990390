"""Generated queries: what becomes of a model's text, sampling that repeats and resumes, both kinds of models."""

from __future__ import annotations

import json
import shutil

import pytest

from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.data.query_files import QueryCollector, QueryLimits
from modeling_tsarank.trainers.data.query_generation import (
    QueryGenerator,
    SamplingOptions,
    generate_queries,
    tidy_generated,
)
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


PASSAGES = ["flour yeast dough oven", "ice valley moraine", "string bow maple varnish tune", "ship crane dock"]


@pytest.mark.parametrize(
    ("text", "ended", "query", "reason"),
    [
        (" how does dough rise", True, "how does dough rise", None),
        (" how does dough rise", False, "how does dough rise", "unfinished"),
        (" how does dough rise\nThe answer", False, "how does dough rise", None),
        (" How does it rise? It rises by", False, "How does it rise?", None),
        (' "how it rises" Document: an', False, "how it rises", None),
        ("\n\n1. 2) How does it rise?", False, "How does it rise?", None),
        ("", True, "", "empty"),
        (" Query: again", True, "", "empty"),
    ],
)
def test_a_models_text_as_a_query(text, ended, query, reason):
    assert tidy_generated(text, ended) == (query, reason)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory, make_ranker):
    folder = tmp_path_factory.mktemp("generator") / "causal"
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(folder)
    ranker.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seq2seq_folder(tmp_path_factory, make_ranker):
    folder = tmp_path_factory.mktemp("generator") / "t5"
    ranker = make_ranker("twolar_t5")
    ranker.backbone.save_pretrained(folder)
    ranker.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["causal", "seq2seq"])
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


def test_sampling_is_seeded_by_batch_and_seed(folder):
    import torch

    options = {"max_new_tokens": 8, "per_passage": 2, "max_passage_tokens": 60, "batch_size": 4}
    first = QueryGenerator(str(folder), SamplingOptions(**options)).generate(PASSAGES)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = QueryGenerator(str(folder), SamplingOptions(**options)).generate(PASSAGES)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are touched"
    other = QueryGenerator(str(folder), SamplingOptions(**options, seed=1)).generate(PASSAGES)
    assert [len(texts) for texts in first] == [2] * 4
    assert first == again
    assert first != other


def test_greedy_generation_of_a_batch_is_that_of_each_alone(folder):
    """Padding, on the left of a decoder's prompt and on the right of an encoder's text, changes nothing."""
    options = SamplingOptions(temperature=0, max_new_tokens=8, max_passage_tokens=60)
    generator = QueryGenerator(str(folder), options)
    together = generator.generate(PASSAGES)
    assert together == [generator.generate([passage])[0] for passage in PASSAGES]
    assert len({texts[0][0] for texts in together}) > 1, "passages are read"


def test_control_tokens_in_a_passage_are_its_characters(seq2seq_folder):
    generator = QueryGenerator(str(seq2seq_folder), SamplingOptions(seed=1))
    generator._load()
    end = generator._tokenizer.eos_token_id
    plain, spelled = generator._inputs(["ice valley"]), generator._inputs(["ice </s> valley"])
    assert plain["input_ids"][0].tolist() == generator._tokenizer("ice valley")["input_ids"]
    assert [row.tolist().count(end) for row in (plain["input_ids"][0], spelled["input_ids"][0])] == [1, 1]


def test_the_prompt_is_the_rankers_own(causal_folder):
    generator = QueryGenerator(
        str(causal_folder), SamplingOptions(temperature=0, max_new_tokens=6, max_passage_tokens=100)
    )
    text = generator.generate(PASSAGES[:1])[0][0][0]
    import torch

    model, tokenizer = generator._model, generator._tokenizer
    ids = tokenizer(f"Document: {PASSAGES[0]} Query:", return_tensors="pt")["input_ids"]
    start = [tokenizer.bos_token_id] if generator._ranker.encoder.leading else []
    ids = torch.cat([torch.tensor([start], dtype=torch.long), ids], dim=1) if start else ids
    output = model.generate(input_ids=ids, do_sample=False, max_new_tokens=6, pad_token_id=3)
    assert text == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_second_run_generates_nothing(causal_folder, tmp_path):
    options = SamplingOptions(max_new_tokens=6, batch_size=2, max_passage_tokens=100)
    cache = RequestCache(tmp_path / "cache.jsonl")
    first = QueryGenerator(str(causal_folder), options, cache).generate(PASSAGES)
    second = QueryGenerator(str(causal_folder), options, cache)
    assert second.generate(PASSAGES) == first
    assert second._model is None, "the model was not even loaded"


def test_queries_of_a_corpus_with_their_passages(causal_folder):
    documents = {f"d{number}": Document("", PASSAGES[number % 4] + f" {number}") for number in range(12)}
    options = SamplingOptions(max_new_tokens=12, batch_size=5, temperature=2.0, top_k=0, max_passage_tokens=100)
    limits = QueryLimits(min_words=1, min_content_words=0, min_letters=0)
    collector = QueryCollector(4, "generated", limits, "tiny")
    generate_queries(documents, QueryGenerator(str(causal_folder), options), collector, 0)
    report = collector.report()
    assert report["candidates"] == report["taken"] + sum(report["rejected"].values())
    assert report["rejected"].get("unfinished", 0) > 0
    for query in collector.queries:
        assert query.source in documents
        assert query.generator == "tiny"
    for query_id, query in enumerate(collector.queries, start=1):
        assert query.query_id == f"generated-{query_id:06d}"


class Fixed:
    """Stands where a model would: its texts are given, to see which are taken."""

    options = SamplingOptions(batch_size=2)

    def __init__(self, texts):
        self.texts = texts

    def generate(self, passages):
        return [[(self.texts[passage], True)] for passage in passages]


def test_copies_and_queries_of_anything_are_not_taken():
    texts = {
        "the dough rises in the cold": "dough rises in the",
        "the ice melts in june": "What is the meaning of this question?",
        "maple and varnish": "why is maple used for a violin",
        "": "of an empty passage nothing is asked",
    }
    documents = {f"d{number}": Document("", text) for number, text in enumerate(texts)}
    collector = QueryCollector(9, "generated")
    generate_queries(documents, Fixed(texts), collector)
    assert [query.text for query in collector.queries] == ["why is maple used for a violin"]
    assert collector.rejected == {"copied": 1, "unrelated": 1}


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": -1},
        {"temperature": -1},
        {"batch_size": 0},
        {"max_new_tokens": 0},
        {"temperature": 0, "per_passage": 2},
    ],
    ids=str,
)
def test_wrong_options(options):
    with pytest.raises(InputError):
        SamplingOptions(**options)


def test_no_such_model(tmp_path, causal_folder):
    with pytest.raises(InputError, match="allows 256 tokens, passage and query need 416: lower"):
        QueryGenerator(str(causal_folder)).generate(PASSAGES)
    config = json.loads((causal_folder / "config.json").read_text())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "pad_token_id": " "}))
    with pytest.raises(ModelError, match="cannot load the model"):
        QueryGenerator(str(tmp_path / "odd")).generate(PASSAGES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot load the model"):
        QueryGenerator(str(tmp_path / "empty")).generate(PASSAGES)


@pytest.mark.parametrize("field", [{"eos_token_id": [None]}, {"output_hidden_states": ["a"]}], ids=str)
def test_a_configuration_that_only_generation_reads_is_one_line(field, causal_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(causal_folder, folder)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **field}))
    with pytest.raises(ModelError) as caught:
        QueryGenerator(str(folder), SamplingOptions(seed=1, max_passage_tokens=60)).generate(PASSAGES[:1])
    assert "\n" not in str(caught.value)
