"""Fixtures of the measuring room: a small collection in BEIR's layout, and a tiny random model that ranks it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.types import Collection


TOPICS = {
    "bread": "flour yeast dough oven crust knead bake loaf salt water rise",
    "glacier": "ice valley moraine melt snow crevasse flow cold mountain climate lake",
    "violin": "string bow maple varnish tune note orchestra sound peg bridge music",
    "harbour": "ship crane dock tide pilot anchor cargo quay lighthouse rope sea",
    "beehive": "honey wax queen drone nectar swarm comb smoke keeper flower pollen",
    "compiler": "parser token register loop grammar optimise symbol linker type code syntax",
}


def write_collection(folder: Path, documents: int, queries: int, seed: int, prefix: str = "") -> Path:
    """A made-up collection: each document is about one topic, each query asks for one, some documents answer it."""
    generator = random.Random(seed)
    names = list(TOPICS)
    topic_of = {f"{prefix}d{number}": generator.choice(names) for number in range(documents)}
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for document_id, topic in topic_of.items():
            words = generator.choices(TOPICS[topic].split(), k=9) + generator.choices(
                TOPICS[generator.choice(names)].split(), k=4
            )
            generator.shuffle(words)
            record = {"_id": document_id, "title": f"The {topic}", "text": " ".join(words)}
            stream.write(json.dumps(record) + "\n")
    with (
        (folder / "queries.jsonl").open("w", encoding="utf-8") as stream,
        (folder / "qrels" / "test.tsv").open("w") as out,
    ):
        out.write("query-id\tcorpus-id\tscore\n")
        for number in range(queries):
            topic = names[number % len(names)]
            text = f"how does {generator.choice(TOPICS[topic].split())} matter for a {topic}"
            stream.write(json.dumps({"_id": f"{prefix}q{number}", "text": text}) + "\n")
            own = [document_id for document_id, other in topic_of.items() if other == topic]
            for document_id in generator.sample(own, min(3, len(own))):
                out.write(f"{prefix}q{number}\t{document_id}\t{generator.choice((1, 2))}\n")
    return folder


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 40 documents and 12 queries in BEIR's layout."""
    return write_collection(tmp_path_factory.mktemp("collections") / "small", documents=40, queries=12, seed=1)


@pytest.fixture
def small_collection(small_folder: Path) -> Collection:
    """The same, loaded."""
    return load_collection(str(small_folder))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word tokenizer, saved as an ordinary causal language model."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({word for text in TOPICS.values() for word in text.split()} | set(TOPICS))
    extra = ["<unk>", "<s>", "</s>", "Document", ":", "Query", "The", "how", "does", "matter", "for", "a"]
    vocabulary = {word: index for index, word in enumerate(extra + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=vocabulary["<s>"],
        eos_token_id=vocabulary["</s>"],
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
