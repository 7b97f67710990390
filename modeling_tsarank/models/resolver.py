"""What a model's name means, in one place for loading, training, evaluating and publishing.

| name | what it is |
|---|---|
| none given, `default` | the released ranker |
| a release, such as `twolar-smollm2-135m-v2` | that ranker |
| `zero-shot`, `smollm2-135m-instruct` | the language model in the package, a ranker without training |
| a folder or .gguf file | a ranker, a cross-encoder, a plain language model, or an adapter on one |
| `ce:M`, `dense:M`, `st:M` | a cross-encoder, a bi-encoder or either, of sentence-transformers |
| an address beginning with http:// or https:// | a service that reranks |
| anything else | a Hub id, of a published ranker or of any other model |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..files.reading import read_json_object
from ..ranking_errors import InputError, ModelError
from ..ranking_options import CONFIG_KEY
from .default_model import DEFAULT_NAME, unpacked_folder
from .embedded_models import BASE_NAMES, DEFAULT, DEFAULT_RELEASE, embedded_source, releases
from .fingerprints import adapter_base


class Kind(StrEnum):
    """The kinds of models that a name can mean."""

    RELEASE = "release of this package"
    EMBEDDED = "language model of this package"
    PUBLISHED = "published ranker"
    HUB = "Hub model"
    FOLDER = "folder"
    ADAPTER = "adapter"
    GGUF = "GGUF file"
    CROSS_ENCODER = "cross-encoder of sentence-transformers"
    BI_ENCODER = "bi-encoder of sentence-transformers"
    SENTENCE_TRANSFORMERS = "model of sentence-transformers"
    SERVICE = "reranking service"


# Prefixes of a name.
PREFIXES = {"ce:": Kind.CROSS_ENCODER, "dense:": Kind.BI_ENCODER, "st:": Kind.SENTENCE_TRANSFORMERS}
PACKAGED = (Kind.RELEASE, Kind.EMBEDDED)
OTHER_LIBRARIES = (*PREFIXES.values(), Kind.SERVICE)


@dataclass(frozen=True)
class Source:
    """What a name means.

    Attributes:
        kind: The kind of model.
        name: The full name of a release, a Hub id, a path, or an address, without prefix.
    """

    kind: Kind
    name: str

    @property
    def packaged(self) -> bool:
        """Whether it comes with the package."""
        return self.kind in PACKAGED

    @property
    def local(self) -> bool:
        """Whether it is on this machine, where there are no revisions."""
        return self.packaged or Path(self.name).exists()

    @property
    def label(self) -> str:
        """The name for tables, without folders."""
        if self.packaged or self.kind is Kind.SERVICE:
            return self.name
        path = Path(self.name)
        if self.kind is Kind.GGUF:
            return path.stem
        return path.resolve().name if path.is_dir() else self.name.rstrip("/").rpartition("/")[2]

    def location(self) -> str:
        """Where to load from: a Hub id, a file or a folder; one of the package's own models is unpacked on first use.

        Raises:
            ModelError: a release's files do not belong together.
            ResourceError: the model is unavailable, or the disk has no space for it.
        """
        return os.fspath(embedded_source(self.name)) if self.packaged else self.name

    def adapter_base(self) -> tuple[str, str | None]:
        """Name and revision of an adapter's base model. Raises `ModelError` if it names none."""
        base, revision = adapter_base(Path(self.name))
        if base is None:
            raise ModelError(f"{self.name} has only an adapter that names no base: merge it and name its folder")
        base = packaged_name(base)
        return base, None if resolve(base).local else revision


def resolve(name: str | os.PathLike[str] | None, revision: str | None = None) -> Source:
    """What a name means, without access to the Hub.

    Args:
        name: see the table above; `None` is `default`.
        revision: the requested revision.

    Raises:
        InputError: the name is empty, a prefix has no model after it, or a revision is given for a model that is not
            on the Hub.
    """
    source = _resolve(name)
    if revision is not None and source.local:
        raise InputError(
            f"revision {revision!r} has no effect on {source.name}, which is not a Hub model; leave it out"
        )
    return source


def _resolve(name: str | os.PathLike[str] | None) -> Source:
    if not isinstance(name, str | os.PathLike | None):
        raise InputError(f"a model's name or path is expected, got {type(name).__name__}")
    given = DEFAULT if name is None else os.fspath(name)
    if given == DEFAULT:
        given = DEFAULT_RELEASE if DEFAULT_RELEASE in releases() else DEFAULT_NAME
    if given in BASE_NAMES:
        return Source(Kind.EMBEDDED, DEFAULT_NAME)
    if isinstance(name, str | None) and given in releases():
        return Source(Kind.RELEASE, given)
    if given.startswith(("http://", "https://")):
        return Source(Kind.SERVICE, given)
    prefix = next((one for one in PREFIXES if given.startswith(one)), "")
    rest = given.removeprefix(prefix)
    if not rest.strip():
        raise InputError(f"expected a model's name, got {given!r}")
    if prefix:
        return Source(PREFIXES[prefix], rest)
    if Path(given).suffix.lower() == ".gguf":
        return Source(Kind.GGUF, given)
    if Path(given).exists():
        return Source(_kind_of_folder(Path(given)), given)
    from .families import published_family

    return Source(Kind.HUB if published_family(given) is None else Kind.PUBLISHED, given)


def packaged_name(path: str) -> str:
    """The name of the package's model for a cache path, of this or another machine; other names unchanged."""
    folder = Path(path).name
    if folder == unpacked_folder().name:
        return DEFAULT_NAME
    return next((one.name for one in releases().values() if one.cached_folder.name == folder), path)


def _kind_of_folder(folder: Path) -> Kind:
    from .checkpoints import holds_adapter_alone  # late import: it imports torch

    if holds_adapter_alone(folder):
        return Kind.ADAPTER
    if not any((folder / file).is_file() for file in ("modules.json", "config_sentence_transformers.json")):
        return Kind.FOLDER
    from .families import CLASSIFIER, model_kind
    from .sentence_rerankers import other_modules, read_stack, repository_modules

    try:
        config = read_json_object(folder / "config.json", allow_nan=True)
        ours = CONFIG_KEY in config or (model_kind(config) == CLASSIFIER and not other_modules(str(folder)))
        ours = ours or read_stack(str(folder)) is not None
        # A language model with a LogitScore module is loaded as a ranker of this package.
        ours = ours or "LogitScore" in dict(repository_modules(str(folder)))
    except (InputError, ModelError):  # loading reports the error
        return Kind.FOLDER
    return Kind.FOLDER if ours else Kind.SENTENCE_TRANSFORMERS


def resolve_language_model(name: str | os.PathLike[str] | None) -> Source:
    """Like `resolve`, for a plain language model to train or generate with; `None` is the package's.

    Raises:
        InputError: the name is `default`, which is a ranker and not the start of a training, or is not a language
            model.
    """
    if name is not None and os.fspath(name) == DEFAULT:
        raise InputError(
            f"{DEFAULT!r} is the released ranker: name {DEFAULT_NAME} for the language model it was trained from, "
            f"or {resolve(None).name} to start from the ranker itself"
        )
    source = Source(Kind.EMBEDDED, DEFAULT_NAME) if name is None else resolve(name)
    if source.kind in OTHER_LIBRARIES:
        raise InputError(f"{source.name} is a {source.kind}; a language model is expected")
    return source
