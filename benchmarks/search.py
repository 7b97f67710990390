"""Short trainings one after another, each measured on the development set of a prepared release, and their table.

    python benchmarks/search.py trainers/recipes/smollm2_135m/search.yaml --release release --output search

The grid file names the kind of training, its recipes (`config`), options of every run, options of `tsarank evaluate`,
models to measure untrained (`baselines`) and, by name, what each run changes. `collections`, a mapping of datasets to
first stages, takes the place of the development set, for ablations of a finished recipe. `$RELEASE` stands for
--release, `$TSARANK_DATA` for the variable. Started again, it goes on where it was: inside a training, inside an
evaluation. Weights are removed once a run is measured (the adapter stays), unless --keep-models is given.

With --processes 2 every command runs as two processes (torchrun), and an update is twice as large unless the grid
halves `gradient_accumulation_steps`: on a CPU two processes of one thread (OMP_NUM_THREADS=1) train faster than two
threads.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.files.hashes import hash_file, hash_folder
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json, write_text
from modeling_tsarank.ranking_errors import InputError, ModelError, TSARankError
from modeling_tsarank.trainers.recipe_files import find_recipe, read_recipe
from modeling_tsarank.trainers.recipes.judged import DEV_RUN, DEV_SPLIT


logger = logging.getLogger("search")

MEASURE = "ndcg@10"
KEYS = ("kind", "config", "options", "evaluate", "collections", "baselines", "runs")


def read_grid(path: Path, release: Path) -> dict[str, Any]:
    """The grid of a file. Raises `InputError` for unknown keys, no runs, or a name given twice."""
    if not path.is_file():
        raise InputError(f"no grid file {path}")
    text = json.dumps(read_recipe(path)).replace("$RELEASE", str(release))
    content = json.loads(text.replace("$TSARANK_DATA", os.environ.get("TSARANK_DATA", "$TSARANK_DATA")))
    unknown = next((key for key in content if key not in KEYS), None)
    if unknown is not None:
        raise InputError(f"{path}: unknown {unknown!r}; a grid has {', '.join(KEYS)}")
    if content.get("kind") not in ("cpt", "sft", "distill"):
        raise InputError(f"{path}: kind must be cpt, sft or distill, got {content.get('kind')!r}")
    runs, baselines = content.get("runs") or {}, content.get("baselines") or {}
    if not all(isinstance(one, dict) for one in (runs, baselines, *runs.values())) or not runs:
        raise InputError(f"{path}: runs must give, by name, the options that each run changes")
    if not isinstance(content.get("collections") or {}, dict):
        raise InputError(f"{path}: collections must give the first stage of every dataset")
    if runs.keys() & baselines.keys():
        raise InputError(f"{path}: {min(runs.keys() & baselines.keys())} is both a run and a baseline")
    defaults: dict[str, Any] = {"config": [], "options": {}, "evaluate": {}, "collections": {}}
    return {**defaults, **content, "runs": runs, "baselines": baselines}


def arguments_of(options: Mapping[str, Any], dashes: bool = False) -> list[str]:
    """Options as a command line's words."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        shown = [json.dumps(one) if isinstance(one, bool | dict) else str(one) for one in values]
        words += [f"--{name.replace('_', '-') if dashes else name}", *shown]
    return words


def call(module: str, arguments: list[str], processes: int = 1) -> float:
    """Runs a module in so many processes and returns its seconds. Raises `ModelError` if it fails."""
    started = time.monotonic()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(torchrun if processes > 1 else []), "-m", module, *arguments]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise ModelError(f"{module} ended with status {done.returncode}; what it said stands above")
    return time.monotonic() - started


@dataclass(frozen=True)
class Measured:
    """What every run is measured on: datasets with their first stages, and the split."""

    stages: dict[Path, str]
    split: str

    @classmethod
    def of(cls, grid: Mapping[str, Any], release: Path) -> Measured:
        """The grid's collections, or else the release's development set. Raises `InputError` if there is none."""
        if grid["collections"]:
            return cls({Path(path).resolve(): stage for path, stage in grid["collections"].items()}, "test")
        collections = sorted(path for path in (release / "dev").resolve().glob("*") if path.is_dir())
        if not collections:
            raise InputError(f"{release} has no development set; run `tsarank recipe prepare` into it")
        return cls(dict.fromkeys(collections, DEV_RUN), DEV_SPLIT)

    def read(self, folder: Path, column: str) -> dict[str, float]:
        """nDCG@10 of every collection, by name, and their mean, from what was written to a folder."""
        parts = {one.name: read_json(folder / one.name / "metrics.json")["measures"][column] for one in self.stages}
        values = {name: part[MEASURE] for name, part in parts.items()}
        return values | {"mean": sum(values.values()) / len(values)}


def measure(
    model: str, measured: Measured, folder: Path, options: Mapping[str, Any], processes: int
) -> dict[str, float]:
    """nDCG@10 of a model on every collection, by name, and their mean."""
    arguments = ["evaluate", "--model", model, "--split", measured.split, "--output", str(folder)]
    arguments += ["--measures", MEASURE, *arguments_of(options, dashes=True)]
    for stage in dict.fromkeys(measured.stages.values()):
        datasets = [str(path) for path, first in measured.stages.items() if first == stage]
        call("modeling_tsarank.cli", [*arguments, "--first-stage", stage, "--dataset", *datasets], processes)
    return measured.read(folder, "reranked")


