"""Mixed-loss fine-tuning of a query-likelihood ranker (TSARankLLM, stage 2).

    accelerate launch --config_file trainers/recipes/accelerate/ddp.yaml trainers/sft.py --config tsarankllm-sft \\
        --model_name_or_path my-cpt-model --train_data Tevatron/msmarco-passage --output_dir my-ranker
    python -m modeling_tsarank.trainers.sft --config smollm2-135m-sft-cpu --train_data train.jsonl

`--config` names a YAML file or a shipped recipe; options on the command line overrule it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_tsarank.trainers.script_utils import (
    early_stopping,
    exit_script,
    load_reranking_sets,
    load_rows,
    parse_arguments,
    run_script,
    train_and_save,
)


DESCRIPTION = "Mixed-loss fine-tuning: ranking loss, next-token prediction and Differential Penalty."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for what the user can mend."""
    from modeling_tsarank.ranking_options import QueryLikelihoodOptions
    from modeling_tsarank.trainers.base_models import load_base_ranker
    from modeling_tsarank.trainers.early_checks import check_settings, output_folder
    from modeling_tsarank.trainers.reranking_evaluation import RerankingEvaluation
    from modeling_tsarank.trainers.script_arguments import DataArguments, RankerArguments, RerankingArguments
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    class Trainer(RerankingEvaluation, RankingSFTTrainer):
        """Fine-tuning that reranks at every evaluation."""

    types = (RankerArguments, DataArguments, RankingSFTConfig, RerankingArguments)
    model_args, data_args, training_args, reranking_args = parse_arguments(
        types, arguments, "tsarank train sft", DESCRIPTION
    )
    check_settings(reranking_args, data_args, training_args)
    with output_folder(training_args):
        rows, eval_rows = load_rows(
            data_args,
            training_args,
            "sft",
            negatives=training_args.num_negatives,
            allow_fewer=training_args.allow_fewer_negatives,
        )
        reranking_sets = load_reranking_sets(reranking_args, training_args)
        model = load_base_ranker(
            model_args.model_name_or_path, default_family=QueryLikelihoodOptions.family, **model_args.loading_options()
        )
        trainer = Trainer(
            model,
            training_args,
            train_dataset=rows,
            eval_dataset=eval_rows,
            reranking_sets=reranking_sets,
            rerank_batch_tokens=reranking_args.rerank_batch_tokens,
            callbacks=early_stopping(reranking_args),
        )
        train_and_save(trainer, data_args)


if __name__ == "__main__":
    exit_script(run_script(main))
