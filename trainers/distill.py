"""Distillation of a teacher's rankings or scores into a ranking model (TWOLAR, and other losses with `--loss`).

Trains on rows {query, documents} with a permutation, teacher_scores or labels. The result is a ranking model: a plain
model, encoder-decoder or decoder-only, becomes a true/false ranker.

    tsarank train distill --config smollm2-135m-distill-cpu --train_data order.jsonl --output_dir my-twolar
    tsarank train distill --accelerate-config zero2 --config twolar-distill --model_name_or_path google/flan-t5-xl \\
        --train_data Dundalia/TWOLAR_ds --output_dir my-twolar

As a script: `accelerate launch trainers/distill.py --config twolar-distill …`. `--config` takes a YAML file or a
shipped recipe; command line options take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence

from modeling_tsarank.trainers.script_utils import exit_script, run_script, train_ranker


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, builds the trainer, trains, saves. Raises `TSARankError` for user errors."""
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer

    train_ranker(RankingDistillTrainer, RankingDistillConfig, "tsarank train distill", str(__doc__), arguments)


if __name__ == "__main__":
    exit_script(run_script(main))
