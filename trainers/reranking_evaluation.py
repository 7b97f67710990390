"""nDCG@10 on a small reranking set during training, so that the best checkpoint is the one that ranks best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number


logger = logging.getLogger(__name__)

DEFAULT_MEASURES = ("ndcg@10",)


@dataclass(frozen=True)
class RerankingSet:
    """Candidates of some queries with their relevance judgments.

    Attributes:
        name: name of the collection.
        queries: query id to text.
        candidates: query id to [(document id, text)], in first-stage order; may be empty.
        qrels: judgments of these queries.
        first_stage: the first stage's own results, measure to value.
        measures: the measures to compute.
    """

    name: str
    queries: dict[str, str]
    candidates: dict[str, list[tuple[str, str]]]
    qrels: dict[str, dict[str, int]]
    first_stage: dict[str, float]
    measures: tuple[str, ...] = DEFAULT_MEASURES

    @classmethod
    def load(
        cls,
        collection: str,
        *,
        split: str = "test",
        first_stage: str = "bm25",
        run_format: str | None = None,
        depth: int = 30,
        limit_queries: int | None = None,
        measures: Sequence[str] = DEFAULT_MEASURES,
    ) -> RerankingSet:
        """Loads a collection and retrieves its candidates.

        Args:
            collection: a folder in BEIR's layout, a Hub id or `ir_datasets:NAME`. Use a development set: selecting a
                checkpoint on a test collection is training on it.
            split: split of the judgments.
            first_stage: bm25, dense[:MODEL], splade[:MODEL], rrf[:S+S], the name of a run of the collection, or a run
                file.
            run_format: for a run file, see `run_files.read_run`.
            depth: candidates per query.
            limit_queries: only the first N judged queries.
            measures: such as `ndcg@10` or `mrr@10`.

        Raises:
            InputError: no such collection, first stage or measure, or a limit below 1.
            ResourceError: a package of the extra `eval` is not installed.
        """
        from modeling_tsarank.eval.collections import load_collection
        from modeling_tsarank.eval.first_stages import retrieve
        from modeling_tsarank.eval.metrics import canonical_measure, compute_metrics

        depth = whole_number(depth, "depth")
        limit_queries = None if limit_queries is None else whole_number(limit_queries, "limit_queries")
        measures = tuple(canonical_measure(measure) for measure in measures)
        loaded = load_collection(collection, split)
        query_ids = loaded.judged_queries()[:limit_queries]
        run = retrieve(loaded, first_stage, depth, None, query_ids, run_format)
        qrels = {query_id: loaded.qrels[query_id] for query_id in query_ids}
        before = compute_metrics(run, qrels, measures).aggregate
        logger.info("%s: %d queries, the first stage's %s", loaded.name, len(query_ids), _listed(before))
        queries = {query_id: loaded.queries[query_id] for query_id in query_ids}
        candidates = {one: [(name, loaded.documents[name].full_text) for name in run[one]] for one in query_ids}
        return cls(loaded.name, queries, candidates, qrels, before, measures)

    def scores(
        self, model: RankerModel, query_ids: Sequence[str], batch_tokens: int | None = None
    ) -> dict[str, dict[str, float]]:
        """The model's scores of these queries' candidates: query id to document id to score."""
        places = [(one, name) for one in query_ids for name, _ in self.candidates[one]]
        pairs = [(self.queries[one], text) for one in query_ids for _, text in self.candidates[one]]
        values: Any = model.predict(pairs, batch_tokens=batch_tokens) if pairs else []
        run: dict[str, dict[str, float]] = {query_id: {} for query_id in query_ids}
        for (query_id, document_id), value in zip(places, values, strict=True):
            run[query_id][document_id] = float(value)
        return run

    def measure(self, run: dict[str, dict[str, float]]) -> dict[str, float]:
        """The means of a run over all queries, including those without candidates."""
        from modeling_tsarank.eval.metrics import compute_metrics

        return compute_metrics(run, self.qrels, self.measures).aggregate


class RerankingEvaluation:
    """Mixin for a `Trainer`: every evaluation also reranks, and adds ranking measures to its metrics.

    With one set the metrics are `eval_ndcg@10` and so on, with several `eval_NAME_ndcg@10` of each and their mean as
    `eval_ndcg@10`. They are ordinary metrics, usable with `metric_for_best_model="ndcg@10"`, `load_best_model_at_end`,
    `EarlyStoppingCallback` and every logger. No other evaluation dataset is needed.

    The queries are divided among the processes; all of them get the same results, and so make the same decisions. The
    trainer provides its model as `ranker`.

    Args:
        reranking_sets: the sets to rerank; without any, this class has no effect.
        rerank_batch_tokens: padded tokens per batch.
        eval_dataset, kwargs: the trainer's own.

    Raises:
        InputError: two sets of the same name, or a model that is sharded over processes (FSDP, ZeRO-3).
    """

    def __init__(
        self,
        *args: Any,
        reranking_sets: Sequence[RerankingSet] = (),
        rerank_batch_tokens: int | None = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        names = [one.name for one in reranking_sets]
        if len(set(names)) < len(names):
            raise InputError(f"reranking sets need different names, got {', '.join(names)}")
        self.reranking_sets = tuple(reranking_sets)
        self.rerank_batch_tokens = rerank_batch_tokens
        self._reranks_in_loop = False
        if eval_dataset is None and reranking_sets:
            # `Trainer` raises when it evaluates without data; an empty dict of datasets evaluates to no metrics.
            eval_dataset = {}
        super().__init__(*args, eval_dataset=eval_dataset, **kwargs)  # type: ignore[call-arg]
        if self.reranking_sets and _is_sharded(self):
            raise InputError(
                "reranking during training needs the whole model in every process, but FSDP or ZeRO-3 shards it; "
                "remove rerank_collection and run `tsarank evaluate` on the checkpoints"
            )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Like `transformers.Trainer.evaluate`; the trainer's own evaluation (no dataset given) reranks as well."""
        trainer: Any = self
        evaluate = super().evaluate  # type: ignore[misc]
        if not self.reranking_sets or eval_dataset is not None:
            return evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if not isinstance(trainer.eval_dataset, dict):
            # Within the loop, so that one log and one call of the callbacks contain all metrics.
            self._reranks_in_loop = True
            try:
                return evaluate(None, ignore_keys, metric_key_prefix)
            finally:
                self._reranks_in_loop = False
        metrics = evaluate(None, ignore_keys, metric_key_prefix)
        # Loggers recognize an evaluation's log by the model's mode.
        trainer.model.eval()
        ranking = self._rerank(metric_key_prefix)
        trainer.log(dict(ranking))
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, ranking)
        return {**metrics, **ranking}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Like `transformers.Trainer.evaluation_loop`, with the ranking measures among the metrics."""
        loop = super().evaluation_loop  # type: ignore[misc]
        output = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._reranks_in_loop:
            output.metrics.update(self._rerank(metric_key_prefix))
        return output

    def _rerank(self, prefix: str) -> dict[str, float]:
        """The measures of all sets, the same in every process."""
        from accelerate.utils import gather_object

        trainer: Any = self
        results = {}
        for one in self.reranking_sets:
            mine = list(one.queries)[trainer.args.process_index :: trainer.args.world_size]
            with trainer.accelerator.autocast():
                run = one.scores(trainer.ranker, mine, self.rerank_batch_tokens)
            if trainer.args.world_size > 1:
                run = {query_id: scores for part in gather_object([run]) for query_id, scores in part.items()}
            results[one.name] = one.measure(run)
        if len(results) == 1:
            (only,) = results.values()
            return {f"{prefix}_{measure}": value for measure, value in only.items()}
        metrics = {f"{prefix}_{name}_{one}": values[one] for name, values in results.items() for one in values}
        for measure in next(iter(results.values())):
            metrics[f"{prefix}_{measure}"] = sum(values[measure] for values in results.values()) / len(results)
        return metrics


def _is_sharded(trainer: Any) -> bool:
    if trainer.is_fsdp_enabled:
        return True
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    return plugin is not None and plugin.zero_stage == 3


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{measure} is {value:.4f}" for measure, value in values.items())
