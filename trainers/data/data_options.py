"""Options of data generation, for commands and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from modeling_tsarank.cli.command_line import real, seed, whole
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import settle_whole_numbers
from modeling_tsarank.trainers.options import check_choices


@dataclass(frozen=True)
class MiningOptions:
    """Options of hard negative mining.

    Attributes:
        depth: Number of first-stage documents to consider.
        count: m, negatives per query.
        rank_min: Number of top ranks to skip, not counting positives.
        absolute_margin: Candidates are dropped if they score above the positive's score minus this.
        relative_margin: The same with this fraction of the positive's score, by its magnitude. For several positives
            the lowest score is used (the safe choice, as in sentence-transformers).
        sampling: `random` from the window, or its `top`.
        seed: Seed of the sampling.

    Raises:
        InputError: a value out of range.
    """

    depth: int = 1000
    count: int = 48
    rank_min: int = 0
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: Literal["random", "top"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.rank_min <= self.depth - self.count:
            raise InputError(f"{self.count} negatives do not fit in the ranks {self.rank_min} to {self.depth}")
        check_choices(self)
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} must be 0 or more, got {value}")

    @property
    def has_margin(self) -> bool:
        """Whether the scores of positives are needed."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def threshold(self, positives: Sequence[float]) -> float:
        """The maximum score of a negative, given the scores of the positives.

        `positive - |positive| * relative`, as in sentence-transformers, is also a margin for negative scores:
        log-probabilities are never above 0.
        """
        positive = min(positives)
        return positive - max(self.absolute_margin or 0.0, abs(positive) * (self.relative_margin or 0.0))


