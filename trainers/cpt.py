"""Continual pre-training of a plain causal language model on weak (query, document) pairs (TSARankLLM, stage 1).

The model learns to predict the query from its document, on rows {query, document}. The result is an ordinary causal
language model, the starting point for `tsarank train sft`.

    tsarank train cpt --config smollm2-135m-cpt-cpu --train_data pairs.jsonl --output_dir cpt-model
    tsarank train cpt --accelerate-config ddp --config tsarankllm-cpt --model_name_or_path bigscience/bloom-560m \\
        --train_data pairs.jsonl --output_dir cpt-model

As a script: `accelerate launch trainers/cpt.py --config tsarankllm-cpt …`. `--config` takes a YAML file or a shipped
recipe; command line options take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeling_tsarank.trainers.script_utils import exit_script, run_script, train_model


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for user errors."""
    from modeling_tsarank.trainers.base_models import load_base_model
    from modeling_tsarank.trainers.cpt_config import CPTConfig
    from modeling_tsarank.trainers.cpt_trainer import CPTTrainer
    from modeling_tsarank.trainers.script_arguments import BaseModelArguments

    def load(given: BaseModelArguments, args: CPTConfig) -> dict[str, Any]:
        more: Any = args.model_init_kwargs or {}
        options = {**given.loading_options(), "trust_remote_code": args.trust_remote_code, **more}
        model, tokenizer = load_base_model(given.model_name_or_path, **options)
        args.model_init_kwargs = None
        return {"model": model, "tokenizer": tokenizer}

    train_model(CPTTrainer, CPTConfig, BaseModelArguments, load, "tsarank train cpt", str(__doc__), arguments)


if __name__ == "__main__":
    exit_script(run_script(main))
