"""A family in a package of its own: known by its entry point alone, to commands, trainers, cards and the app."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from modeling_tsarank import cli, load_ranker
from modeling_tsarank.models import families


TOY = '''
"""The toy family: twice the logit of "true" less that of "false", on any decoder-only model."""

from dataclasses import dataclass
from typing import ClassVar

from transformers import AutoModelForCausalLM

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.modeling_twolar import LogitOptions, TemplateEncoder
from modeling_tsarank.ranking_engine import readable_length


@dataclass(frozen=True)
class ToyOptions(LogitOptions):
    family: ClassVar[str] = "toy"
    template: str = "{document} answers {query} ? Relevant:"


class ToyModel(RankerModel):
    options_class = ToyOptions
    title = "Toy logits"
    description = "A reranker that plays with the logits of an answer."
    citation = "@misc{toy, title = {Toy}}"
    tag = "toy-reranker"
    limits = ("It is a toy.",)
    published: ClassVar[dict] = {"toys/*": {"max_length": 300}}

    @classmethod
    def backbone_class(cls, config):
        return AutoModelForCausalLM

    @classmethod
    def scoring(cls, options):
        return f"The score is twice the logit of {options.true_text} less that of {options.false_text}."

    def _make_encoder(self):
        return TemplateEncoder(self.tokenizer, self.options, readable_length(self.backbone))

    def _read_out(self):
        answers = f" {self.options.true_text}", f" {self.options.false_text}"
        return "answer_logits", [self.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in answers]

    def pool(self, logits):
        return 2 * (logits[:, 0] - logits[:, 1]).float()
'''
QUERY = "why does bread rise"
SMALL = '{"max_length": 200, "max_query_length": 60}'


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `toy_family`, as an installer leaves it in a folder of packages."""
    packages = tmp_path / "packages"
    metadata = packages / "toy_family-1.0.dist-info"
    metadata.mkdir(parents=True)
    (packages / "toy_family.py").write_text(TOY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tsarank.families]\ntoy = toy_family:ToyModel\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(families, "_known", dict(families._known))
    families._register_installed.cache_clear()
    yield
    families._register_installed.cache_clear()
    sys.modules.pop("toy_family", None)


def write_collection(folder: Path) -> Path:
    texts = ["yeast makes gas", "ships need pilots", "a glacier carries stones", "bees dance for flowers"]
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": f"d{i}", "title": "", "text": text}) for i, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(corpus) + "\n")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": QUERY}) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td0\t1\n")
    (folder / "first.run").write_text("".join(f"q Q0 d{i} {i + 1} {9 - i} bm25\n" for i in range(4)))
    return folder


