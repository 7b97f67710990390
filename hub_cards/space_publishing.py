"""Publishing the metric and the demo page as Spaces."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from modeling_tsarank import __version__
from modeling_tsarank.files.templates import cell, line, render
from modeling_tsarank.files.versions import installed_version
from modeling_tsarank.hub_cards.file_selection import Selection, select_files
from modeling_tsarank.hub_cards.model_facts import read_model
from modeling_tsarank.hub_cards.uploading import CARD_NAME, DEFAULT_TAG, Publication, check_repo_id
from modeling_tsarank.models.embedded_models import releases
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError


START_FILE, MODEL_FOLDER = "start.py", "model"
# In a checkout the other packages are next to the first one.
_PACKAGES = ("modeling_tsarank", *(f"modeling_tsarank.{name}" for name in ("eval", "trainers", "hub_cards")))
_CODE = ("*.py", "*.css", "*.md", "*.html", "*.yaml", "*.txt", "*.json", "*.jsonl", "releases/*.safetensors")

_START = '''\
"""Starts the page with the model of this Space, unless the environment variable TSARANK_MODEL is set."""

import os
import runpy
from pathlib import Path


here = Path(__file__).absolute().parent
os.chdir(here)
{setting}runpy.run_path(str(here / "app.py"), run_name="__main__")
'''


def prepare_metric(
    repo_id: str, tag: str = DEFAULT_TAG, private: bool | None = True, message: str | None = None
) -> Publication:
    """The `evaluate` metric as a Space, which is where `evaluate.load(repo_id)` looks for it.

    Raises:
        InputError: The repository's name is not a valid name of a Python module, which `evaluate` needs.
    """
    check_repo_id(repo_id)
    module = repo_id.rpartition("/")[2]
    if not module.isidentifier() or keyword.iskeyword(module):
        raise InputError(f"evaluate loads the metric as a module of the repository's name; {module!r} is not valid")
    folder = _folder("modeling_tsarank.eval.ndcg")
    selection = Selection()
    # `evaluate` downloads its relative imports along with it.
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            selection.add(f"{module}.py" if path.name == "ndcg.py" else path.name, path)
    selection.add("requirements.txt", folder / "requirements.txt")
    title = "nDCG of rankings"
    facts = {"title": title, "repo_id": repo_id, "tag": tag, "module": module, "tsarank_version": __version__}
    header = _front_matter(title, "static", tags=["evaluate", "metric", "text-ranking", "tsarank"])
    selection.add(CARD_NAME, render(__package__, "metric_card.md", metadata=header, **facts).encode("utf-8"))
    selection.add("index.html", render(__package__, "metric_page.html", **facts).encode("utf-8"))
    return Publication(selection, repo_id, "space", tag, private, message, space_sdk="static")


def prepare_space(
    repo_id: str,
    tag: str = DEFAULT_TAG,
    private: bool | None = True,
    model: str | None = None,
    bake: Path | None = None,
    title: str = "Reranking, explained",
    app: Path | None = None,
    message: str | None = None,
    not_secret: Sequence[str] = (),
) -> Publication:
    """The page as a Gradio Space that includes this package's source.

    Args:
        model: Hub id of the model to show; the embedded default if neither this nor `bake` is given.
        bake: Folder of a ranker to upload with the Space.
        app: Path of app.py, if the package is installed without the repository around it.

    Raises:
        InputError: Both a model and a folder, or no app.py.
        ModelError: The folder contains no ranker.
        ResourceError: gradio is not installed, so its version is not known.
    """
    if model is not None and bake is not None:
        raise InputError("a Space has one main model: give --model or --bake, not both")
    app = app or _folder("modeling_tsarank").parent / "app.py"
    if not app.is_file():
        raise InputError(f"{app} does not exist: run this in a checkout of the repository, or give it with --app")
    selection = Selection()
    selection.add("app.py", app)
    for name in _PACKAGES:
        for file in select_files(_folder(name), _CODE).files:
            selection.add(f"{name.replace('.', '/')}/{file.path}", file.source)
    for example in select_files(app.parent / "examples").files if (app.parent / "examples").is_dir() else []:
        selection.add(f"examples/{example.path}", example.source)
    setting, model_text, models = _model(model, bake, selection)
    selection.add(START_FILE, _START.format(setting=setting).encode())
    selection.add("requirements.txt", _requirements().encode())
    header = _front_matter(
        title,
        "gradio",
        sdk_version=_version("gradio"),
        app_file=START_FILE,
        python_version="3.11",
        models=models,
        tags=["text-ranking", "reranking", "tsarank"],
        short_description="Rank documents for a query, and see why",
    )
    card = render(
        __package__, "space_card.md", metadata=header, title=title, model_text=model_text, tsarank_version=__version__
    )
    selection.add(CARD_NAME, card.encode("utf-8"))
    stale = ("modeling_tsarank/*", f"{MODEL_FOLDER}/*")  # source and model of an earlier version
    return Publication(selection, repo_id, "space", tag, private, message, stale, not_secret, space_sdk="gradio")


def _model(model: str | None, bake: Path | None, selection: Selection) -> tuple[str, str, list[str]]:
    """The line of the start file that sets the model, the card's text on it, and its Hub ids."""
    if bake is not None:
        from modeling_tsarank.hub_cards.model_publishing import select_model_files

        facts = read_model(bake)
        if facts.family is None or facts.adapter:
            raise ModelError(f"{bake} is not a complete ranker; save one with save_pretrained")
        for file in select_model_files(facts).files:
            selection.add(f"{MODEL_FOLDER}/{file.path}", file.source)
        base = [facts.base.name] if facts.base and facts.base.on_hub else []
        setting = f'os.environ.setdefault("TSARANK_MODEL", str(here / "{MODEL_FOLDER}"))\n'
        return setting, f"The model is in the folder `{MODEL_FOLDER}` of this repository.", base
    if model is not None:
        check_repo_id(model)
        return f'os.environ.setdefault("TSARANK_MODEL", "{model}")\n', f"The model is {cell(model)}.", [model]
    name = resolve(None).name
    if name in releases():
        text = f"The model is {name}, an adapter of this package; start-up merges it into SmolLM2-135M-Instruct."
        return "", text, []
    return "", "The model is SmolLM2-135M-Instruct, scored by query likelihood without fine-tuning.", []


def _front_matter(title: str, sdk: str, **more: Any) -> str:
    from huggingface_hub import SpaceCardData

    values = {"license": "apache-2.0", "colorFrom": "blue", "colorTo": "indigo", "pinned": False}
    data = {**values, **{key: value for key, value in more.items() if value}}
    return SpaceCardData(title=line(title), sdk=sdk, **data).to_yaml()


def _folder(package: str) -> Path:
    return Path(str(import_module(package).__file__)).resolve().parent


def _requirements() -> str:
    """The page's packages in the versions installed here, which are known to work."""
    from packaging.requirements import Requirement

    required = [Requirement(text) for text in metadata.requires("tsarank") or []]
    names = {one.name for one in required if one.marker is None or one.marker.evaluate({"extra": "app"})}
    lines = [f"{name}=={_version(name)}" for name in sorted(names - {"gradio"}, key=str.lower)]
    return "\n".join(["--extra-index-url https://download.pytorch.org/whl/cpu", *lines]) + "\n"


def _version(package: str) -> str:
    version = installed_version(package)
    if version is None:
        raise ResourceError(f"{package} is not installed, which the Space needs: pip install 'tsarank[app,eval]'")
    return version.partition("+")[0]
