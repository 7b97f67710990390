"""Distillation of a teacher's orders or scores into a ranking model (TWOLAR, and others by `--loss`).

    accelerate launch --config_file trainers/recipes/accelerate/ddp.yaml trainers/distill.py --config twolar-distill \\
        --model_name_or_path google/flan-t5-large --train_data Dundalia/TWOLAR_ds --output_dir my-twolar
    python -m modeling_tsarank.trainers.distill --config smollm2-135m-distill-cpu --train_data permutations.jsonl

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


DESCRIPTION = "Distillation: learn the order, the scores or the labels that a teacher gave to lists of documents."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for what the user can mend."""
    from modeling_tsarank.ranking_options import LogitOptions
    from modeling_tsarank.trainers.base_models import load_base_ranker
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
    from modeling_tsarank.trainers.early_checks import check_settings, output_folder
    from modeling_tsarank.trainers.reranking_evaluation import RerankingEvaluation
    from modeling_tsarank.trainers.script_arguments import DataArguments, RankerArguments, RerankingArguments

    class Trainer(RerankingEvaluation, RankingDistillTrainer):
        """Distillation that reranks at every evaluation."""

    types = (RankerArguments, DataArguments, RankingDistillConfig, RerankingArguments)
    model_args, data_args, training_args, reranking_args = parse_arguments(
        types, arguments, "tsarank train distill", DESCRIPTION
    )
    check_settings(reranking_args, data_args, training_args)
    with output_folder(training_args):
        rows, eval_rows = load_rows(data_args, training_args, "distill")
        reranking_sets = load_reranking_sets(reranking_args, training_args)
        model = load_base_ranker(
            model_args.model_name_or_path, default_family=LogitOptions.family, **model_args.loading_options()
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
