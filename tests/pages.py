"""Runs the code blocks of a page of the documentation, in order, in one folder, on small models.

Python and shell blocks run as a reader would run them, with two differences: models that have to be downloaded, the
default one among them, give way to small ones of the same kind, and a training stops after one step. What needs the
network (an LLM's server, an upload) is only read by the command's own parser.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small_models import EXAMPLES, bi_encoder, save_language_model
from starlette.testclient import TestClient
from tiny_classifiers import save_classifier

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cli import build_parser, main
from modeling_tsarank.serving.application import create_app


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
DOCUMENT_FIRST = "Document: {document} Query: {query} Relevant:"
# Options whose value names a model, perhaps with a prefix, or in a list.
MODEL_OPTIONS = ("--model", "--model_name_or_path", "--first-stage", "--first-stages", "--teacher", "--judge")
MODEL_OPTIONS += ("--teacher-scores", "--cascade")
ONE_STEP = ["--max_steps", "1", "--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true"]
ONE_STEP += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of a page's code blocks; of those languages only, if any is named."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if not languages or language in languages:
            yield language, block


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, each split as the shell splits it, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def make_models(folder: Path) -> dict[str, str]:
    """Small models by the names that pages use."""
    language_model = str(save_language_model(folder / "language-model"))
    rankers = {"twolar-smollm2-135m-v2": TwolarModel, "tsarank-smollm2-135m": TSARankModel}
    for name, family in rankers.items():
        options = {"template": DOCUMENT_FIRST} if family is TwolarModel else {}
        family.from_backbone(language_model, **options).save_pretrained(folder / name)
    cross_encoder = str(save_classifier("bert", folder / "cross-encoder", max_position_embeddings=512))
    return {
        **{name: str(folder / name) for name in rankers},
        "zero-shot": str(folder / "tsarank-smollm2-135m"),
        "smollm2-135m-instruct": language_model,
        "Qwen/Qwen3-0.6B": language_model,
        "Qwen/Qwen2.5-3B-Instruct": language_model,
        "cross-encoder/ms-marco-MiniLM-L6-v2": cross_encoder,
        "BAAI/bge-reranker-v2-m3": cross_encoder,
        "sentence-transformers/all-MiniLM-L6-v2": bi_encoder(),
    }


def make_files(folder: Path, models: dict[str, str]) -> None:
    """What a reader has: the checkout's examples, a collection in BEIR's layout, and files that pages speak of."""
    shutil.copytree(EXAMPLES, folder / "examples")
    beir = folder / "beir" / "scifact"
    (beir / "qrels").mkdir(parents=True)
    for name, source in (("corpus", "collection"), ("queries", "queries")):
        shutil.copy(EXAMPLES / f"{source}.jsonl", beir / f"{name}.jsonl")
        shutil.copy(EXAMPLES / f"{source}.jsonl", folder / f"{name}.jsonl")
    header, *lines = (EXAMPLES / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    for split, part in (("train", lines[:8]), ("test", lines[8:])):
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join([header, *part, ""]), encoding="utf-8")
    rows = [json.loads(line) for line in (EXAMPLES / "collection.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    order = {"query": "why does dough rise", "documents": texts[:4], "teacher_scores": [3, 1, 2, 0]}
    fine_tuning = {"query": "when is the tide highest", "positives": texts[:1], "negatives": texts[3:]}
    files = {
        "lists.jsonl": [{**order, "permutation": [0, 2, 1, 3]}] * 4,
        "train.jsonl": [fine_tuning] * 4,
        "pairs.jsonl": [{"query": row["title"], "document": row["text"]} for row in rows],
    }
    for name, records in files.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    (folder / "docs.csv").write_text("number,name,body\n7,Flea,It jumps.\n8,Cat,It sleeps.\n", encoding="utf-8")
    shutil.copytree(models["twolar-smollm2-135m-v2"], folder / "my-ranker")


class PageRun:
    """One page's run in the current folder, with what its Python blocks define."""

    def __init__(self, page: Path, models: dict[str, str]) -> None:
        self.page, self.models = page, models
        self.names: dict[str, Any] = {}
        self.ran = self.parsed = 0

    def run(self) -> None:
        """Runs all blocks."""
        for language, text in blocks(self.page, "python", "bash"):
            if language == "python":
                self._python(text)
            for command in commands(text) if language == "bash" else ():
                self._command(command)

    def _python(self, text: str) -> None:
        for name, path in self.models.items():
            text = text.replace(f'"{name}"', repr(path))
        text = text.replace("load_ranker()", f"load_ranker({self.models['twolar-smollm2-135m-v2']!r})")
        code = compile(text, str(self.page), "exec")
        wanted = re.findall(r"^from (\w+)", text, re.MULTILINE)
        if all(importlib.util.find_spec(name) for name in wanted):  # an integration's library may be missing
            exec(code, self.names)
            self.ran += 1
        else:
            self.parsed += 1

    def _command(self, command: list[str]) -> None:
        program, *arguments = command
        if program == "tsarank":
            self._tsarank(arguments)
        elif program == "curl":
            self._curl(arguments)
        elif program in ("python", "bash"):
            assert (ROOT / arguments[0]).is_file(), command
        elif program == "make":
            subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
        else:
            assert [program, arguments[0]] == ["pip", "install"], command
            with (ROOT / "pyproject.toml").open("rb") as file:
                extras = set(tomllib.load(file)["project"]["optional-dependencies"])
            assert set(re.findall(r"[a-z-]+", "".join(re.findall(r"\[(.*)\]", arguments[1])))) <= extras, command

    def _tsarank(self, arguments: list[str]) -> None:
        if arguments[-1].startswith("--help"):
            return
        if "<" in arguments:  # standard input
            arguments = arguments[: arguments.index("<")]
        arguments = self._with_small_models(arguments)
        if arguments[0] == "train":
            more = [*ONE_STEP, *(["--top_blocks", "1"] if arguments[1] != "cpt" else [])]
            more += (
                ["--eval_steps", "1", "--save_steps", "1"]
                if "--eval_steps" in arguments
                else ["--save_strategy", "no"]
            )
            defaults = {"--model_name_or_path": self.models["smollm2-135m-instruct"], "--output_dir": "out"}
            more += [word for option in defaults if option not in arguments for word in (option, defaults[option])]
            importlib.import_module(f"modeling_tsarank.trainers.{arguments[1]}").main([*arguments[2:], *more])
            self.ran += 1
            return
        parsed = build_parser().parse_args(arguments)
        remote = any(word.startswith("http") or word == "--ray" for word in arguments)
        upload = arguments[0] == "publish" and "--dry-run" not in arguments
        if remote or upload or arguments[0] == "serve" or arguments[:2] == ["data", "weak-pairs"] or "-" in arguments:
            self.parsed += 1
            return
        if hasattr(parsed, "model") and "--model" not in arguments and arguments[0] not in ("data", "describe"):
            arguments = [*arguments, "--model", self.models["twolar-smollm2-135m-v2"]]
        assert main(arguments) == 0, arguments
        self.ran += 1

    def _with_small_models(self, arguments: list[str]) -> list[str]:
        found, option = [], ""
        names = "|".join(re.escape(name) for name in sorted(self.models, key=len, reverse=True))
        for word in arguments:
            option = word if word.startswith("--") else option
            of_model = option in MODEL_OPTIONS or (arguments[0] == "describe" and not option)
            whole = re.compile(rf"(^|[:,+=])({names})(?=$|[,+])")
            found.append(whole.sub(lambda match: match[1] + self.models[match[2]], word) if of_model else word)
        return found

    def _curl(self, arguments: list[str]) -> None:
        if "client" not in self.names:
            app = create_app({"small": load_ranker(self.models["twolar-smollm2-135m-v2"])})
            self.names["client"] = TestClient(app)
        path = arguments[0].removeprefix("localhost:8000")
        body = json.loads(arguments[arguments.index("-d") + 1]) if "-d" in arguments else None
        client = self.names["client"]
        response = client.get(path) if body is None else client.post(path, json=body)
        assert response.status_code == 200, response.text
        self.ran += 1


def run_page(page: Path, models: dict[str, str], folder: Path) -> PageRun:
    """Runs a page's blocks in `folder`, which becomes the current one."""
    make_files(folder, models)
    os.chdir(folder)
    run = PageRun(page, models)
    run.run()
    return run
