"""The command-line options that choose a ranker of lists, and the ranker that they describe."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from ..cli.command_line import real, whole
from ..models.arguments import loading_arguments, ranking_arguments
from ..ranking_errors import InputError
from . import RANKERS


# Options of reranking services, with their defaults; refused for other models.
_OF_ADDRESSES = {"api_model": "", "api_key_variable": "TSARANK_API_KEY", "api_documents": None, "api_timeout": 120.0}
NUMBER_FORMATS = ("float32", "bfloat16", "float16", "int8")

if TYPE_CHECKING:
    from .protocols import ListRanker

RANKERS_HELP = """\
rankers (--ranker), over any language model; the costs are for n documents of a query:
  pointwise  a score for each document by itself: n short prompts, the cheapest (the default)
  listwise   RankGPT: the model writes the order of 20 documents at a time, (n - 10) / 10 answers; for strong chat
             models: weak ones answer by counting
             options: window, step, prompt, passage_words, attempts, refuse_given_order
  first      FIRST: the order of the labels' logits, without generation; for models trained for it
             options: window, step, passage_words
  setwise    the best of 4 documents, in a heap: about 130 prompts for the top 10 of 100
             options: method (heapsort, insertion), labels, best, both_orders, passage_words
  pairwise   PRP, the better of two documents, in both orders: up to 20 (n - 1) prompts for ten passes of sliding,
             n (n - 1) for allpair
             options: method (sliding, sorting, allpair), passes, passage_words
  attention  in-context re-ranking: the attention of the query to the passages of a prompt, minus that of an empty
             query; three forward passes for 20 documents, decoder-only models
             options: window, step, passage_words, calibrate
  one-pass   the attention of the query to cached document states (--store): one forward pass of the query for all
             documents; needs a pointwise decoder-only ranker with a document-first template
             options: layer, positions (aligned, original), sinks (all, one), query_tokens (all, last), reduce (sum,
             mean), calibrate
Options are given as --ranker-options labels=8 best=20. With --model URL --api-model M, listwise, setwise and pairwise
use an OpenAI-compatible server instead of a local model. Without --ranker, the URL is a /rerank service.
"""


def add_ranker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for rankers of lists, over a local language model or one behind a URL."""
    group = parser.add_argument_group("ranker of lists")
    group.add_argument("--ranker", choices=RANKERS, default=RANKERS[0], help="see below (default: pointwise)")
    group.add_argument(
        "--ranker-options", nargs="+", default=[], metavar="NAME=VALUE", help="of that ranker, such as labels=4"
    )
    group.add_argument(
        "--cascade",
        metavar="N:WHAT,…",
        help="stages, each for the best documents of the previous one: their number and ranker, a number format of "
        "--model (100:int8,30:float32), a ranker over it (20:setwise), or another model (100:ce:FOLDER)",
    )
    parser.set_defaults(**_OF_ADDRESSES)
    group.add_argument("--api-model", metavar="M", help="with --model URL: the model's name there")
    group.add_argument(
        "--api-key-variable",
        metavar="V",
        help="environment variable with the API key, if the service needs one (default: TSARANK_API_KEY)",
    )
    group.add_argument(
        "--api-documents",
        type=whole(),
        metavar="N",
        help="documents in a request to a /rerank service (default: all of a query)",
    )
    group.add_argument(
        "--api-timeout",
        type=real(least=0.001, most=1e6),
        metavar="S",
        help="total timeout of a request in seconds (default: 120)",
    )


def ranker_options(args: argparse.Namespace) -> dict[str, Any]:
    """The values of `--ranker-options`. Raises `InputError` for entries other than NAME=VALUE."""
    found = named_values(args.ranker_options, "--ranker-options")
    if found and args.ranker == RANKERS[0]:
        raise InputError("--ranker-options are for rankers of lists; name one with --ranker")
    return found


def named_values(entries: Iterable[str], option: str) -> dict[str, Any]:
    """The values of an option that takes NAME=VALUE several times. Raises `InputError` for other entries."""
    from ..files.reading import parse_json

    found: dict[str, Any] = {}
    for given in entries:
        name, equals, value = given.partition("=")
        if not equals or not name:
            raise InputError(f"{option} expects NAME=VALUE, such as window=10, got {given!r}")
        try:
            found[name] = parse_json(value, given)
        except InputError:  # a word, such as heapsort
            found[name] = value
    return found


