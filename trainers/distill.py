"""Distillation of a teacher's orders or scores into a ranking model (TWOLAR, and others by `--loss`).

    accelerate launch --config_file trainers/recipes/accelerate/ddp.yaml trainers/distill.py --config twolar-distill \\
        --model_name_or_path google/flan-t5-large --train_data Dundalia/TWOLAR_ds --output_dir my-twolar
    python -m modeling_tsarank.trainers.distill --config smollm2-135m-distill-cpu --train_data permutations.jsonl

`--config` names a YAML file or a shipped recipe; options on the command line overrule it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_tsarank.trainers.script_utils import exit_script, run_script, train_ranker


DESCRIPTION = "Distillation: learn the order, the scores or the labels that a teacher gave to lists of documents."


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for what the user can mend."""
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer

    train_ranker(RankingDistillTrainer, RankingDistillConfig, "tsarank train distill", DESCRIPTION, arguments)


if __name__ == "__main__":
    exit_script(run_script(main))
