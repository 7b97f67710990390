"""Each integration in a real pipeline of its library gives what `rank` gives."""

from __future__ import annotations

from typing import Any

import pytest

from modeling_tsarank import TSARankModel, load_ranker


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


def test_langchain(ranker: Any, expected: Any) -> None:
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


def test_llama_index(ranker: Any, expected: Any) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, TextNode

    from modeling_tsarank.integrations.llama_index import TSARankReranker

    reranker = TSARankReranker(ranker, top_n=3)
    nodes = [NodeWithScore(node=TextNode(text=text), score=0.0) for text in DOCUMENTS]
    found = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [(node.node.get_content(), node.score) for node in found] == expected[:3]
    with pytest.raises(ValueError, match="needs the query"):
        reranker.postprocess_nodes(nodes)


def test_haystack(folder: str, expected: Any) -> None:
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


def test_pyterrier(ranker: Any, expected: Any) -> None:
    pt = pytest.importorskip("pyterrier")
    import pandas as pd

    from modeling_tsarank.integrations.pyterrier import TSARankTransformer

    rows = [["1", QUERY, f"d{i}", text] for i, text in enumerate(DOCUMENTS)]
    first = pt.Transformer.from_df(pd.DataFrame(rows, columns=["qid", "query", "docno", "text"]), uniform=True)
    found = (first >> TSARankTransformer(ranker)).search(QUERY).sort_values("rank")
    assert list(zip(found["text"], found["score"], strict=True)) == expected