def refuse_options(args: argparse.Namespace, what: str, **unset: Any) -> None:
    """Raises `InputError` for an option that is given and has no effect."""
    for name, value in unset.items():
        if getattr(args, name, value) != value:
            raise InputError(f"--{name.replace('_', '-')} has no effect on {what}; leave it out")


def check_list_options(args: argparse.Namespace, remote: bool) -> None:
    """Raises `InputError` for an option that has no effect on a ranker of lists, or on one that is not `remote`."""
    unset = dict.fromkeys(("store", "max_query_length", "max_length"))
    if not remote:
        refuse_options(args, "a model on this machine", **_OF_ADDRESSES)
        if args.ranker in (RANKERS[0], "one-pass"):
            return
    if remote:
        unset |= dict.fromkeys(("batch_tokens", "revision", "device"))
        refuse_options(args, "a service", dtype="auto", trust_remote_code=False, **unset)
    else:
        refuse_options(args, f"a {args.ranker} ranker", **unset)


def list_ranker(args: argparse.Namespace) -> ListRanker | None:
    """The ranker of lists that the options describe, `None` for a pointwise model.

    Args:
        args: Parsed options of `add_ranker_arguments` and `models.arguments.add_model_arguments`.

    Raises:
        InputError, ModelError, ResourceError: see `load_list_ranker` and `check_list_options`.
    """
    from ..cache.folder_store import open_store
    from ..models.resolver import Kind, resolve
    from .cascade import Cascade
    from .chat import ChatSettings
    from .endpoint import EndpointSettings
    from .loading import load_list_ranker
    from .rerank_service import RerankService

    if getattr(args, "cascade", None) is not None:
        return Cascade([(depth, _stage(stage)) for depth, stage in cascade_stages(args)])
    options = ranker_options(args)
    source = resolve(args.model)
    remote, pointwise = source.kind is Kind.SERVICE, args.ranker == RANKERS[0]
    check_list_options(args, remote)
    if pointwise and not remote:
        return None
    where = (source.name, args.api_model, args.api_key_variable, args.api_timeout)
    if pointwise:
        return RerankService(EndpointSettings(*where), args.api_documents)
    if remote:
        return load_list_ranker(source.name, args.ranker, options, endpoint=ChatSettings(*where))
    given = {**loading_arguments(args), "batch_tokens": args.batch_tokens}
    ranker: Any = load_list_ranker(args.model, args.ranker, options, **given)
    if getattr(args, "store", None) is not None:
        ranker.document_store = open_store(args.store)
    return cast("ListRanker", ranker)


def cascade_stages(args: argparse.Namespace) -> list[tuple[int, argparse.Namespace]]:
    """Depth and options of each stage of `--cascade`."""
    from ..models.resolver import Kind, resolve
    from .cascade import parse_cascade

    if args.ranker != RANKERS[0]:
        raise InputError("--cascade has its own rankers; leave --ranker out")
    stages = [(depth, _stage_arguments(args, what)) for depth, what in parse_cascade(args.cascade)]
    if all(resolve(stage.model).kind is not Kind.SERVICE for _, stage in stages):
        refuse_options(args, "a cascade without a service", **_OF_ADDRESSES)
    return stages


def _stage_arguments(args: argparse.Namespace, what: str) -> argparse.Namespace:
    from ..models.resolver import Kind, resolve

    stage = argparse.Namespace(**{**vars(args), "cascade": None})
    if what in RANKERS:
        stage.ranker = what
    elif what in NUMBER_FORMATS:
        stage.dtype = what
    else:
        stage.model, stage.revision = what, None
    if resolve(stage.model).kind is not Kind.SERVICE:
        vars(stage).update(_OF_ADDRESSES)
    if stage.ranker == RANKERS[0]:
        stage.ranker_options = []
    elif stage.ranker != "one-pass":
        stage.store = stage.max_length = stage.max_query_length = stage.instruction = None
    return stage


def _stage(args: argparse.Namespace) -> Any:
    from ..cache.folder_store import use_store
    from ..models.loading import number_format, resolve_device
    from ..models.resolver import resolve
    from .pointwise import foreign_dtype, load_scorer, prefix_of

    ranker = list_ranker(args)
    if ranker is not None:
        return ranker
    place = resolve_device(args.device)
    foreign = bool(prefix_of(resolve(args.model), args.revision))
    dtype = foreign_dtype(args.dtype, place) if foreign else number_format(args.dtype, place)
    hub = args.revision, args.trust_remote_code
    model: Any = load_scorer(args.model, str(place), dtype, *hub, **ranking_arguments(args))
    if getattr(args, "store", None) is not None:
        use_store(model, args.store)
    return model
