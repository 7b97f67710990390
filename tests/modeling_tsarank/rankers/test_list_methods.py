"""Pairwise, setwise and FIRST against plain loops from their definitions, on tiny random models of four kinds."""

from __future__ import annotations

import heapq
import random
import re
from collections import Counter
from functools import cmp_to_key
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_tsarank import load_ranker
from modeling_tsarank.files.log_records import cuts_reported
from modeling_tsarank.rankers.chat import ChatSettings
from modeling_tsarank.rankers.endpoint import EndpointSettings
from modeling_tsarank.rankers.first import FirstOptions, FirstRanker, first_question
from modeling_tsarank.rankers.labels import LETTERS, LabelModel
from modeling_tsarank.rankers.listwise import window_bounds
from modeling_tsarank.rankers.pairwise import PairwiseOptions, PairwiseRanker, pairwise_question
from modeling_tsarank.rankers.rerank_service import RerankService
from modeling_tsarank.rankers.setwise import SetwiseOptions, SetwiseRanker, setwise_question
from modeling_tsarank.ranking_errors import InputError, ModelError


WORDS = ["bread", "dough", "yeast", "harbour", "pilot", "ship", "bees", "honey", "violin", "bow", "tone", "river"]
QUERY = "why does bread rise"


def texts(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.choice([1, 3, 6]))) for _ in range(count)]


class Plain:
    """The definitions, word for word: one prompt at a time, nothing remembered."""

    def __init__(self, model: LabelModel, documents: list[str], query: str = QUERY) -> None:
        self.backbone, self.tokenizer = model.backbone, model.tokenizer
        self.query, self.documents = query, documents
        self.calls = 0

    def logits(self, question: Any) -> list[float]:
        self.calls += 1
        tokenizer, labels = self.tokenizer, LETTERS[: question.count]
        with torch.inference_mode():
            if self.backbone.config.is_encoder_decoder:
                ids = torch.tensor([[*tokenizer(question.text)["input_ids"], 2]])
                rows = [[0, *tokenizer(question.begin + x, add_special_tokens=False)["input_ids"]] for x in labels]
                prompt = torch.tensor([rows[0][:-1]])
                found = self.backbone(input_ids=ids, decoder_input_ids=prompt).logits[0, -1]
            else:
                start = f"{tokenizer.bos_token}\nUser: {question.text}\nAssistant: {question.begin}"
                rows = [tokenizer(start + x, add_special_tokens=False)["input_ids"] for x in labels]
                found = self.backbone(input_ids=torch.tensor([rows[0][:-1]])).logits[0, -1]
        assert all(row[:-1] == rows[0][:-1] for row in rows)
        return [float(found[row[-1]]) for row in rows]

    def outcome(self, i: int, j: int) -> float:
        forth = self.logits(pairwise_question(self.query, self.documents[i], self.documents[j]))
        back = self.logits(pairwise_question(self.query, self.documents[j], self.documents[i]))
        if forth[0] > forth[1] and back[1] > back[0]:
            return 1.0
        return 0.0 if forth[1] > forth[0] and back[0] > back[1] else 0.5

    def best(self, members: list[int], both: bool = False) -> int:
        scores = self.logits(setwise_question(self.query, [self.documents[i] for i in members]))
        if both:
            other = self.logits(setwise_question(self.query, [self.documents[i] for i in reversed(members)]))
            scores = [a + b for a, b in zip(scores, reversed(other), strict=True)]
        return min(members, key=lambda i: (-scores[members.index(i)], i))


def order_of(rows: list[dict[str, Any]]) -> list[int]:
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    return [row["corpus_id"] for row in rows]


def rows_read(model: LabelModel, ranker: Any, documents: list[str]) -> tuple[list[dict[str, Any]], int]:
    """What a ranker returns, and how many prompts its model was given."""
    seen = []
    plain = model._read
    model._read = lambda prompts, *args: seen.append(len(prompts)) or plain(prompts, *args)  # type: ignore[method-assign]
    try:
        return ranker.rank(QUERY, documents), sum(seen)
    finally:
        del model._read


