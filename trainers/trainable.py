"""The trained part of a ranking model: a LoRA adapter, the top transformer blocks, or all weights.

No attribute names of architectures are used here. A stack of transformer blocks is the `ModuleList` with as many
members as the configuration has layers, so any backbone that transformers can load is supported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError
from modeling_tsarank.trainers.checkpoint_files import set_config_dtype, whole_files


Part = Literal["top_blocks", "lora", "full"]
TRAINABLE_PARTS: tuple[Part, ...] = get_args(Part)
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class BlockStack:
    """A stack of transformer blocks of a backbone.

    Attributes:
        name: the stack's name in the backbone, such as `model.layers`.
        parent: the module that contains it.
        attribute: its attribute name there.
        blocks: the blocks, first to last.
    """

    name: str
    parent: nn.Module
    attribute: str
    blocks: nn.ModuleList


@dataclass
class TrainablePart:
    """The result of `make_trainable`.

    Attributes:
        kind: "lora", "top_blocks" or "full".
        dtypes: dtype of every backbone parameter before any cast; restored in exported weights.
        adapter: the `PeftModel` around the backbone ("lora" only).
        stacks: the stacks whose top is trained ("top_blocks", and "lora" in the top blocks only).
        count: number of trained blocks in each.
    """

    kind: str
    dtypes: dict[str, torch.dtype]
    adapter: Any = None
    stacks: list[BlockStack] = field(default_factory=list)
    count: int = 0


def block_stacks(backbone: nn.Module) -> list[BlockStack]:
    """The stacks of transformer blocks: one for a decoder-only model, encoder's and decoder's for an encoder-decoder.

    Raises:
        ModelError: no `ModuleList` has as many members as the configuration has layers.
    """
    config: Any = backbone.config
    if getattr(config, "is_encoder_decoder", False):
        given = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers", "num_hidden_layers"))
        halves = {"encoder": config.num_hidden_layers, "decoder": next(one for one in given if isinstance(one, int))}
        roots = [(name, getattr(backbone, f"get_{name}")(), count) for name, count in halves.items()]
    else:
        roots = [("model", backbone, config.get_text_config().num_hidden_layers)]
    return [_largest_stack(backbone, root, name, count) for name, root, count in roots]


def _largest_stack(backbone: nn.Module, root: nn.Module, what: str, count: int) -> BlockStack:
    lists = {name: module for name, module in root.named_modules() if isinstance(module, nn.ModuleList)}
    candidates = [name for name, module in lists.items() if len(module) == count]
    # A block may itself contain a list of that length (experts, branches): outer lists take precedence.
    outer = [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]
    if not outer:
        raise ModelError(
            f"cannot find the transformer blocks of {type(backbone).__name__}: no ModuleList of its {what} has "
            f"{count} members; train a LoRA adapter or all weights instead"
        )
    name = max(outer, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    blocks = lists[name]
    parent, _, attribute = name.rpartition(".")
    full_name = next(full for full, module in backbone.named_modules() if module is blocks)
    return BlockStack(full_name, root.get_submodule(parent), attribute, blocks)


def make_trainable(
    ranker: RankerModel,
    kind: str,
    *,
    top_blocks: int = 16,
    lora_r: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.0,
    lora_target_modules: list[str] | None = None,
    lora_top_blocks: int | None = None,
    frozen_dtype: str | None = None,
) -> TrainablePart:
    """Freezes the other weights, in place, and adds the adapter.

    "top_blocks" trains only the last k blocks of each stack: embeddings, output head, lower blocks and the final norm
    stay frozen, as in the paper, which freezes all but the top 16 layers. "lora" trains an ordinary PEFT adapter of
    the *backbone*, which PEFT can load on the plain language model. A sequence-classification head is always trained
    as a whole, and is part of the adapter.

    Args:
        ranker: the model.
        kind: one of `TRAINABLE_PARTS`.
        top_blocks: k.
        lora_r, lora_alpha, lora_dropout: as in PEFT's `LoraConfig`.
        lora_target_modules: names of linear layers; `None` for all but the output head.
        lora_top_blocks: add the adapter only to the last k blocks of each stack; `None` for all blocks. The blocks
            below then have no backward pass, and share their output with the penalty's reference.
        frozen_dtype: cast frozen weights to it; trained ones keep theirs.

    Raises:
        InputError: unknown kind, or k outside the stack.
        ModelError: the blocks cannot be found, or the model has no layer of that name.
        ResourceError: the `peft` package is not installed.
    """
    ranker.calibration = None  # valid only for the weights before training
    backbone = ranker.backbone
    part = TrainablePart(kind, {name: parameter.dtype for name, parameter in backbone.named_parameters()})
    if kind == "full":
        backbone.requires_grad_(True)
        return part
    if kind not in TRAINABLE_PARTS:
        raise InputError(f"unknown trainable part {kind!r}; expected one of {', '.join(TRAINABLE_PARTS)}")
    backbone.requires_grad_(False)
    head = head_names(backbone) if ranker.own_head else []
    if kind == "lora":
        targets: Any = ALL_LINEAR if lora_target_modules is None else list(lora_target_modules)
        if lora_top_blocks is not None:
            part.stacks, part.count = _top_of(backbone, lora_top_blocks, "lora_top_blocks"), lora_top_blocks
            targets = _linear_layers_of(part, lora_target_modules)
        config = lora_config(backbone, lora_r, lora_alpha, lora_dropout, targets, head)
        from peft import get_peft_model

        try:
            part.adapter = get_peft_model(backbone, config)
        except ValueError as error:
            raise ModelError(f"cannot put LoRA on {type(backbone).__name__}: {error}".splitlines()[0]) from error
    else:
        part.stacks, part.count = train_top_blocks(backbone, top_blocks), top_blocks
    heads = [module for name, module in backbone.named_modules() if name.rpartition(".")[2] in head]
    for module in heads if kind == "top_blocks" else []:
        module.requires_grad_(True)
    if frozen_dtype is not None:
        dtype = getattr(torch, frozen_dtype)
        for parameter in backbone.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        if kind == "top_blocks":
            _cast_at_border(part, dtype)
        for module in heads:
            module.register_forward_pre_hook(_cast_to_trained)
    return part


def _cast_to_trained(module: nn.Module, args: Any) -> Any:
    return _cast(args, next(parameter.dtype for parameter in module.parameters() if parameter.requires_grad))


def head_names(backbone: Any) -> list[str]:
    """Names of the modules of a sequence-classification head, which every training trains as a whole."""
    base = backbone.base_model
    names = [name for name, module in backbone.named_children() if module is not base and [*module.parameters()]]
    return [*names, *(["pooler"] if getattr(base, "pooler", None) is not None else [])]


def _top_of(backbone: Any, count: int, setting: str) -> list[BlockStack]:
    """The backbone's stacks, after a check that each has at least `count` blocks."""
    stacks = block_stacks(backbone)
    for stack in stacks:
        if not 1 <= count <= len(stack.blocks):
            raise InputError(
                f"{setting} must be between 1 and {len(stack.blocks)}, the blocks of {stack.name}, got {count}"
            )
    return stacks


