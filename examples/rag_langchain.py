"""Rerank in a RAG pipeline with LangChain: BM25 retrieves 20 passages, tsarank keeps the best 3 for the prompt.

    pip install ".[eval,integrations]"
    python examples/rag_langchain.py "why does my phone die in the cold"

Append your chat model to the chain (`... | prompt | ChatOpenAI()`) to get an answer in place of the prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough

from modeling_tsarank.eval.bm25 import BM25Index
from modeling_tsarank.integrations.langchain import TSARankReranker


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("question", nargs="?", default="why does my phone die in the cold")
parser.add_argument("--corpus", type=Path, default=Path(__file__).parent / "collection.jsonl")
parser.add_argument("--model", help="a Hub id or a folder; default: twolar-smollm2-135m-v2")
args = parser.parse_args()

passages = [json.loads(line) for line in args.corpus.read_text(encoding="utf-8").splitlines()]
texts = {passage["_id"]: f"{passage['title']} {passage['text']}" for passage in passages}
bm25 = BM25Index.build(list(texts), list(texts.values()))
reranker = TSARankReranker(model=args.model, top_n=3)


def retrieve(question: str) -> list[Document]:
    """Your own retriever goes here: any that returns LangChain documents."""
    found = bm25.search({"q": question}, depth=20)["q"]
    return [Document(page_content=texts[key], metadata={"id": key}) for key in found]


def rerank(question: str) -> str:
    documents = reranker.compress_documents(retrieve(question), question)
    return "\n".join(f"[{document.metadata['id']}] {document.page_content}" for document in documents)


prompt = ChatPromptTemplate.from_template(
    "Answer the question from the passages, and cite their ids.\n\n{passages}\n\nQuestion: {question}"
)
chain = RunnableParallel(passages=RunnableLambda(rerank), question=RunnablePassthrough()) | prompt
print(chain.invoke(args.question).to_string())
