"""A cross-encoder teacher: an encoder fine-tuned on scored and graded lists with sentence-transformers' trainer."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.engine.checkpoints import load_errors
from modeling_tsarank.files.hashes import hash_file, hash_folder
from modeling_tsarank.files.reading import parse_yaml, read_json, read_json_object, read_text
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.rankers.pointwise import exact_scores
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.checkpoint_files import checkpoint_folders, newest_whole_checkpoint, write_manifest
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.losses import kl_to_teacher, margin_mse_loss
from modeling_tsarank.trainers.run_lock import only_training_in
from modeling_tsarank.trainers.training_data import load_training_rows


if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder


logger = logging.getLogger(__name__)

LOG, SETTINGS, CHECKPOINTS = "log.json", "settings.json", "checkpoints"


@dataclass(frozen=True)
class Lists:
    """Lists of one file.

    Attributes:
        file: In any layout of `load_training_rows`, with `teacher_scores` or with `labels`.
        rows: At most so many rows, drawn; 0 takes all.
        passes: How often each is seen, every time with other documents.
        documents: Documents of a list; of a longer one so many are drawn, always among them one of the best.
        margin_weight: Weight of Margin-MSE; only a cross-encoder's logits have margins worth learning.
        scale: What scores or labels are multiplied by to be logits.
    """

    file: str
    rows: int = 0
    passes: int = 1
    documents: int = 14
    margin_weight: float = 0.0
    scale: float = 1.0


@dataclass
class CrossEncoderPlan:
    """What a cross-encoder is made from.

    Attributes:
        base: Folder or name of the encoder.
        lists: See `Lists`.
        max_length: Tokens of a pair.
        lists_per_step, accumulation: Lists of a forward pass, and passes of an update.
        learning_rate, warmup, weight_decay: Of AdamW; the rate falls linearly to 0.
        bf16: Autocast to bfloat16; `null` where the CPU computes in it.
        pairs: Pairs of one call of the model; they are sorted by length first.
        save_steps: Updates between checkpoints.
        train_embeddings: Whether word embeddings are trained too: few lists hold few of the words, and without them
            an update takes three quarters of the time.
        seed: Of every draw.
    """

    base: str
    lists: tuple[Any, ...] = ()
    max_length: int = 192
    lists_per_step: int = 1
    accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    bf16: bool | None = None
    pairs: int = 16
    save_steps: int = 100
    train_embeddings: bool = False
    seed: int = 0
    sources: list[Lists] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.sources = [build_options(Lists, one, f"lists {number}") for number, one in enumerate(self.lists, start=1)]
        if not self.sources:
            raise InputError("a plan for a cross-encoder needs lists")
        if any(one.documents < 2 or one.passes < 1 for one in self.sources):
            raise InputError("lists need at least 2 documents and 1 pass")


def read_plan(path: Path, lists: Path, base: str | None = None) -> CrossEncoderPlan:
    """The plan of a YAML file, `$LISTS` replaced by a folder, and perhaps its base by another.

    Raises:
        InputError: the file cannot be read, an option is unknown, or a value is wrong.
    """
    content = parse_yaml(read_text(path).replace("$LISTS", str(lists)), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected options by name")
    return build_options(CrossEncoderPlan, content if base is None else {**content, "base": base}, str(path))


def make_model(plan: CrossEncoderPlan) -> CrossEncoder:
    """The encoder with a linear layer of random weights on the mean of its last states."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    # The backward pass of PyTorch's fused attention takes a third of an update on a CPU, these products a tenth.
    options = {"attn_implementation": "eager", "local_files_only": True}
    encoder = Transformer(plan.base, max_seq_length=plan.max_length, model_kwargs=options)
    if not plan.train_embeddings:
        encoder.auto_model.get_input_embeddings().requires_grad_(False)
    width = encoder.get_embedding_dimension()
    head = Dense(width, 1, activation_function=None, module_output_name="scores")
    modules = [encoder, Pooling(width, "mean"), head]
    # Logits as scores: what is distilled and mixed are their differences, which a sigmoid would flatten.
    model = CrossEncoder(modules=modules, activation_fn=nn.Identity(), device="cpu")
    exact_scores(model)
    return model


class ListLoss(nn.Module):
    """KL from the target's softmax, plus Margin-MSE to it, over the documents of each list.

    Args:
        model: The cross-encoder.
        margin_weight: Weight of Margin-MSE beside KL's 1.
        pairs: Pairs of one call of the model.
    """

    def __init__(self, model: CrossEncoder, margin_weight: float, pairs: int) -> None:
        super().__init__()
        self.model, self.margin_weight, self.pairs = model, margin_weight, pairs

    def forward(self, inputs: Sequence[Any], labels: Sequence[Tensor], **options: Any) -> Tensor:
        """A scalar, the mean over lists, from the columns `query` and `documents` and the lists' target logits."""
        queries, lists = inputs
        pairs = [(query, text) for query, texts in zip(queries, lists, strict=True) for text in texts]
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        parts = []
        for start in range(0, len(order), self.pairs):
            batch = self.model.preprocess([pairs[i] for i in order[start : start + self.pairs]])
            batch = {name: value.to(self.model.device) for name, value in batch.items() if isinstance(value, Tensor)}
            parts.append(self.model(batch)["scores"].view(-1).float())
        flat = torch.cat(parts)[torch.tensor(order).argsort().to(self.model.device)]
        sizes = [len(texts) for texts in lists]
        scores = nn.utils.rnn.pad_sequence(list(flat.split(sizes)), batch_first=True)
        targets = nn.utils.rnn.pad_sequence([one.float() for one in labels], batch_first=True).to(scores.device)
        mask = torch.arange(scores.shape[1], device=scores.device) < torch.tensor(sizes, device=scores.device)[:, None]
        loss = kl_to_teacher(scores, targets, mask)
        return loss + self.margin_weight * margin_mse_loss(scores, targets, mask) if self.margin_weight else loss

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into the model's card."""
        return {"margin_weight": self.margin_weight, "pairs": self.pairs}