def _linear_layers_of(part: TrainablePart, targets: list[str] | None) -> str:
    """A regular expression of the names of linear layers in the trained blocks, for PEFT."""
    stacks, layers = [], set()
    for stack in part.stacks:
        first = len(stack.blocks) - part.count
        stacks.append(f"{re.escape(stack.name)}\\.(?:{'|'.join(str(first + i) for i in range(part.count))})")
        for block in stack.blocks[first:]:
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear | Conv1D) and (targets is None or _is_one_of(name, targets)):
                    layers.add(re.escape(name))
    return f"(?:{'|'.join(stacks)})\\.(?:{'|'.join(sorted(layers) or targets or ())})"


def _is_one_of(name: str, targets: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def train_top_blocks(backbone: Any, count: int) -> list[BlockStack]:
    """Freezes all but the last `count` blocks of each stack. Raises `InputError` if a stack has fewer."""
    backbone.requires_grad_(False)
    stacks = _top_of(backbone, count, "top_blocks")
    for stack in stacks:
        stack.blocks[-count:].requires_grad_(True)
    return stacks


def lora_config(
    backbone: Any, r: int, alpha: int, dropout: float, targets: str | list[str], head: Sequence[str] = ()
) -> Any:
    """PEFT's configuration of an adapter for the backbone. Raises `ResourceError` if PEFT is not installed.

    Args:
        backbone: The model.
        r, alpha, dropout, targets: As in PEFT's `LoraConfig`.
        head: Names of modules that are trained as a whole: a sequence-classification head.
    """
    try:
        from peft import LoraConfig, TaskType
    except ImportError as error:
        raise ResourceError("LoRA needs the package peft: pip install 'tsarank[train]'") from error
    encoder_decoder = getattr(backbone.config, "is_encoder_decoder", False)
    language_model = TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        task_type=TaskType.SEQ_CLS if head else language_model,
        modules_to_save=list(head) or None,
        bias="none",
    )


