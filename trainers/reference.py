"""The model that fine-tuning started from, for the Differential Penalty, without a second full copy where possible.

| trained part | reference | extra memory |
|---|---|---|
| LoRA | the same model with its adapter switched off | none |
| LoRA in the top k blocks | the same, behind the trunk that both share and that runs once | none |
| top k blocks | frozen copies of those blocks, behind the trunk that both share and that runs once | k blocks |
| everything, or a given model | a frozen model | a whole model |

Each reference gives logits that are equal to the trained model's bit for bit as long as nothing has been trained: the
same kernels run on the same shapes. Only then is the penalty exactly 0 at the first step.
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


# What both models are asked for; one or several forward passes, the same ones for each.
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
        """A reference never trains: it stays in evaluation mode."""
        return super().train(False)


class AdapterReference(Reference):
    """The trained model with its LoRA adapter switched off.

    Where only top blocks have the adapter, the trained model starts from what the reference's trunk gave: nothing is
    trained there, and it is run once for both. A trunk that drops out is run for each, since a reference does not.
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
        # First the reference: PEFT turns `requires_grad` of the adapter off and on again, which must not happen
        # between the trained model's forward and backward pass.
        with _evaluating(ranker), self._adapter[0].disable_adapter():
            return call(ranker)


class ModelReference(Reference):
    """A frozen model of its own: a copy, or one that the user names."""

    def __init__(self, model: RankerModel) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()

    @classmethod
    def copy_of(cls, ranker: RankerModel) -> ModelReference:
        """A frozen copy of the ranker as it is now."""
        return cls(type(ranker)(copy.deepcopy(ranker.config), backbone=copy.deepcopy(ranker.backbone)))

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        with torch.no_grad():
            reference = call(self.model)
        return reference, call(ranker)


class _Replay(nn.Module):
    """Stands in for a block of the trunk: gives what the trunk's last block gave, pass by pass.

    Whatever else a model asks of a block (its attention type, for example) it gets from the block itself.
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
    """The blocks below the trained ones. Their output can be noted in forward passes and replayed in later ones.

    A replay is the model's own forward with its list of blocks exchanged: every trunk block only hands on what was
    noted, and the top ones are the trained ones or others. Embedding, masks, final norm and head are what they are.
    """

    def __init__(self, part: TrainablePart) -> None:
        self._stacks = tuple(part.stacks)
        self._count = part.count
        self.tops = [stack.blocks[-part.count :] for stack in part.stacks]

    def _blocks(self, stack: BlockStack) -> nn.ModuleList:
        return stack.blocks[: len(stack.blocks) - self._count]

    @property
    def drops_out(self) -> bool:
        """Whether the trunk, in the mode it is in, gives something else every time it is run."""
        return any(drops_out(self._blocks(stack)) for stack in self._stacks)

    @contextlib.contextmanager
    def noted(self) -> Iterator[dict[str, list[Any]]]:
        """Inside, what the trunk gives is noted, pass by pass."""
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
        """Inside, the model runs the blocks `tops` of each stack behind what was noted, as often as it was noted."""
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
        # Without `setattr`, which would let compiled or sharded modules react to the exchange.
        stack.parent._modules[stack.attribute] = blocks


class TopBlocksReference(Reference):
    """Frozen copies of the trained top blocks behind the trunk that both models share."""

    def __init__(self, part: TrainablePart) -> None:
        super().__init__()
        self._trunk = _Trunk(part)
        self.tops = nn.ModuleList(copy.deepcopy(top) for top in self._trunk.tops)
        self.requires_grad_(False).eval()

    def both(self, ranker: RankerModel, call: Call[ResultT]) -> tuple[ResultT, ResultT]:
        with self._trunk.noted() as noted:
            trained = call(ranker)
        # The blocks are exchanged inside, so that switching to evaluation and back reaches the trained ones.
        with _evaluating(ranker), self._trunk.replayed(noted, self.tops):
            reference = call(ranker)
        return reference, trained


def make_reference(ranker: RankerModel, part: TrainablePart, given: RankerModel | None = None) -> Reference:
    """The leanest reference for the trained part; `given` is a model to use instead of the ranker as it is now."""
    if given is not None:
        return ModelReference(given)
    if part.kind == "lora":
        return AdapterReference(part.adapter, part)
    if part.kind == "top_blocks":
        return TopBlocksReference(part)
    return ModelReference.copy_of(ranker)