def draw_lists(rows: Sequence[Mapping[str, Any]], lists: Lists, generator: random.Random) -> list[dict[str, Any]]:
    """Rows as the trainer takes them: `query`, `documents` and `label`, the target logits.

    A document of the highest target stays in every draw: a list without one has nothing to teach about the top.
    """
    chosen = list(rows)
    if lists.rows and len(chosen) > lists.rows:
        chosen = generator.sample(chosen, lists.rows)
    drawn = []
    for _ in range(lists.passes):
        for row in chosen:
            targets = row.get("teacher_scores") or row.get("labels")
            if targets is None:
                raise InputError(f"{lists.file}: a list has neither teacher_scores nor labels: {row['query']!r:.60}")
            best = max(targets)
            places = generator.sample(range(len(targets)), len(targets))
            places.sort(key=[target < best for target in targets].__getitem__)
            head = [places[0], *generator.sample(places[1:], min(lists.documents, len(places)) - 1)]
            if len({targets[i] for i in head}) > 1:
                texts = [_text(row["documents"][i]) for i in head]
                labels = [lists.scale * targets[i] for i in head]
                drawn.append({"query": row["query"], "documents": texts, "label": labels})
    return drawn


def _text(document: Mapping[str, Any]) -> str:
    return f"{document.get('title') or ''} {document['text']}".strip()


def _datasets(plan: CrossEncoderPlan) -> tuple[dict[str, Dataset], dict[str, Lists]]:
    from datasets import Dataset

    data, settings = {}, {}
    for number, lists in enumerate(plan.sources, start=1):
        name = f"{number}-{Path(lists.file).name.split('.')[0]}"
        rows = draw_lists(load_training_rows(lists.file), lists, random.Random(f"{plan.seed}/{Path(lists.file).name}"))
        data[name], settings[name] = Dataset.from_list(rows), lists
    return data, settings


class _Manifests(TrainerCallback):
    """Writes each checkpoint's manifest last: one without is the remains of a kill."""

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        write_manifest(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def _settings(plan: CrossEncoderPlan) -> dict[str, Any]:
    """The plan and the content of all that it names: a file that was edited under its name is another plan."""
    files = {one.file: hash_file(one.file) for one in plan.sources if Path(one.file).is_file()}
    settings = {**asdict(plan), "files": files, "base_files": model_fingerprint(plan.base)}
    return dict(json.loads(json.dumps(settings)))


def train_cross_encoder(plan: CrossEncoderPlan, output: Path) -> dict[str, Any]:
    """Trains, or goes on from the newest whole checkpoint in `output`; the model goes to `output/model`.

    Returns:
        What was trained on, for how long, and the losses, as in `output/log.json`.

    Raises:
        InputError: a list has no target, `output` was begun with another plan, base model or lists, or another
            training is at work there.
    """
    with only_training_in(output):
        return _train(plan, output)


def _train(plan: CrossEncoderPlan, output: Path) -> dict[str, Any]:
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    settings = _settings(plan)
    if (output / SETTINGS).is_file() and read_json(output / SETTINGS) != settings:
        raise InputError(
            f"{output} was begun with another plan, or the base model or lists have changed since; choose another "
            "folder or remove it"
        )
    if (output / LOG).is_file():
        report = read_json_object(output / LOG, allow_nan=True)
        if report.get("model") == _hash_of(output / "model"):
            return report
        logger.warning("%s is not the model that was trained, and is made again", output / "model")
    torch.manual_seed(plan.seed)
    with load_errors(plan.base):
        model = make_model(plan)
    write_json(output / SETTINGS, settings)
    data, lists = _datasets(plan)
    bf16 = cpu_has_bfloat16() if plan.bf16 is None else plan.bf16
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(output / CHECKPOINTS),
        num_train_epochs=1,
        per_device_train_batch_size=plan.lists_per_step,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.learning_rate,
        warmup_steps=plan.warmup,
        weight_decay=plan.weight_decay,
        bf16=bf16,
        use_cpu=True,
        logging_steps=min(10, plan.save_steps),
        save_steps=plan.save_steps,
        save_total_limit=2,
        seed=plan.seed,
        report_to="none",
        disable_tqdm=True,
    )
    losses: dict[str, nn.Module] = {
        name: ListLoss(model, one.margin_weight, plan.pairs) for name, one in lists.items()
    }
    trainer = CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        loss=losses,
        callbacks=[_Manifests()],
    )
    kept = output / CHECKPOINTS
    last = str(newest_whole_checkpoint(kept)) if checkpoint_folders(kept) else None
    trainer.train(resume_from_checkpoint=last)
    model.save_pretrained(str(output / "model"))
    without_folders = [{**one, "file": Path(one["file"]).name} for one in settings["lists"]]
    report = {
        "plan": {
            **{name: value for name, value in settings.items() if name not in ("sources", "files", "base_files")},
            "base": Path(plan.base).name,
            "lists": without_folders,
        },
        "lists": {name: len(one) for name, one in data.items()},
        "files": {Path(name).name: one for name, one in settings["files"].items()},
        "model": _hash_of(output / "model"),
        "bf16": bf16,
        "log": trainer.state.log_history,
    }
    write_json(output / LOG, report)
    return report


def _hash_of(folder: Path) -> str | None:
    return hash_folder(folder, deep=True) if folder.is_dir() else None
