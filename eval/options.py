"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modeling_tsarank.eval.metrics import canonical_measure
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import settle_whole_numbers
from modeling_tsarank.scores.fusion import FusionSetting


DEFAULT_MEASURES = ("ndcg@10", "ndcg@1", "ndcg@5", "map", "mrr@10", "recall@100")


@dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation.

    Attributes:
        split: Name of the judged split, recorded with the results.
        first_stage: A stage that `first_stages.retrieve` accepts, or the path of a run file.
        top_k: Documents per query to rerank.
        depth: Documents per query to retrieve, at least `top_k` (the default); those below `top_k`
            stay in the first stage's order. A run file is always read completely.
        limit_queries: Evaluate only the first N judged queries.
        fusion: How to fuse with the first stage's scores; None ranks by the reranker alone.
        measures: Measures to compute, in any spelling that `canonical_measure` accepts; the first one is plotted.
        block_pairs: Approximate number of pairs that are scored and logged together; a block contains whole documents,
            or for a listwise ranker whole queries (by default one). A killed evaluation loses at most the block in
            progress, and processes share whole blocks. None is a thirty-second of the pairs, between 100 and 2,000:
            independent of the number of processes, so that an evaluation can be resumed with another number.
        cache_dir: Folder for cached first-stage indexes; None is the default cache.
        run_format: Meaning of the third column of a three-column run file, see `run_files.read_run`.
        overwrite: Discard earlier scores in the output folder.
        show_progress: Show progress bars.
    """

    split: str = "test"
    first_stage: str = "bm25"
    top_k: int = 100
    depth: int | None = None
    limit_queries: int | None = None
    fusion: FusionSetting | None = None
    measures: tuple[str, ...] = DEFAULT_MEASURES
    block_pairs: int | None = None
    cache_dir: Path | None = None
    run_format: str | None = None
    overwrite: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "top_k", "block_pairs", "limit_queries", "depth")
        if self.depth is not None and self.depth < self.top_k:
            raise InputError(f"--depth {self.depth} is below --top-k {self.top_k}: it must be at least that")
        if not self.measures:
            raise InputError("no measure was given; give at least one, such as ndcg@10")
        # dict.fromkeys: "nDCG@10 ndcg@10" is one measure.
        names = dict.fromkeys(canonical_measure(measure) for measure in self.measures)
        object.__setattr__(self, "measures", tuple(names))

    @property
    def first_stage_name(self) -> str:
        """The first stage's name in tables: without folders, and without the suffix of a run file."""
        if is_retrieved(self.first_stage):
            kind, colon, rest = self.first_stage.partition(":")
            return kind + colon + "+".join(part.rpartition("/")[2] for part in rest.split("+"))
        path = Path(self.first_stage)
        return path.stem if path.is_file() else path.name


def is_retrieved(stage: str) -> bool:
    """Whether a first stage is searched in an index, not read from a run file."""
    return stage.partition(":")[0] in ("bm25", "dense", "splade", "rrf")
