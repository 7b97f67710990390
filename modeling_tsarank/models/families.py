"""The known model families: those of this package and of other installed packages.

A family is one class: a `RankerModel` with its options, its score, and what cards, the app and trainers need to know.
A package registers its own by an entry point, a program by `register_family`:

    [project.entry-points."tsarank.families"]
    mine = "my_package:MyModel"
"""

from __future__ import annotations

import functools
import logging
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from ..ranking_errors import InputError
from .published import PROBABILITIES, PUBLISHED


if TYPE_CHECKING:  # torch takes seconds to import
    from ..modeling_ranker import RankerModel

logger = logging.getLogger(__name__)

GROUP = "tsarank.families"
CLASSIFIER = "sequence-classification"
FamilyT = TypeVar("FamilyT", bound="type[RankerModel]")

_known: dict[str, type[RankerModel]] = {}


def register_family(cls: FamilyT) -> FamilyT:
    """Registers a family for commands, app and cards; returns the class, so that it can be used as a decorator.

    Raises:
        InputError: the class is not a ranking model class with a family name, or another class has that name.
    """
    _register_own()
    from ..modeling_ranker import RankerModel

    name = cls.options_class.family if isinstance(cls, type) and issubclass(cls, RankerModel) else ""
    if not name:
        raise InputError(f"{cls!r:.80} is not a family: expected a RankerModel whose options_class has a family name")
    before = _known.setdefault(name, cls)
    if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"two families have the name {name!r}: {before.__module__}.{before.__qualname__} and {cls!r}")
    _known[name] = cls
    return cls


@functools.cache
def _register_own() -> None:
    from ..modeling_cross_encoder import CrossEncoderModel
    from ..modeling_tsarank import TSARankModel
    from ..modeling_twolar import TwolarModel

    _known.update({cls.options_class.family: cls for cls in (TSARankModel, TwolarModel, CrossEncoderModel)})


@functools.cache
def _register_installed() -> None:
    _register_own()
    for entry in entry_points(group=GROUP):
        try:
            register_family(entry.load())
        except Exception as error:  # another package's error must not stop this one
            logger.warning("the family %r of another package cannot be used: %s", entry.name, error)


def families() -> dict[str, type[RankerModel]]:
    """All known families by name."""
    _register_installed()
    return dict(_known)


def family_class(name: str) -> type[RankerModel]:
    """The family of that name. Raises `InputError` naming the known ones."""
    known = families()
    if name not in known:
        raise InputError(f"unknown family {name!r}; expected one of {', '.join(known)}")
    return known[name]


def published_options(cls: type[RankerModel], name: str) -> dict[str, Any] | None:
    """The options of a published checkpoint by its Hub id (case-insensitive), or `None`: from the table in `published`
    or from `cls.published`."""
    rows = {**PUBLISHED.get(cls.options_class.family, {}), **cls.published}
    found = (options for pattern, options in rows.items() if fnmatchcase(name.lower(), pattern.lower()))
    return next(found, None)


def published_probability(name: str, config: Any) -> tuple[float, float] | None:
    """Slope and intercept of the logistic function from a published checkpoint's score to a probability.

    Args:
        name: Its Hub id, case-insensitive.
        config: Its configuration, in which sentence-transformers records a cross-encoder's final sigmoid.

    Returns:
        `None` if its authors publish only scores.
    """
    settings = getattr(config, "sentence_transformers", None)
    activation = settings.get("activation_fn") if isinstance(settings, dict) else None
    if str(activation).rpartition(".")[2] == "Sigmoid":
        return 1.0, 0.0
    return next((line for pattern, line in PROBABILITIES.items() if fnmatchcase(name.lower(), pattern.lower())), None)


def published_family(name: str) -> type[RankerModel] | None:
    """The family whose published checkpoints include the Hub id `name`, if there is one."""
    return next((cls for cls in families().values() if published_options(cls, name) is not None), None)


def model_kind(config: Any) -> str:
    """The kind of a plain model, as in `RankerModel.default_for`, by its configuration, an object or a dict."""
    own = config if isinstance(config, dict) else vars(config)
    names = own.get("architectures")
    if own.get("task_type") == "SEQ_CLS" or str((names or [""])[0]).endswith("ForSequenceClassification"):
        return CLASSIFIER
    return "encoder-decoder" if own.get("is_encoder_decoder") else "decoder-only"


def plain_family(kind: str) -> type[RankerModel]:
    """The default family of a plain model of that kind."""
    return next(cls for cls in families().values() if kind in cls.default_for)
