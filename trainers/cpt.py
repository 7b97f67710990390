"""Continual pre-training of a plain causal language model on weak (query, document) pairs (TSARankLLM, stage 1).

    accelerate launch trainers/cpt.py --config tsarankllm-cpt --model_name_or_path bigscience/bloom-560m \\
        --train_data pairs.jsonl --output_dir my-cpt-model
    python -m modeling_tsarank.trainers.cpt --config smollm2-135m-cpt-cpu --train_data pairs.jsonl

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


DESCRIPTION = "Continual pre-training: predict the query from its document, over weak pairs."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for what the user can mend."""
    from modeling_tsarank.trainers.base_models import load_base_model
    from modeling_tsarank.trainers.cpt_config import CPTConfig
    from modeling_tsarank.trainers.cpt_trainer import ROW_RULES, CPTTrainer
    from modeling_tsarank.trainers.early_checks import check_settings, output_folder
    from modeling_tsarank.trainers.script_arguments import BaseModelArguments, DataArguments, RerankingArguments

    types = (BaseModelArguments, DataArguments, CPTConfig, RerankingArguments)
    model_args, data_args, training_args, reranking_args = parse_arguments(
        types, arguments, "tsarank train cpt", DESCRIPTION
    )
    check_settings(reranking_args, data_args, training_args)
    with output_folder(training_args):
        rows, eval_rows = load_rows(data_args, training_args, ROW_RULES)
        reranking_sets = load_reranking_sets(reranking_args, training_args)
        options = {**model_args.loading_options(), "trust_remote_code": training_args.trust_remote_code}
        model, tokenizer = load_base_model(
            model_args.model_name_or_path, **options, **(training_args.model_init_kwargs or {})
        )
        training_args.model_init_kwargs = None
        trainer = CPTTrainer(
            model,
            training_args,
            train_dataset=rows,
            eval_dataset=eval_rows,
            tokenizer=tokenizer,
            reranking_sets=reranking_sets,
            rerank_batch_tokens=reranking_args.rerank_batch_tokens,
            callbacks=early_stopping(reranking_args),
        )
        train_and_save(trainer, data_args)


if __name__ == "__main__":
    exit_script(run_script(main))