@dataclass(frozen=True)
class SamplingOptions:
    """Options of query generation.

    Attributes:
        top_k: Sample from the k most likely tokens (docT5query: 10); 0 for all.
        temperature: Sampling temperature; 0 is greedy decoding.
        max_new_tokens: Maximum query length in tokens; an unfinished query is rejected.
        per_passage: Queries per passage.
        max_passage_tokens: Prompt and passage together; longer passages are truncated.
        batch_size: Passages per batch.
        seed: Seed of the passages and of the sampling.

    Raises:
        InputError: a value out of range.
    """

    top_k: int = 10
    temperature: float = 1.0
    max_new_tokens: int = 32
    per_passage: int = 1
    max_passage_tokens: int = 384
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "max_new_tokens", "per_passage", "batch_size", "max_passage_tokens")
        settle_whole_numbers(self, "top_k", "seed", least=0)
        if max(self.per_passage, self.max_new_tokens, self.max_passage_tokens) > 65_536:
            raise InputError("per_passage, max_new_tokens and max_passage_tokens are at most 65,536")
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.temperature == 0 and self.per_passage > 1:
            raise InputError("several queries per passage need sampling: set a temperature above 0")

    def for_generate(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        options: dict[str, Any] = {"do_sample": self.temperature > 0, "max_new_tokens": self.max_new_tokens}
        if self.temperature > 0:
            options |= {"top_k": self.top_k, "temperature": self.temperature, "num_return_sequences": self.per_passage}
        return options


# ---- options of commands -------------------------------------------------------------------------------


@dataclass
class SharedOptions:
    """Options shared by several commands.

    Attributes:
        corpus: JSON lines of {"_id", "title", "text"} (also .gz), or a folder with such a corpus.jsonl.
        output: .jsonl file to write.
        seed: Random seed.
        leakage: Test collections whose queries and passages are left out, including near duplicates: folders in
            BEIR's layout, or a folder of them, Hub ids, ir_datasets:NAME.
        cache: Cache file of answers, scores and generated batches; by default next to the output.
        index_cache: Folder of cached indexes.
        rerank_depth: Documents reranked by a rerank: stage.
        batch_tokens: Tokens per batch of a reranker.
        teacher_weights: One weight per teacher, if several score; normalized to sum to 1. By default equal.
        teacher_trained_on: Training data of each teacher, one text per teacher, for the cards; by default taken from
            its own card.
        max_length: Maximum length of a pair in tokens, for rerankers.
        max_query_length: Maximum query length in tokens, for this project's rerankers; by default the model's, mostly
            256.
        device: Such as cpu, cuda, cuda:1, mps; by default the best available.
        dtype: float32, bfloat16, float16 or auto.
    """

    corpus: Annotated[str, "C"]
    output: Annotated[Path, "FILE"]
    seed: Annotated[int, seed()] = 0
    leakage: Annotated[list[str], "D"] = field(default_factory=list)
    cache: Annotated[Path | None, "FILE"] = None
    index_cache: Annotated[Path | None, "DIR"] = None
    rerank_depth: Annotated[int, whole()] = 100
    batch_tokens: Annotated[int | None, whole()] = None
    teacher_weights: Annotated[list[float] | None, real(least=0, most=1e9), "W"] = None
    teacher_trained_on: Annotated[list[str] | None, "TEXT"] = None
    max_length: Annotated[int | None, whole()] = None
    max_query_length: Annotated[int | None, whole()] = None
    device: str | None = None
    dtype: str = "auto"


@dataclass
class QueryOptions:
    """Options of `tsarank data queries` in addition to `SamplingOptions`.

    Attributes:
        count: Number of queries to make.
        min_words: Minimum number of words.
        max_words: Maximum number of words.
        avoid: Files of queries that must not be repeated.
        language: Language of the sentence splitter.
        model: Hub id or folder; the default is included in this package.
        min_shared: Minimum number of stems shared with the passage.
    """

    count: Annotated[int, whole()]
    min_words: Annotated[int, whole()] = 3
    max_words: Annotated[int, whole()] = 32
    avoid: Annotated[list[str], "FILE"] = field(default_factory=list)
    language: str = "en"
    model: Annotated[str, "M"] = "smollm2-135m-instruct"
    min_shared: int = 1


@dataclass
class ListOptions:
    """Options of `tsarank data lists`.

    Attributes:
        queries: Files of `tsarank data queries`.
        limit: Rank only N lists, spread over all query types and first stages.
        validation_share: Fraction of the lists for validation.
        first_stages: See above.
        list_size: Documents per list.
        teacher_url: OpenAI-compatible server, such as https://host/v1.
        teacher_local: Causal language model on this machine.
        teacher_scores: Reranker, ce:CrossEncoder or dense:BiEncoder; or several.
        teacher_model: Name of the model on the server.
        teacher_options: See above.
        concurrency: Lists sent to the server concurrently.
    """

    queries: Annotated[list[str], "FILE"]
    limit: Annotated[int | None, whole()] = None
    validation_share: Annotated[float, real(least=0, below=1), "X"] = 0.05
    first_stages: Annotated[list[str], "S"] = field(default_factory=lambda: ["bm25"])
    list_size: Annotated[int, whole(least=2)] = 30
    teacher_url: Annotated[str | None, "U"] = None
    teacher_local: Annotated[str | None, "M"] = None
    teacher_scores: Annotated[list[str] | None, "M"] = None
    teacher_model: Annotated[str, "M"] = ""
    teacher_options: Annotated[list[str], "NAME=VALUE"] = field(default_factory=list)
    concurrency: Annotated[int, whole(most=1_000)] = 4


@dataclass
class MineOptions:
    """Options of `tsarank data mine` in addition to `MiningOptions`.

    Attributes:
        dataset: Folder in BEIR's layout, Hub id, ir_datasets:NAME.
        split: Judged split of --dataset.
        queries: With --corpus: .jsonl or .tsv.
        qrels: TREC's four columns or BEIR's three; see above.
        first_stage: See above.
        judge: Reranker, ce:M or dense:M, for the margins.
    """

    dataset: Annotated[str | None, "D"] = None
    split: str = "train"
    queries: Annotated[str | None, "FILE"] = None
    qrels: Annotated[str | None, "FILE"] = None
    first_stage: Annotated[str, "S"] = "bm25"
    judge: Annotated[str | None, "M"] = None
