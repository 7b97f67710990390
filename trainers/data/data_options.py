"""How data are made: choices that are options of commands, and of recipes."""

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
    """Which negatives are taken.

    Attributes:
        depth: Documents of the first stage that are looked at.
        count: m, negatives of a query.
        rank_min: Ranks skipped at the top, counted after the positives are taken out.
        absolute_margin: A candidate is dropped if its score is above the positive's minus this.
        relative_margin: The same with this share of the positive's score, by its magnitude. Of several positives the
            lowest score counts (the safe side, as in sentence-transformers).
        sampling: `random` from the window, or the `top` of it.
        seed: Of the sampling.

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
        """Whether scores of positives matter."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def threshold(self, positives: Sequence[float]) -> float:
        """The highest score a negative may have beside positives with these.

        `positive - |positive| * relative`, as sentence-transformers has it, is a margin for negative scores as well:
        log-probabilities are never above 0.
        """
        positive = min(positives)
        return positive - max(self.absolute_margin or 0.0, abs(positive) * (self.relative_margin or 0.0))


@dataclass(frozen=True)
class SamplingOptions:
    """How queries are sampled.

    Attributes:
        top_k: Most likely tokens to sample from (docT5query: 10); 0 for all.
        temperature: Of sampling; 0 takes the most likely token.
        max_new_tokens: Longest query in tokens; one that is not finished by then is not taken.
        per_passage: Queries of one passage.
        max_passage_tokens: Prompt and passage together; a longer passage is cut.
        batch_size: Passages at a time.
        seed: Of passages and sampling.

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
            raise InputError("several queries of a passage need sampling: give a temperature above 0")

    def for_generate(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        options: dict[str, Any] = {"do_sample": self.temperature > 0, "max_new_tokens": self.max_new_tokens}
        if self.temperature > 0:
            options |= {"top_k": self.top_k, "temperature": self.temperature, "num_return_sequences": self.per_passage}
        return options


# ---- options of commands -------------------------------------------------------------------------------


@dataclass
class SharedOptions:
    """What several commands have.

    Attributes:
        corpus: JSON lines of {"_id", "title", "text"} (.gz too), or a folder with such a corpus.jsonl.
        output: .jsonl file to write.
        seed: Of every draw.
        leakage: Test collections whose queries and passages are left out, exact copies and near ones: folders in
            BEIR's layout, or a folder of them, Hub ids, ir_datasets:NAME.
        cache: Where answers, scores and generated batches are kept; by default beside the output.
        index_cache: Where indexes are kept.
        rerank_depth: Documents that rerank: reads.
        batch_tokens: Tokens in a reranker's batch.
        teacher_weights: One a teacher, where several score; they are divided by their sum. By default all alike.
        teacher_trained_on: What the teacher was trained on, one text a teacher, for the cards; by default what its own
            card says.
        max_length: Tokens a reranker reads of a pair.
        max_query_length: Tokens of the query among them, for this project's rerankers; by default the model's, mostly
            256.
        device: Such as cpu, cuda, cuda:1, mps; by default the best there is.
        dtype: Number format: float32, bfloat16, float16 or auto.
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
    """What `tsarank data queries` has beside `SamplingOptions`.

    Attributes:
        count: Queries to make.
        min_words: Words at least.
        max_words: Words at most.
        avoid: Files of queries that are not to be made.
        language: Of the sentence rules.
        model: Hub id or folder; the default comes with this package.
        min_shared: Stems shared with the passage.
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
    """What `tsarank data lists` has.

    Attributes:
        queries: Files of `tsarank data queries`.
        limit: Order only N lists, spread over all kinds.
        validation_share: Share of the lists that are for validation.
        first_stages: See above.
        list_size: Documents of a list.
        teacher_url: OpenAI-compatible server, such as https://host/v1.
        teacher_local: Causal language model on this machine.
        teacher_scores: Reranker, ce:CrossEncoder or dense:BiEncoder; or several.
        teacher_model: The model's name at the server.
        teacher_options: See above.
        concurrency: Lists a server has at a time.
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
    """What `tsarank data mine` has beside `MiningOptions`.

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