def train_and_measure(
    name: str,
    changes: Mapping[str, Any],
    grid: Mapping[str, Any],
    measured: Measured,
    folder: Path,
    settings: Settings,
) -> dict[str, Any]:
    """One run: its result from the file where there is one, else trained (on) and measured.

    Raises:
        InputError: the folder has a run of that name with other options.
    """
    options = {**grid["options"], **changes}
    asked = {"config": grid["config"], "options": options, "evaluate": grid["evaluate"]}
    # Known by their content, not by their names: files are corrected and made again.
    recipes = [str(find_recipe(one)) for one in grid["config"]]
    asked["files"] = hashes_of([recipes, options, grid["evaluate"], [str(path) for path in measured.stages]])
    model = folder / "model"
    begun = folder / "run.json"
    if begun.is_file() and read_json(begun)["asked"] != asked:
        raise InputError(f"{folder} holds a run {name!r} with other options; remove it or choose another --output")
    if (folder / "result.json").is_file():
        result: dict[str, Any] = read_json(folder / "result.json")
        if not settings.keep:
            remove_weights(model)
        return result
    record = read_json(begun) if begun.is_file() else {"asked": asked, "train_seconds": None}
    write_json(begun, record)
    if record["train_seconds"] is None:
        configs = [word for one in grid["config"] for word in ("--config", one)]
        own = {"output_dir": str(model), "resume_from_checkpoint": "auto"}
        module = f"modeling_tsarank.trainers.{grid['kind']}"
        words = [*configs, *arguments_of({**options, **own})]
        record["train_seconds"] = round(call(module, words, settings.processes), 1)
        write_json(begun, record)
    values = measure(str(model), measured, folder / "measured", grid["evaluate"], settings.processes)
    result = {"name": name, "changes": dict(changes), "seconds": record["train_seconds"], "values": values}
    write_json(folder / "result.json", result)
    if not settings.keep:
        remove_weights(model)
    return result


def hashes_of(value: Any) -> dict[str, str]:
    """SHA-256 of every file and folder that is named anywhere in a value."""
    if isinstance(value, Mapping | list):
        parts = value.values() if isinstance(value, Mapping) else value
        return {path: sha256 for part in parts for path, sha256 in hashes_of(part).items()}
    path = Path(value) if isinstance(value, str) and os.sep in value else None
    if path is None or not path.exists():
        return {}
    return {value: hash_file(path) if path.is_file() else hash_folder(path, deep=True)}


def remove_weights(model: Path) -> None:
    """Makes room: checkpoints and merged weights go, the adapter and the record of the training stay."""
    for path in model.glob("checkpoint-*"):
        shutil.rmtree(path)
    for path in model.glob("*.safetensors"):
        path.unlink()


def measure_baseline(
    name: str, model: str, grid: Mapping[str, Any], measured: Measured, folder: Path, processes: int
) -> dict[str, Any]:
    """The result of an untrained model; the evaluation itself knows what it has done."""
    values = measure(model, measured, folder / "measured", grid["evaluate"], processes)
    result = {"name": name, "changes": {}, "seconds": 0, "values": values}
    write_json(folder / "result.json", result)  # so that a later --only keeps its row
    return result


def table(results: list[dict[str, Any]], names: list[str], first: dict[str, float]) -> str:
    """The Markdown table of nDCG@10 x 100."""
    header = ["run", "changed", *names, "mean", "training, min"]
    rows = [["first stage", "", *(f"{100 * first[name]:.2f}" for name in [*names, "mean"]), ""]]
    for one in results:
        changed = ", ".join(
            f"{key} {Path(value).stem if '/' in str(value) else value}" for key, value in one["changes"].items()
        )
        values = [f"{100 * one['values'][name]:.2f}" for name in [*names, "mean"]]
        rows.append([one["name"], changed, *values, f"{one['seconds'] / 60:.1f}" if one["seconds"] else ""])
    return markdown_table(header, rows)


@dataclass(frozen=True)
class Settings:
    """How the grid is run: which runs, in how many processes, and whether merged weights stay."""

    keep: bool = False
    only: tuple[str, ...] = ()
    processes: int = 1


def search(grid_file: Path, release: Path, output: Path, settings: Settings | None = None) -> Path:
    """Runs the grid and returns the path of its table, which is written anew after every run."""
    settings = settings or Settings()
    only = settings.only
    grid = read_grid(grid_file, release.resolve())
    measured = Measured.of(grid, release)
    unknown = next((name for name in only if name not in {**grid["baselines"], **grid["runs"]}), None)
    if unknown is not None:
        raise InputError(f"no run {unknown!r}; there are {', '.join({**grid['baselines'], **grid['runs']})}")
    results = []
    for name, changes in {**grid["baselines"], **grid["runs"]}.items():
        folder = output / name
        if only and name not in only and not (folder / "result.json").is_file():
            continue
        logger.info("%s", name)
        if name in grid["baselines"]:
            results.append(measure_baseline(name, changes, grid, measured, folder, settings.processes))
        else:
            results.append(train_and_measure(name, changes, grid, measured, folder, settings))
        first = measured.read(folder / "measured", "first_stage")
        # As the grid says it, for results that are to be shown.
        shown = json.dumps(results).replace(str(release.resolve()), "$RELEASE")
        write_json(output / "results.json", json.loads(shown))
        write_text(output / "table.md", table(results, [one.name for one in measured.stages], first))
    return output / "table.md"


def main() -> int:
    """Reads the command line, searches, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="YAML file of the runs")
    parser.add_argument("--release", type=Path, required=True, help="folder that `tsarank recipe prepare` filled")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs and the table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these runs")
    parser.add_argument("--keep-models", action="store_true", help="keep the weights of every run, 0.5 GB each")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of every command (default: 1)")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, format="search: %(message)s", level=logging.INFO)
    try:
        settings = Settings(args.keep_models, tuple(args.only or ()), args.processes)
        path = search(args.grid, args.release, args.output, settings)
    except TSARankError as error:
        sys.stderr.write(f"search: error: {error}\n")
        return 2
    sys.stdout.write(path.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