def test_a_family_of_another_package_does_all_that_ours_do(
    toy: None,
    make_ranker: Any,
    distill_rows: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    from modeling_tsarank.hub_cards.app_inputs import BuiltInCollection
    from modeling_tsarank.hub_cards.app_limits import Limits
    from modeling_tsarank.hub_cards.app_models import make_shelf
    from modeling_tsarank.hub_cards.app_ranking import RankingService
    from modeling_tsarank.trainers import distill

    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))
    plain = make_ranker("twolar")
    plain.backbone.config.max_position_embeddings = 1024  # a default ranker of every family fits
    plain.backbone.save_pretrained(tmp_path / "plain")
    plain.tokenizer.save_pretrained(tmp_path / "plain")
    pairs = [(QUERY, "yeast makes gas"), (QUERY, "ships need pilots")]

    # Loads and scores; saved, it is itself again, also by transformers alone.
    loading = {"device": "cpu", "dtype": "float32"}
    ranker = load_ranker(tmp_path / "plain", family="toy", **json.loads(SMALL), **loading)
    assert type(ranker).__name__ == "ToyModel"
    same_prompt = load_ranker(
        tmp_path / "plain",
        family="true_false_logits",
        template=ranker.options.template,
        **json.loads(SMALL),
        **loading,
    )
    expected = 2 * same_prompt.predict(pairs)
    assert ranker.predict(pairs) == pytest.approx(expected, abs=1e-5)
    ranker.save_pretrained(tmp_path / "toy")
    assert load_ranker(tmp_path / "toy", **loading).predict(pairs) == pytest.approx(expected, abs=1e-5)
    remote = AutoModel.from_pretrained(tmp_path / "toy", trust_remote_code=True)
    assert remote.predict(pairs) == pytest.approx(expected, abs=1e-5)
    with torch.inference_mode():  # what the base class does where there is no engine
        assert remote.scores_to_train(remote.encoder.pairs(pairs)) == pytest.approx(expected, abs=1e-5)
    assert families.published_family("toys/large") is type(ranker)

    # Is measured.
    collection = write_collection(tmp_path / "collection")
    evaluate = ["evaluate", "--model", tmp_path / "toy", "--dataset", collection, "--output", tmp_path / "measured"]
    evaluate += ["--first-stage", collection / "first.run", "--device", "cpu", "--quiet"]
    assert cli.main([str(word) for word in evaluate]) == 0
    assert "ndcg@10" in capsys.readouterr().out.lower()

    # Is trained, from a plain model and from its own checkpoint.
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in distill_rows))
    train = ["--train_data", rows, "--family", "toy", "--max_steps", "1", "--save_strategy", "no", "--use_cpu", "true"]
    train += ["--max_length", "120", "--max_query_length", "30", "--disable_tqdm", "true", "--learning_rate", "1e-3"]
    for start, more in ((tmp_path / "plain", ["--ranking_options", SMALL]), (tmp_path / "toy", [])):
        train_from = [*train, "--model_name_or_path", start, "--output_dir", tmp_path / "run", *more]
        distill.main([*map(str, train_from)])
        trained = load_ranker(tmp_path / "run", **loading)
        assert type(trained) is type(ranker)
        assert trained.predict(pairs) != pytest.approx(expected, abs=1e-6)
        (tmp_path / "run").rename(tmp_path / f"trained-from-{start.name}")

    # Is published, with its own words on the card.
    capsys.readouterr()
    publish = ["publish", "model", tmp_path / "toy", "alice/toy", "--license", "mit", "--dry-run"]
    assert cli.main([str(word) for word in publish]) == 0
    shown = capsys.readouterr().out
    for text in ("toy_family.py", "crossencoder_tsarank.py", "pipeline_text_ranking.py", "It is a toy.", "@misc{toy"):
        assert text in shown, text
    assert "toy-reranker" in shown
    assert "twice the logit of true less that of false" in shown

    # Shows in the app: alone, and beside the others on a plain model's weights.
    shelf = make_shelf(str(tmp_path / "toy"), [], Limits())
    collection_of_app = BuiltInCollection(
        Path(__file__).parents[2] / "examples" / "collection.jsonl",
        Path(__file__).parents[2] / "examples" / "queries.jsonl",
        tmp_path / "index",
    )
    service = RankingService(shelf, collection_of_app, Limits())
    assert service.rank_texts(QUERY, [document for _, document in pairs]).family == "toy"
    explained = service.explain(*pairs[0]).explanation
    assert explained.rule == "this family does not explain its scores"
    assert explained.score == pytest.approx(expected[0], abs=0.05)  # in whatever dtype this machine ranks
    assert "plain (toy logits, untrained)" in make_shelf(str(tmp_path / "plain"), [], Limits()).names
    if importlib.util.find_spec("gradio"):
        specification = importlib.util.spec_from_file_location("app", Path(__file__).parents[2] / "app.py")
        assert specification is not None
        assert specification.loader is not None
        app = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(app)
        page = str(app.build(service).get_config_file())
        assert "A reranker that plays with the logits of an answer." in page
        assert "**Toy logits.** The score is twice" in page


def test_what_is_no_family_is_refused(toy: None, make_ranker: Any) -> None:
    from modeling_tsarank import InputError, TwolarModel

    class Second(TwolarModel):
        pass

    assert families.register_family(TwolarModel) is TwolarModel
    with pytest.raises(InputError, match="two families have the name 'true_false_logits'"):
        families.register_family(Second)
    with pytest.raises(InputError, match="is not a family"):
        families.register_family(str)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"unknown family 'telepathy'; expected one of .*toy"):
        families.family_class("telepathy")
