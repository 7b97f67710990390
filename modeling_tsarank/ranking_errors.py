"""The errors a user can cause, each one line that says what was given, what was expected and what to do."""

from __future__ import annotations


class TSARankError(Exception):
    """Base of every error that tsarank raises on purpose; the command line prints it in one line and exits with 2."""


class InputError(TSARankError, ValueError):
    """A value, a text, a file or an option given by the user is wrong."""


class ModelError(TSARankError, ValueError):
    """A checkpoint, a backbone or a tokenizer cannot be used for ranking as asked."""


class ResourceError(TSARankError, RuntimeError):
    """Something outside ran out or cannot be reached: memory, disk, network, a missing optional package."""


class NonFiniteScoreError(TSARankError, ArithmeticError):
    """A model returned NaN or an infinity where a score was expected; such scores are never sorted silently."""
