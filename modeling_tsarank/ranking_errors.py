"""The errors a user can cause; each is one line: what was given, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TSARankError(Exception):
    """Base of all errors of tsarank; the command line prints them in one line and exits with 2."""


class InputError(TSARankError, ValueError):
    """A value, a text, a file or an option given by the user is wrong."""


class ModelError(TSARankError, ValueError):
    """A checkpoint, a backbone or a tokenizer cannot be used for ranking."""


class ResourceError(TSARankError, RuntimeError):
    """Something outside ran out or cannot be reached: memory, disk, network, a missing optional package."""


class NonFiniteScoreError(TSARankError, ArithmeticError):
    """A model returned NaN or an infinity where a score was expected; such scores are never sorted silently."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for messages of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def load_errors(name: Any) -> Iterator[None]:
    """Converts all exceptions of transformers, tokenizers and safetensors for a damaged checkpoint to a `ModelError`.

    They validate few fields of files, so that a wrong one can raise any exception.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TSARankError | MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise ModelError(f"cannot load the model {name}: {kind}{first_line(error)}") from error