def test_allpair_counts_wins_and_half_ties(model: LabelModel) -> None:
    documents = texts(7)
    ranker = PairwiseRanker(model, PairwiseOptions("allpair"))
    rows, read = rows_read(model, ranker, documents)
    plain = Plain(model, documents)
    wins = [sum(plain.outcome(i, j) for j in range(7) if j != i) for i in range(7)]
    assert {row["corpus_id"]: row["score"] for row in rows} == dict(enumerate(wins))
    assert order_of(rows) == sorted(range(7), key=lambda i: (-wins[i], i))
    assert ranker.last_stats["calls"] == read == 7 * 6
    assert ranker.last_stats["unusable"] == 0
    pairs = [pairwise_question(QUERY, a, b) for a in documents for b in documents if a is not b]
    alone = sum(sum(map(len, model._prompt(one))) for one in pairs)
    if not model.backbone.config.is_encoder_decoder:
        assert ranker.last_stats["tokens"] < 0.8 * alone, "what prompts begin with is read once"


@pytest.mark.parametrize("passes", [1, 3])
def test_sliding_passes_bring_the_best_to_the_front(model: LabelModel, passes: int) -> None:
    documents = texts(8, seed=1)
    ranker = PairwiseRanker(model, PairwiseOptions("sliding", passes))
    plain, order, asked = Plain(model, documents), list(range(8)), set()
    for _ in range(passes):
        for place in range(6, -1, -1):
            asked.add(frozenset(order[place : place + 2]))
            if plain.outcome(order[place + 1], order[place]) == 1.0:
                order[place : place + 2] = order[place + 1], order[place]
    rows, read = rows_read(model, ranker, documents)
    assert order_of(rows) == order
    assert plain.calls == 2 * passes * 7
    assert ranker.last_stats["calls"] == read == 2 * len(asked)


