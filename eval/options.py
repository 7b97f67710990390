"""What to evaluate and how."""

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
    """What to evaluate and how.

    Attributes:
        split: Name of the judged split, for the record.
        first_stage: A stage that `first_stages.retrieve` knows, or the path of a run file.
        top_k: Documents a query that are reranked.
        depth: Documents a query that the first stage retrieves, at least `top_k` (the default); those below `top_k`
            keep its order. A run file is always read whole.
        limit_queries: Evaluate only the first so many judged queries.
        fusion: How to mix in the first stage's scores; None ranks by the reranker alone.
        measures: Measures to compute, under any spelling that `canonical_measure` knows; the first one is plotted.
        block_pairs: Pairs scored and logged together, about; whole documents, or whole queries of a ranker of lists,
            which has a query a block by default. A killed evaluation loses at most the
            block that it was scoring, and several processes share whole blocks. None is a thirty-second of the pairs,
            between 100 and 2,000: the same for any number of processes, so that another number can go on.
        cache_dir: Where first-stage indexes are cached; None is the usual place.
        run_format: What the third of three columns of a run file is, see `run_files.read_run`.
        overwrite: Throw earlier scores in the output folder away.
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
            raise InputError(f"--depth {self.depth} is below --top-k {self.top_k}: there is not that much to rerank")
        if not self.measures:
            raise InputError("no measure was given; name at least one, such as ndcg@10")
        # dict.fromkeys: "nDCG@10 ndcg@10" is one measure.
        names = dict.fromkeys(canonical_measure(measure) for measure in self.measures)
        object.__setattr__(self, "measures", tuple(names))

    @property
    def first_stage_name(self) -> str:
        """What tables call the first stage: no folders, and of a run file's name no suffix."""
        if is_retrieved(self.first_stage):
            kind, colon, rest = self.first_stage.partition(":")
            return kind + colon + "+".join(part.rpartition("/")[2] for part in rest.split("+"))
        path = Path(self.first_stage)
        return path.stem if path.is_file() else path.name


def is_retrieved(stage: str) -> bool:
    """Whether a first stage is searched for in an index, and not read from a run file."""
    return stage.partition(":")[0] in ("bm25", "dense", "splade", "rrf")
