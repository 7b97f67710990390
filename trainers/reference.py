"""The reference model of the Differential Penalty, the start of fine-tuning, if possible without a second full copy.

| trained part | reference | extra memory |
|---|---|---|
| LoRA | the same model with its adapter disabled | none |
| LoRA in the top k blocks | the same, after the shared trunk, which runs once | none |
| top k blocks | frozen copies of those blocks, after the shared trunk, which runs once | k blocks |
| all weights, or a given model | a frozen model | a whole model |

Before any training step, each reference gives logits that are bitwise equal to the trained model's: the same kernels
run on the same shapes. Only then is the penalty exactly 0 at the first step.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.trainers.trainable import BlockStack, TrainablePart, drops_out


# A computation on each of the two models; one or several forward passes, the same ones for both.
ResultT = TypeVar("ResultT")
Call = Callable[[RankerModel], ResultT]


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """No gradient, no dropout, no activation checkpointing."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


class Reference(nn.Module):
    """Runs the trained model and its reference on the same input."""

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        """`call(model)` of the reference (a constant) and of the trained model (with its graph)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Reference:
        """A reference is never trained: it stays in evaluation mode."""
        return super().train(False)


class AdapterReference(Reference):
    """The trained model with its LoRA adapter disabled.

    If only the top blocks have the adapter, the trunk has no trained weights, runs once with the reference, and the
    trained model reuses its output. A trunk with active dropout runs twice, since the reference has no dropout.
    """

    def __init__(self, adapter: Any, part: TrainablePart | None = None) -> None:
        super().__init__()
        # In a tuple: the adapter's parameters are the ranker's and must not be registered twice.
        self._adapter = (adapter,)
        self._trunk = None if part is None or not part.stacks else _Trunk(part)

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        trunk = self._trunk
        if trunk is None or trunk.drops_out:
            return self._switched_off(ranker, call), call(ranker)
        with trunk.noted() as noted:
            reference = self._switched_off(ranker, call)
        with trunk.replayed(noted, trunk.tops):
            return reference, call(ranker)

    def _switched_off(self, ranker: RankerModel, call: Call[ResultT]) -> ResultT:
        # The reference first: PEFT turns `requires_grad` of the adapter off and on again, which must not happen
        # between the trained model's forward and backward pass.
        with _evaluating(ranker), self._adapter[0].disable_adapter():
            return call(ranker)


class ModelReference(Reference):
    """A separate frozen model: a copy, or one given by the user."""

    def __init__(self, model: RankerModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    @classmethod
    def copy_of(cls, ranker: RankerModel) -> ModelReference:
        """A frozen copy of the ranker's current state."""
        return cls(type(ranker)(copy.deepcopy(ranker.config), backbone=copy.deepcopy(ranker.backbone)))

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        with torch.no_grad():
            reference = call(self.model)
        return reference, call(ranker)


class _Replay(nn.Module):
    """Replaces a block of the trunk: returns the recorded output of the trunk's last block, pass by pass.

    All other attributes that a model reads from a block (its attention type, for example) are the block's own.
    """

    def __init__(self, block: nn.Module, outputs: Iterable[Any]) -> None:
        super().__init__()
        # Not registered as submodules, or they would be moved and counted with the model.
        self.__dict__["_block"] = block
        self.__dict__["_outputs"] = iter(outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return next(self._outputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)


class _Trunk:
    """The blocks below the trained ones. Their output can be recorded in forward passes and replayed in later ones.

    A replay is the model's own forward with a replaced list of blocks: trunk blocks only pass on what was recorded,
    and the top blocks are the trained ones or others. Embedding, masks, final norm and head are unchanged.
    """

    def __init__(self, part: TrainablePart) -> None:
        self._stacks = tuple(part.stacks)
        self._count = part.count
        self.tops = [stack.blocks[-part.count :] for stack in part.stacks]

    def _blocks(self, stack: BlockStack) -> nn.ModuleList:
        return stack.blocks[: len(stack.blocks) - self._count]

    @property
    def drops_out(self) -> bool:
        """Whether the trunk, in its current mode, gives a different result in every run."""
        return any(drops_out(self._blocks(stack)) for stack in self._stacks)

    @contextlib.contextmanager
    def noted(self) -> Iterator[dict[str, list[Any]]]:
        """Context that records the trunk's output, pass by pass."""
        notes: dict[str, list[Any]] = {stack.name: [] for stack in self._stacks}
        with contextlib.ExitStack() as hooks:
            for stack in self._stacks:
                blocks = self._blocks(stack)
                if len(blocks):
                    kept = notes[stack.name]
                    note = blocks[-1].register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
                    hooks.callback(note.remove)
            yield notes

    @contextlib.contextmanager
    def replayed(self, notes: dict[str, list[Any]], tops: Iterable[nn.Module]) -> Iterator[None]:
        """Context in which the model runs the blocks `tops` of each stack on each recorded output."""
        try:
            for stack, top in zip(self._stacks, tops, strict=True):
                assert isinstance(top, nn.ModuleList)
                trunk = [_Replay(block, notes[stack.name]) for block in self._blocks(stack)]
                self._set(stack, nn.ModuleList([*trunk, *top]))
            yield
        finally:
            for stack in self._stacks:
                self._set(stack, stack.blocks)

    @staticmethod
    def _set(stack: BlockStack, blocks: nn.ModuleList) -> None:
        # Without `setattr`, which would make compiled or sharded modules react to the replacement.
        stack.parent._modules[stack.attribute] = blocks


class TopBlocksReference(Reference):
    """Frozen copies of the trained top blocks after the trunk that both models share."""

    def __init__(self, part: TrainablePart) -> None:
        super().__init__()
        self._trunk = _Trunk(part)
        self.tops = nn.ModuleList(copy.deepcopy(top) for top in self._trunk.tops)
        self.requires_grad_(False).eval()

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        with self._trunk.noted() as noted:
            trained = call(ranker)
        # Blocks are replaced inside, so that switching to evaluation and back reaches the trained ones.
        with _evaluating(ranker), self._trunk.replayed(noted, self.tops):
            reference = call(ranker)
        return reference, trained


def make_reference(ranker: RankerModel, part: TrainablePart, given: RankerModel | None = None) -> Reference:
    """The reference with the least memory for the trained part; `given` is a model to use instead of a copy."""
    if given is not None:
        return ModelReference(given)
    if part.kind == "lora":
        return AdapterReference(part.adapter, part)
    if part.kind == "top_blocks":
        return TopBlocksReference(part)
    return ModelReference.copy_of(ranker)