def test_passes_read_what_their_questions_begin_with_once(model: LabelModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Query and first passage are read once a passage, however often it is compared; the order stays the same."""
    documents, options = texts(8, seed=1), PairwiseOptions("sliding", passes=7)
    shared, plain = PairwiseRanker(model, options), PairwiseRanker(model, options)
    rows = shared.rank(QUERY, documents)
    monkeypatch.setattr(model, "_shared", lambda question, ids: ())
    assert plain.rank(QUERY, documents) == rows
    tokens = shared.last_stats["tokens"], plain.last_stats["tokens"]
    assert tokens[0] == tokens[1] if model.backbone.config.is_encoder_decoder else tokens[0] < 0.8 * tokens[1]
    monkeypatch.undo()
    shared.rank(QUERY, documents)
    assert shared.last_stats["tokens"] <= tokens[0], "the same query again needs no prefix"


def test_sorting_is_heapsort_by_the_outcomes(model: LabelModel) -> None:
    documents = texts(8, seed=2)
    plain = Plain(model, documents)

    def compare(i: int, j: int) -> int:
        outcome = plain.outcome(i, j)
        return -1 if outcome == 1.0 or (outcome == 0.5 and i < j) else 1

    heap = [cmp_to_key(compare)(i) for i in range(8)]
    heapq.heapify(heap)
    expected = [heapq.heappop(heap).obj for _ in range(8)]
    ranker = PairwiseRanker(model, PairwiseOptions("sorting"))
    assert order_of(ranker.rank(QUERY, documents)) == expected
    assert ranker.last_stats["calls"] <= plain.calls


def plain_heapsort(best: Any, count: int, children: int, wanted: int) -> list[int]:
    heap, found = list(range(count)), []

    def heapify(size: int, node: int) -> None:
        family = [node, *range(node * children + 1, min(node * children + 1 + children, size))]
        if len(family) == 1:
            return
        winner = heap.index(best([heap[place] for place in family]))
        if winner != node:
            heap[node], heap[winner] = heap[winner], heap[node]
            heapify(size, winner)

    for node in range(count - 1, -1, -1):
        heapify(count, node)
    for size in range(count, 0, -1):
        found.append(heap[0])
        if len(found) == wanted:
            break
        heap[0], heap[size - 1] = heap[size - 1], heap[0]
        heapify(size - 1, 0)
    return found


@pytest.mark.parametrize(("count", "labels", "best", "both"), [(11, 4, 3, False), (6, 3, 10, True), (9, 2, 4, False)])
def test_setwise_heapsort(model: LabelModel, count: int, labels: int, best: int, both: bool) -> None:
    documents = texts(count, seed=3)
    plain, asked = Plain(model, documents), set()

    def choose(members: list[int]) -> int:
        asked.add(tuple(members))
        return plain.best(members, both)

    expected = plain_heapsort(choose, count, labels - 1, best)
    ranker = SetwiseRanker(model, SetwiseOptions("heapsort", labels, best, both))
    rows, read = rows_read(model, ranker, documents)
    assert order_of(rows) == expected + [i for i in range(count) if i not in expected]
    assert ranker.last_stats["calls"] == read == (2 if both else 1) * len(asked)


def test_setwise_insertion(model: LabelModel) -> None:
    documents = texts(13, seed=4)
    plain, asked = Plain(model, documents), set()

    def choose(members: list[int]) -> int:
        asked.add(tuple(members))
        return plain.best(members)

    best = plain_heapsort(choose, 4, 2, 4)
    for start in range(4, 13, 2):
        group = list(range(start, min(start + 2, 13)))
        while group:
            found = choose([best[3], *group])
            if found == best[3]:
                break
            group.remove(found)
            places = range(3)
            low, high = 0, 3
            while low < high:
                middle = places[low:high][len(places[low:high]) // 2]
                if choose([best[middle], found]) == found:
                    high = middle
                else:
                    low = middle + 1
            best = [*best[:low], found, *best[low:]][:4]
    ranker = SetwiseRanker(model, SetwiseOptions("insertion", 3, 4))
    assert order_of(ranker.rank(QUERY, documents)) == best + [i for i in range(13) if i not in best]
    assert ranker.last_stats["calls"] == len(asked)


@pytest.mark.parametrize(("count", "window", "step"), [(7, 20, None), (9, 4, 2), (10, 4, 3), (26, 26, None)])
def test_first_orders_windows_by_the_labels_logits(model: LabelModel, count: int, window: int, step: Any) -> None:
    documents = texts(count, seed=5)
    plain, order = Plain(model, documents), list(range(count))
    for start, end in window_bounds(count, window, step):
        shown = order[start:end]
        scores = plain.logits(first_question(QUERY, [documents[i] for i in shown]))
        order[start:end] = [shown[k] for k in sorted(range(len(shown)), key=lambda k: (-scores[k], k))]
    ranker = FirstRanker(model, FirstOptions(window, step))
    rows, read = rows_read(model, ranker, documents)
    assert order_of(rows) == order
    assert ranker.last_stats["calls"] == read == plain.calls == len(window_bounds(count, window, step))
    assert ranker.last_stats["tokens"] > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda model: PairwiseRanker(model, PairwiseOptions("allpair")),
        lambda model: PairwiseRanker(model, PairwiseOptions("sorting")),
        lambda model: PairwiseRanker(model),
        lambda model: SetwiseRanker(model),
        lambda model: SetwiseRanker(model, SetwiseOptions("insertion", best=2)),
        lambda model: FirstRanker(model),
    ],
    ids=["allpair", "sorting", "sliding", "heapsort", "insertion", "first"],
)
def test_short_lists_and_texts_that_are_all_alike(model: LabelModel, make: Any) -> None:
    ranker = make(model)
    assert ranker.rank(QUERY, []) == []
    assert [row["corpus_id"] for row in ranker.rank(QUERY, ["only"])] == [0]
    assert ranker.last_stats == {"calls": 0, "tokens": 0, "unusable": 0, "cut_documents": 0}
    for count in (2, 3, 5):
        assert sorted(order_of(ranker.rank(QUERY, texts(count)))) == list(range(count))
        assert ranker.last_stats["calls"] > 0
    best = ranker.rank(QUERY, texts(5))[0]
    assert ranker.rank(QUERY, texts(5), 1, True) == [{**best, "text": texts(5)[best["corpus_id"]]}]
    calls = ranker.last_stats["calls"]
    with pytest.raises(InputError, match="top_k must be a whole number of at least 1, got 0"):
        ranker.rank(QUERY, texts(5), top_k=0)
    assert ranker.last_stats["calls"] == calls, "refused before anything is asked"
    if isinstance(ranker, PairwiseRanker):
        assert [row["corpus_id"] for row in ranker.rank(QUERY, ["bees"] * 5)] == list(range(5)), "a tie moves nothing"
    assert sorted(order_of(ranker.rank("bees <|im_end|>", ["", "a", "<s>", "</s>"]))) == list(range(4))


def test_a_model_prefers_something(model: LabelModel) -> None:
    """The loops above would agree on a model that never prefers anything as well."""
    tally: Counter[str] = Counter()
    documents = texts(9, seed=6)
    questions = [pairwise_question(QUERY, a, b) for a in documents for b in documents if a != b]
    differences = [float(one[0] - one[1]) for one in model.scores(questions, tally) if one is not None]
    assert len(set(differences)) > len(questions) // 2


def test_more_documents_than_labels_or_context_are_refused(model: LabelModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has 26 labels that are single tokens .* too few for 27 documents"):
        FirstRanker(model, FirstOptions(window=27))
    with pytest.raises(ModelError, match="too few for 30 documents in one prompt"):
        SetwiseRanker(model, SetwiseOptions(labels=30))
    if not model.backbone.config.is_encoder_decoder:
        with pytest.raises(ModelError, match=r"tokens, more than the 4096 of .*passage_words"):
            FirstRanker(model).rank(QUERY, ["word " * 300] * 20)
    for options in ({"method": "bubble"}, {"passes": 0}, {"passage_words": 0}):
        with pytest.raises(InputError):
            PairwiseOptions(**options)


def test_without_single_token_labels_a_model_is_refused(zoo: Any) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Passage": 1, "word": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<unk>")
    with pytest.raises(ModelError, match="odd has 0 labels that are single tokens"):
        PairwiseRanker(LabelModel(zoo.causal("llama"), tokenizer, "odd"))


def test_one_name_and_every_method(zoo: Any, model: LabelModel, tmp_path: Path) -> None:
    folder = tmp_path / "language-model"
    model.backbone.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    for ranker, options in (("pairwise", {"passes": 2}), ("setwise", {"labels": 3}), ("first", {"window": 3})):
        loaded = load_ranker(folder, ranker=ranker, ranker_options=options, device="cpu", dtype="float32")
        documents = ["bees", "bread", "ship"]
        assert sorted(order_of(loaded.rank("bread", documents))) == [0, 1, 2]
        assert loaded.name == "language-model"
    pointwise = load_ranker(zoo.folders["llama"], device="cpu", dtype="float32")
    assert pointwise.predict([("bread", "bees")]).shape == (1,)
    for given, message in (
        ({"ranker": "bubble"}, "unknown ranker 'bubble'; expected one of pointwise, listwise"),
        ({"ranker": "setwise", "ranker_options": {"k": 3}}, "setwise has no option 'k'; it has method, labels"),
        ({"ranker_options": {"k": 3}}, "ranker_options are for rankers of lists"),
    ):
        with pytest.raises(InputError, match=message):
            load_ranker(zoo.folders["llama"], **given)
    with pytest.raises(ModelError, match="is a bi-encoder of sentence-transformers; setwise needs a language model"):
        load_ranker("dense:some/model", ranker="setwise")


# ---- behind an address -----------------------------------------------------------------------------


def by_value(_: object, number: int, payload: dict[str, Any]) -> str:
    """The letter, or the order, of the passages by the number in them."""
    text = payload["messages"][-1]["content"]
    letters = re.findall(r"Passage ([A-Z]): is (\d+)", text)
    if letters:
        return f"**Passage {max(letters, key=lambda one: int(one[1]))[0]}**"
    numbers = re.findall(r"^\[(\d+)\] is (\d+)", text, re.MULTILINE)
    return " > ".join(f"[{n}]" for n, _ in sorted(numbers, key=lambda one: -int(one[1])))


VALUES = [5, 3, 8, 1, 9, 2, 7, 4, 6, 10]
DOCUMENTS = [f"is {value}" for value in VALUES]
BY_VALUE = sorted(range(10), key=lambda i: -VALUES[i])


def remote(server: ChatServer, ranker: str, **options: Any) -> Any:
    endpoint = ChatSettings(server.url, "m", timeout=2.0, first_wait=0.01, tries=2)
    return load_ranker(server.url, ranker=ranker, ranker_options=options, endpoint=endpoint)


@pytest.mark.parametrize(
    ("ranker", "options", "calls"),
    [
        ("pairwise", {"method": "allpair"}, 90),
        ("pairwise", {"method": "sorting"}, None),
        ("pairwise", {"passes": 10}, None),
        ("setwise", {"labels": 4}, None),
        ("setwise", {"method": "insertion", "labels": 4, "best": 10}, None),
        ("listwise", {}, 1),
        ("listwise", {"window": 4, "step": 2}, 4),
    ],
)
def test_a_server_is_asked_and_a_faultless_one_sorts(ranker: str, options: dict[str, Any], calls: Any) -> None:
    with ChatServer(by_value) as server:
        loaded = remote(server, ranker, **options)
        order = order_of(loaded.rank("which is the most", DOCUMENTS))
    found = 2 if options.get("window") == 4 else 10
    assert order[:found] == BY_VALUE[:found]
    assert loaded.last_stats["calls"] == len(server.payloads) == (calls or len(server.payloads))
    counts = {"calls": len(server.payloads), "tokens": 110 * len(server.payloads), "unusable": 0, "cut_documents": 0}
    assert loaded.last_stats == counts


def test_answers_of_no_use_keep_the_first_stages_order_and_are_counted() -> None:
    answers = iter(["I cannot say.", "<think>Passage B", "Passage Z", "Passage A or B"] * 50)
    with ChatServer(lambda *_: next(answers)) as server:
        for ranker in ("pairwise", "setwise"):
            loaded = remote(server, ranker)
            assert order_of(loaded.rank("q", DOCUMENTS[:4])) == [0, 1, 2, 3]
            assert loaded.last_stats["unusable"] == loaded.last_stats["calls"] > 0
    with ChatServer(lambda *_: "no order") as server:
        loaded = remote(server, "listwise", window=4, step=2)
        assert order_of(loaded.rank("q", DOCUMENTS)) == list(range(10))
        assert loaded.last_stats == {"calls": 8, "tokens": 880, "unusable": 4, "cut_documents": 0}


@pytest.mark.parametrize("kind", ["pairwise", "setwise", "listwise"])
def test_documents_that_are_shown_in_part_are_counted(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with ChatServer(by_value) as server:
        ranker = remote(server, kind, passage_words=3)
        ranker.rank("q", ["is 1", "is 2 in four", {"title": "is 3", "text": "with a title"}])
        assert ranker.last_stats["cut_documents"] == 2
        assert "2 of 3 documents were truncated: 3 words of each are shown (passage_words)" in caplog.text
        assert all("four" not in str(payload) for payload in server.payloads)
        caplog.clear()
        with cuts_reported():
            ranker.rank("q", ["is 1", "is 2 in four"])
        assert ranker.last_stats["cut_documents"] == 1
    assert "cut" not in caplog.text


@pytest.mark.parametrize("kind", ["pairwise", "setwise", "listwise", "service"])
def test_a_single_text_is_no_list_of_documents(kind: str) -> None:
    """Its letters, or the keys of a mapping, would be ranked; nothing is asked before."""
    with ChatServer(by_value) as server:
        ranker = RerankService(EndpointSettings(server.url, "m")) if kind == "service" else remote(server, kind)
        for documents in ("yeast", {"a": "yeast"}, {"yeast"}, None, 3):
            with pytest.raises(InputError, match="documents must be a list of texts, got"):
                ranker.rank("q", documents)
        for documents in (["a", None], ["a", 3], ["a", {"title": "no text"}]):
            with pytest.raises(InputError, match="document 1"):
                ranker.rank("q", documents)
        with pytest.raises(InputError, match="the query is empty"):
            ranker.rank(" ", ["a", "b"])
        assert server.payloads == []


def test_first_and_addresses_without_a_model_are_refused() -> None:
    with pytest.raises(InputError, match="servers return in part"):
        load_ranker("https://host/v1", ranker="first", endpoint=ChatSettings("https://host/v1", "m"))
    with pytest.raises(InputError, match="needs a model name"):
        load_ranker("https://host/v1", ranker="setwise")
