"""Configuration of continual pre-training on weak pairs (TSARankLLM, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from trl import SFTConfig

from modeling_tsarank.cli.command_line import Number
from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.modeling_tsarank import QueryLikelihoodOptions
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.config_checks import PartConfig, check_number, settle_configuration
from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.row_checks import RowRules
from modeling_tsarank.trainers.trainable import Part


ROW_RULES = RowRules(positives=True, least_documents=1)


@documented
@dataclass
class CPTConfig(PartConfig, SFTConfig):
    r"""
    Configuration class for the [`CPTTrainer`].

    This class includes only the parameters that are specific to continual pre-training. [`PartConfig`] selects what is
    trained; all other parameters are those of TRL's [`~trl.SFTConfig`] (packing, activation checkpointing and
    offloading, kernels) and [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that control the data preprocessing

        document_template (`str`, *optional*, defaults to `"Document: {document} Query:"`):
            Prompt before the query. The rankers' default.
        prompt_style (`str`, *optional*, defaults to `"separate_space"`):
            How the query is appended, as in [`QueryLikelihoodOptions`].
        max_query_length (`int`, *optional*, defaults to `128`):
            Maximum query length in tokens; longer queries are truncated on the right. `max_length` limits prompt,
            query and EOS together, and is enforced by truncating only the document.
        max_length (`int`, *optional*, defaults to `512`):
            Maximum training sequence length in tokens: prompt, query and EOS together; only the document is truncated.
            With packing, the length of a packed sequence.
        train_eos (`bool`, *optional*, defaults to `True`):
            Whether EOS is appended to the query and trained on, as in the published code.

    > [!NOTE]
    > These parameters have default values different from [`~trl.SFTConfig`]:
    > - `trainable`: Defaults to `"full"` instead of `"top_blocks"`.
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `learning_rate`: Defaults to `5e-5` instead of `2e-5`.
    > - `lr_scheduler_type`: Defaults to `"cosine"` instead of `"linear"`.
    > - `warmup_steps`: Defaults to `0.1` (of all steps) instead of `0`.
    > - `max_length`: Defaults to `512` instead of `1024`.
    > - `completion_only_loss`: Defaults to `True`; `False` also trains on the document and the prompt.
    > - `gradient_checkpointing`: Off by default, as in `TrainingArguments`.
    > - `bf16`: Defaults to `True` only if the device supports bfloat16 matrix multiplication in hardware.
    """

    # Parameters whose default values are overridden from SFTConfig
    num_train_epochs: float = 1.0
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.1
    max_length: int | None = 512
    completion_only_loss: bool | None = True
    # Not False: transformers would treat a value as use of the option's deprecated name.
    gradient_checkpointing: bool | None = None  # type: ignore[assignment]
    trainable: Part = "full"

    # Parameters that control the data preprocessing
    document_template: str = QueryLikelihoodOptions.document_template
    prompt_style: Literal["separate_space", "separate", "joined"] = "separate_space"
    max_query_length: int = 128
    train_eos: bool = True

    def __post_init__(self) -> None:
        settle_configuration(self)
        if self.bf16 is None:
            # TRL defaults to True unless fp16 is on; on most CPUs that is several times slower than float32.
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            has = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bfloat16()
            self.bf16 = has and not self.fp16
        super().__post_init__()
        for name in ("model_init_kwargs", "dataset_kwargs"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise InputError(f"{name} must be a JSON object, got {value!r}")
        if self.chat_template_path is not None or self.assistant_only_loss:
            raise InputError("chat_template_path and assistant_only_loss are for conversations; remove them")
        if self.activation_offloading and self.device.type == "cpu":
            raise InputError("activation_offloading moves activations from an accelerator to the CPU; remove it")
        # Valid only after TRL has resolved its "auto" and "none".
        multiple: Any = self.pad_to_multiple_of
        if multiple is not None:
            check_number("pad_to_multiple_of", multiple, Number(int, 1, 2**16))
        if self.max_length is None:
            raise InputError("max_length must be a number of tokens, got none: documents are truncated to it")
        self.ranking_options()

    def row_rules(self) -> RowRules:
        """The requirements of the training on its rows."""
        return ROW_RULES

    def evaluation_figures(self) -> list[str]:
        """Metrics of an evaluation in addition to the loss."""
        return ["mean_token_accuracy", *([] if self.device.type == "cpu" else ["entropy"])]

    def ranking_options(self) -> QueryLikelihoodOptions:
        """The prompt and the length limits, minus one token for EOS. Raises `InputError` for invalid values."""
        return QueryLikelihoodOptions(
            max_length=(self.max_length or 0) - self.train_eos,
            max_query_length=self.max_query_length,
            document_template=self.document_template,
            prompt_style=self.prompt_style,
        )
