"""Each integration in a real pipeline of its library gives what `rank` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank import InputError, TSARankModel, load_ranker
from modeling_tsarank.integrations import as_ranker, rank_with


QUERY = "why does bread rise"
DOCUMENTS = ["Bees dance.", "Bread dough rises because yeast turns sugar into gas.", "A pilot guides a ship.", "Bees"]


@pytest.fixture(scope="module")
def folder(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("integrated")
    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ranker(folder: str) -> Any:
    return load_ranker(folder, dtype="float32")


@pytest.fixture(scope="module")
def expected(ranker: Any) -> list[tuple[str, float]]:
    return [
        (DOCUMENTS[row["corpus_id"]], pytest.approx(row["score"], abs=1e-4)) for row in ranker.rank(QUERY, DOCUMENTS)
    ]


@pytest.fixture(scope="module")
def list_ranker(zoo: Any) -> Any:
    return load_ranker(str(zoo.folders["llama"]), ranker="pairwise", dtype="float32")


@pytest.fixture(scope="module")
def listed(list_ranker: Any) -> list[tuple[str, float]]:
    return [(DOCUMENTS[row["corpus_id"]], row["score"]) for row in list_ranker.rank(QUERY, DOCUMENTS)]


@pytest.fixture(scope="module")
def split(ranker: Any) -> tuple[dict[str, Any], list[tuple[str, float, dict[str, Any]]]]:
    """Options that split documents into passages, and what `rank` gives with them."""
    options = {"passages": "max", "passage_length": 4, "passage_stride": 2}
    rows = ranker.rank(QUERY, DOCUMENTS, **options)
    return options, [
        (DOCUMENTS[row["corpus_id"]], pytest.approx(row["score"], abs=1e-4), row["passage"]) for row in rows
    ]


def test_a_model_is_a_name_a_folder_or_a_ranker(folder: str, ranker: Any) -> None:
    assert as_ranker(ranker) is ranker
    assert type(as_ranker(Path(folder))) is type(ranker)
    with pytest.raises(InputError, match="must be a name or a loaded ranker, got int"):
        as_ranker(3)


@pytest.mark.parametrize("name", ["ranker", "query", "documents", "top_k"])
def test_what_a_component_gives_itself_is_no_rank_option(ranker: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"rank_options holds {name}, which the component gives itself"):
        rank_with(ranker, QUERY, DOCUMENTS, 3, {name: 1})


def test_langchain(ranker: Any, expected: Any, list_ranker: Any, listed: Any, split: Any) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document
    from langchain_core.runnables import RunnableLambda

    from modeling_tsarank.integrations.langchain import TSARankReranker

    reranker = TSARankReranker(model=ranker, top_n=3)
    retrieve = RunnableLambda(lambda _: [Document(page_content=text, metadata={"page": 1}) for text in DOCUMENTS])
    chain = retrieve | RunnableLambda(lambda documents: reranker.compress_documents(documents, QUERY))
    found = chain.invoke(QUERY)
    assert [(document.page_content, document.metadata["relevance_score"]) for document in found] == expected[:3]
    assert found[0].metadata["page"] == 1
    assert reranker.compress_documents([], QUERY) == []
    documents = [Document(page_content=text) for text in DOCUMENTS]
    found = TSARankReranker(model=list_ranker, top_n=2).compress_documents(documents, QUERY)
    assert [(document.page_content, document.metadata["relevance_score"]) for document in found] == listed[:2]
    found = TSARankReranker(model=ranker, rank_options=split[0]).compress_documents(documents, QUERY)
    assert [(one.page_content, one.metadata["relevance_score"], one.metadata["passage"]) for one in found] == split[1][
        :3
    ]
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        TSARankReranker(model=ranker, passages="max")
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TSARankReranker(model=ranker, top_n=0)


def test_llama_index(ranker: Any, expected: Any, list_ranker: Any, listed: Any, split: Any) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

    from modeling_tsarank.integrations.llama_index import TSARankReranker

    reranker = TSARankReranker(ranker, top_n=3)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node.get_content(), node.score) for node in found] == expected[:3]
    with pytest.raises(ValueError, match="needs the query"):
        reranker.postprocess_nodes(nodes)
    found = TSARankReranker(list_ranker, top_n=2).postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node.get_content(), node.score) for node in found] == listed[:2]
    found = TSARankReranker(ranker, rank_options=split[0]).postprocess_nodes(nodes, query_str=QUERY)
    assert [
        (node.node.get_content(MetadataMode.NONE), node.score, node.node.metadata["passage"]) for node in found
    ] == (split[1][:3])
    assert all(not node.node.metadata for node in nodes), "the user's nodes stay as they are"


def test_haystack(folder: str, expected: Any, zoo: Any, listed: Any, split: Any) -> None:
    pytest.importorskip("haystack")
    from haystack import Document, Pipeline

    from modeling_tsarank.integrations.haystack import TSARankRanker

    pipeline = Pipeline()
    pipeline.add_component("ranker", TSARankRanker(folder, top_k=3))
    trusted = ["modeling_tsarank.integrations.haystack"]
    pipeline = Pipeline.loads(pipeline.dumps(), allowed_modules=trusted)
    found = pipeline.run({"ranker": {"query": QUERY, "documents": [Document(content=text) for text in DOCUMENTS]}})
    texts = [document.content for document in found["ranker"]["documents"]]
    assert texts == [text for text, _ in expected[:3]]
    documents = [Document(content=text) for text in DOCUMENTS]
    assert len(TSARankRanker(folder).run(QUERY, documents, top_k=1)["documents"]) == 1
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
            TSARankRanker(folder, top_k=3).run(QUERY, documents, top_k=wrong)
        with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
            TSARankRanker(folder, top_k=wrong)
    lists = TSARankRanker(str(zoo.folders["llama"]), options={"ranker": "pairwise", "dtype": "float32"})
    lists = TSARankRanker.from_dict(lists.to_dict())
    assert [(one.content, one.score) for one in lists.run(QUERY, documents)["documents"]] == listed
    passages = TSARankRanker.from_dict(
        TSARankRanker(folder, options={"dtype": "float32"}, rank_options=split[0]).to_dict()
    )
    found = passages.run(QUERY, documents)["documents"]
    assert [(one.content, one.score, one.meta["passage"]) for one in found] == split[1]


def test_pyterrier(ranker: Any, expected: Any, list_ranker: Any, listed: Any) -> None:
    pt = pytest.importorskip("pyterrier")
    import pandas as pd

    from modeling_tsarank.integrations.pyterrier import TSARankTransformer

    rows = [["1", QUERY, f"d{i}", text] for i, text in enumerate(DOCUMENTS)]
    first = pt.Transformer.from_df(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]), uniform=True)
    found = (first >> TSARankTransformer(ranker)).search(QUERY).sort_values("rank")
    assert list(zip(found["text"], found["score"], strict=True)) == expected
    found = (first >> TSARankTransformer(list_ranker)).search(QUERY).sort_values("rank")
    assert found["text"].tolist() == [text for text, _ in listed]
