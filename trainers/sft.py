"""Mixed-loss fine-tuning of a query-likelihood ranker (TSARankLLM, stage 2).

    accelerate launch --config_file trainers/recipes/accelerate/ddp.yaml trainers/sft.py --config tsarankllm-sft \\
        --model_name_or_path my-cpt-model --train_data Tevatron/msmarco-passage --output_dir my-ranker
    python -m modeling_tsarank.trainers.sft --config smollm2-135m-sft-cpu --train_data train.jsonl

`--config` names a YAML file or a shipped recipe; options on the command line overrule it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_tsarank.trainers.script_utils import exit_script, run_script, train_ranker


DESCRIPTION = "Mixed-loss fine-tuning: ranking loss, next-token prediction and Differential Penalty."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for what the user can mend."""
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    train_ranker(RankingSFTTrainer, RankingSFTConfig, "tsarank train sft", DESCRIPTION, arguments)


if __name__ == "__main__":
    exit_script(run_script(main))