def _cast_at_border(part: TrainablePart, frozen_dtype: torch.dtype) -> None:
    """Lets trained blocks run in their own dtype between frozen layers of another.

    Inputs of a trained block (hidden states, rotary tables, masks) are cast to the block's dtype; outputs of the last
    one are cast back for the frozen norm and head. LoRA layers do this by themselves.
    """
    for stack in part.stacks:
        trained = stack.blocks[-part.count :]
        dtype = next(p.dtype for p in trained.parameters() if p.is_floating_point())

        def enter(_: nn.Module, args: Any, kwargs: Any, dtype: torch.dtype = dtype) -> Any:
            return _cast(args, dtype), _cast(kwargs, dtype)

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            return _cast(output, frozen_dtype)

        for block in trained:
            block.register_forward_pre_hook(enter, with_kwargs=True)
        trained[-1].register_forward_hook(leave)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_cast(item, dtype) for item in value)
    return value


# Some attention modules store the probability as a number and pass it to the kernel.
DROPOUT_NUMBERS = ("attention_dropout", "attn_dropout", "dropout", "dropout_p", "layerdrop")


def disable_dropout(module: nn.Module) -> None:
    """Sets the probability of every `Dropout` to 0, also of attention dropout stored as a number."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in DROPOUT_NUMBERS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


def drops_out(module: nn.Module) -> bool:
    """Whether the module, in its current mode, gives a different result in every run."""
    for part in (part for part in module.modules() if part.training):
        names = (*DROPOUT_NUMBERS, "p") if isinstance(part, nn.Dropout) else DROPOUT_NUMBERS
        numbers = [getattr(part, name, None) for name in names]
        if any(isinstance(number, float) and number > 0 for number in numbers):
            return True
    return False


def trained_parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the trained weights."""
    return ((name, parameter) for name, parameter in backbone.named_parameters() if parameter.requires_grad)


# ---- exporting -------------------------------------------------------------------------------------


def export_state_dict(
    backbone: nn.Module, part: TrainablePart, state_dict: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of the plain backbone: LoRA merged, original names, original dtypes. The model is not changed.

    Merging is done here on copies, because PEFT's merge and unmerge do not restore the same bits.

    Args:
        backbone: with or without LoRA layers.
        part: result of `make_trainable`.
        state_dict: gathered weights of a sharded backbone; by default its own.
    """
    state = dict(backbone.state_dict() if state_dict is None else state_dict)
    if part.kind == "lora":
        state = _merged(backbone, part, state)
    for name, value in state.items():
        if name in part.dtypes and value.dtype != part.dtypes[name]:
            state[name] = value.to(part.dtypes[name])
    return state


def _merged(backbone: nn.Module, part: TrainablePart, state: dict[str, Tensor]) -> dict[str, Tensor]:
    adapter = part.adapter.active_adapter
    merged = {}
    layers = dict(backbone.named_modules())
    for name, value in state.items():
        if ".lora_" in name or ".original_module." in name:
            continue
        if (saved := f".modules_to_save.{adapter}.") in name:
            merged[name.replace(saved, ".")] = value
            continue
        if not name.endswith(".base_layer.weight"):
            merged[name.replace(".base_layer.", ".")] = value
            continue
        prefix = name.removesuffix(".base_layer.weight")
        layer = layers[prefix]
        a, b = (state[f"{prefix}.lora_{x}.{adapter}.weight"].float() for x in "AB")
        delta = (b @ a) * layer.scaling[adapter]
        delta = delta.T if layer.fan_in_fan_out else delta
        merged[f"{prefix}.weight"] = (value.to(delta.dtype) + delta).to(part.dtypes[f"{prefix}.weight"])
    return merged


def save_ranker(
    ranker: Any, part: TrainablePart, output_dir: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Writes a ranking folder for `AutoModel` and the plain auto classes, with LoRA merged.

    `state_dict` has the gathered weights of a sharded backbone. After a failure the folder is unchanged.
    """
    save_merged(ranker.backbone, part, output_dir, state_dict, ranker.save_pretrained)


def save_merged(
    backbone: Any,
    part: TrainablePart,
    output_dir: str | Path,
    state_dict: dict[str, Tensor] | None,
    write: Callable[..., Any],
) -> None:
    """Writes the exported weights with `write`, which gets a folder and the weights as `state_dict`."""
    state = export_state_dict(backbone, part, state_dict)
    with whole_files(output_dir) as folder:
        write(folder, state_dict=state)
        dtypes = {value.dtype for name, value in state.items() if name in part.dtypes and value.is_floating_point()}
        # transformers writes the dtype of the model in memory, where frozen weights may have been cast.
        if len(dtypes) == 1:
            set_config_dtype(folder, next(iter(dtypes)))
