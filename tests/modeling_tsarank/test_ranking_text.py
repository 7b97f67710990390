"""Prompts: only the document is ever cut, and an uncut prompt is the tokenization of its whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modeling_tsarank.modeling_tsarank import QueryLikelihoodEncoder, QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions, TemplateEncoder
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_text import (
    clean_query,
    clean_text,
    document_text,
)


text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60).map(str.strip)
query_text = text.filter(bool)


@pytest.fixture(scope="module", params=["llama", "gpt2", "t5"])
def tokenizer(request, zoo):
    return AutoTokenizer.from_pretrained(zoo.folders[request.param])


@settings(max_examples=60, deadline=None)
@given(query=query_text, document=text, max_length=st.integers(60, 140))
def test_truncation_keeps_prompt_and_query(tokenizer, query, document, max_length) -> None:
    options = QueryLikelihoodOptions(max_length=max_length, max_query_length=30)
    encoder = QueryLikelihoodEncoder(tokenizer, options)
    pair = encoder.pairs([(query, document)])[0]
    whole_query = encoder._ids(encoder._query_start + query)
    assert list(pair.query) == whole_query[:30]
    assert len(pair.prompt) + len(pair.query) <= max_length
    whole = [*encoder.leading, *encoder._ids(f"Document: {document} Query:")]
    if len(whole) + len(pair.query) <= max_length:
        assert list(pair.prompt) == whole
    else:
        assert len(pair.prompt) + len(pair.query) == max_length, "not one token more is cut than must be"
        prompt = encoder.prompts([document])[0]
        kept = len(pair.prompt) - len(prompt.before) - len(prompt.after)
        assert list(pair.prompt) == whole[: len(prompt.before) + kept] + whole[len(whole) - len(prompt.after) :]
        assert tokenizer.decode(prompt.after).strip().endswith("Query:")
        assert "Document:" in tokenizer.decode(prompt.before)


@settings(max_examples=60, deadline=None)
@given(query=query_text, document=text, max_length=st.integers(80, 160))
def test_templates_cut_the_document_only(tokenizer, query, document, max_length) -> None:
    encoder = TemplateEncoder(tokenizer, LogitOptions(max_length=max_length, max_query_length=30))
    ids = list(encoder.pairs([(query, document)])[0].prompt)
    whole = [*encoder.leading, *encoder._ids(f"Query: {query} Document: {document} Relevant:"), *encoder.trailing]
    assert len(ids) <= max_length
    end = [*encoder._ids(" Relevant:"), *encoder.trailing]
    if len(whole) <= max_length and len(encoder._ids(query)) < 25:
        assert ids == whole
    else:
        assert "Relevant:" in tokenizer.decode(ids[-len(end) - 1 :]), "the words after the document survive"
        assert "Document:" in tokenizer.decode(ids)


def test_styles_differ_as_the_papers_code_does(zoo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["gpt2"])
    styles = {}
    for style in ("separate_space", "separate", "joined"):
        encoder = QueryLikelihoodEncoder(tokenizer, QueryLikelihoodOptions(prompt_style=style))
        styles[style] = encoder.pairs([("bread rises", "yeast")])[0]
    assert tokenizer.decode(styles["separate_space"].query) == " bread rises"
    assert tokenizer.decode(styles["separate"].query) == "bread rises"
    joined = styles["joined"]
    assert list(joined.prompt + joined.query) == tokenizer("Document: yeast Query: bread rises")["input_ids"]
    assert tokenizer.decode(joined.query) == " bread rises"
    assert styles["separate"].prompt == styles["separate_space"].prompt


@settings(max_examples=40, deadline=None)
@given(query=query_text, document=text)
def test_joined_prompts_are_one_string(tokenizer, query, document) -> None:
    options = QueryLikelihoodOptions(prompt_style="joined", max_length=400, max_query_length=200)
    encoder = QueryLikelihoodEncoder(tokenizer, options)
    pair = encoder.pairs([(query, document)])[0]
    whole = [*encoder.leading, *encoder._ids(f"Document: {document} Query: {query}")]
    if len(whole) <= 300:
        assert list(pair.prompt + pair.query) == whole


def test_a_dummy_space_is_not_doubled(zoo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["t5"])
    encoder = QueryLikelihoodEncoder(tokenizer, QueryLikelihoodOptions())
    assert encoder.queries(["bread"])[0] == tokenizer("bread", add_special_tokens=False)["input_ids"]


def test_bos_follows_the_tokenizer_unless_told(zoo) -> None:
    with_bos = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    without = AutoTokenizer.from_pretrained(zoo.folders["gpt2"])

    def first(tokenizer, add_bos):
        encoder = QueryLikelihoodEncoder(tokenizer, QueryLikelihoodOptions(add_bos=add_bos))
        return encoder.pairs([("q", "d")])[0].prompt[0]

    assert first(with_bos, None) == first(with_bos, True) == first(without, True) == 1
    assert first(with_bos, False) == first(without, None) == first(without, False) != 1
    without.bos_token = None
    with pytest.raises(ModelError, match="no BOS token"):
        first(without, True)


def test_texts_that_look_like_placeholders_stay_text(zoo) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["gpt2"])
    for template in ("Query: {query} Document: {document} Relevant:", "Document: {document} Query: {query} Relevant:"):
        encoder = TemplateEncoder(tokenizer, LogitOptions(template=template))
        ids = encoder.pairs([("{document} x", "y {query}")])[0].prompt
        expected = template.replace("{query}", "<1>").replace("{document}", "<2>")
        expected = expected.replace("<1>", "{document} x").replace("<2>", "y {query}")
        assert tokenizer.decode(ids) == expected


def test_equal_documents_share_one_tokenization(zoo) -> None:
    encoder = QueryLikelihoodEncoder(AutoTokenizer.from_pretrained(zoo.folders["gpt2"]), QueryLikelihoodOptions())
    first, second = encoder.pairs([("a", "bread"), ("b", "bread")])
    assert first.prompt is second.prompt


def test_clean_text() -> None:
    assert clean_text("  a \n", "x") == "a"
    assert clean_text("\ud83d\ude00", "x") == "😀"
    assert clean_text("a\ud800b", "x") == "a\ufffdb"
    assert document_text({"title": "T", "text": "x"}) == "T x"
    assert document_text({"title": None, "text": "x"}) == "x"
    with pytest.raises(InputError, match=r"^the text of document 3 must be a string, got int$"):
        document_text({"text": 3}, "document 3")
    with pytest.raises(InputError, match="the query is empty"):
        clean_query("\u2003")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_style": "glued"}, "unknown prompt_style 'glued'; expected one of"),
        ({"aggregation": "max"}, "unknown aggregation"),
        ({"document_template": "Query:"}, "must contain {document} exactly once"),
        ({"max_length": 0}, "max_length must be a whole number"),
        ({"max_length": True}, "max_length must be a whole number"),
        ({"add_bos": "yes"}, "add_bos must be true, false or null"),
    ],
)
def test_bad_options_are_named(values, message) -> None:
    with pytest.raises(InputError, match=message):
        QueryLikelihoodOptions(**values)


def test_options_survive_a_round_trip_and_refuse_strangers() -> None:
    options = LogitOptions(strategy="softmax", max_length=300)
    assert LogitOptions.from_dict(options.to_dict()) == options
    with pytest.raises(ModelError, match="was saved for the family"):
        QueryLikelihoodOptions.from_dict(options.to_dict())
    with pytest.raises(ModelError, match="unknown ranking option colour"):
        LogitOptions.from_dict({"colour": "red"})
    with pytest.raises(ModelError, match="must be an object"):
        LogitOptions.from_dict("x")
    with pytest.raises(InputError, match="unknown strategy 'pairwise'"):
        options.override(strategy="pairwise")


@pytest.mark.parametrize("length", ["long", {}, [1]])
def test_a_tokenizer_that_fails_on_its_first_text_is_named(zoo, length) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    tokenizer.model_max_length = length
    with pytest.raises(ModelError, match="the tokenizer cannot encode a text: TypeError"):
        QueryLikelihoodEncoder(tokenizer, QueryLikelihoodOptions())
