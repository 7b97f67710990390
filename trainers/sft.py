"""Mixed-loss fine-tuning of a query-likelihood ranker (TSARankLLM, stage 2).

Trains on rows {query, positives, negatives} with a ranking loss, next-token prediction and the Differential Penalty
(Eq. 5). The result is a ranking model.

    tsarank train sft --config smollm2-135m-sft-cpu --train_data train.jsonl --output_dir my-ranker
    tsarank train sft --accelerate-config fsdp2 --num-processes 4 --config tsarankllm-sft \\
        --model_name_or_path cpt-model --train_data train.jsonl --output_dir my-ranker

As a script: `accelerate launch trainers/sft.py --config tsarankllm-sft …`. `--config` takes a YAML file or a shipped
recipe; command line options take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_tsarank.trainers.script_utils import exit_script, run_script, train_ranker


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for user errors."""
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    train_ranker(RankingSFTTrainer, RankingSFTConfig, "tsarank train sft", str(__doc__), arguments)


if __name__ == "__main__":
    exit_script(run_script(main))
