"""`tsarank serve`: rerankers over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from ..jobs.arguments import add_ray_arguments, check_ray_arguments
from ..models.arguments import (
    add_document_arguments,
    add_model_arguments,
    add_passage_arguments,
    add_store_argument,
    documents_from_arguments,
    model_from_arguments,
    say,
)
from ..models.resolver import resolve
from ..ranking_errors import InputError
from ..scores import RAW_SCORES
from .command_line import add_command, real, size, whole


_DETAILS = f"""\
scores:
  relevance_score is the model's score as in `tsarank rank`. TEI's format returns its sigmoid unless raw_scores is
  true.
  {RAW_SCORES}
  For a calibrated model (`tsarank calibrate`), a request may have "threshold", and "output": "probability" (or
  --output probability for all), which returns probabilities of relevance instead of scores.
"""
_EXAMPLES = """\
  tsarank serve
  tsarank serve --model ./my-ranker --model tsarank-smollm2-135m --port 8080
  tsarank serve --documents corpus.jsonl --store states --calibration calibration.json
  TSARANK_API_KEY=secret tsarank serve --host 0.0.0.0 --store states
  curl localhost:8000/v1/rerank -H 'Content-Type: application/json' \\
    -d '{"query": "how long does a flea live", "documents": ["Fleas jump.", "A flea lives for months."]}'
"""


def register(subparsers: Any) -> None:
    """Adds `serve` to the command line."""
    parser = add_command(
        subparsers,
        "serve",
        "serve rerankers over HTTP",
        _EXAMPLES,
        run,
        common="host port documents max-documents timeout fusion store model dtype device",
        details=_DETAILS,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=whole(0, 2**16 - 1), default=8000, metavar="N", help="default 8000; 0: any free port"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-documents", type=whole(), default=1000, metavar="N", help="per request (1000)")
    limits.add_argument("--max-body", type=size, default=16 << 20, metavar="SIZE", help="per request (16MiB)")
    limits.add_argument("--max-queue", type=whole(), default=4096, metavar="N", help="pairs that may wait (4096)")
    limits.add_argument("--timeout", type=real(above=0), default=60.0, metavar="S", help="per request (60)")
    parser.add_argument(
        "--fusion", metavar="W", help="weight, or file of `tsarank tune-fusion`, for requests with first_stage_scores"
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration file of `tsarank calibrate`, if the model's folder has none; needs a single --model",
    )
    parser.add_argument(
        "--output",
        choices=("score", "probability"),
        default="score",
        help="default output of requests (default: score)",
    )
    several = parser.add_argument_group(
        "several processes or machines",
        "Replicas of the service on Ray Serve, behind one port. They share a --store on a disk that all can access;\n"
        "without one, uploads are rejected, and /metrics is that of the replica which responds.",
    )
    add_ray_arguments(several, "replica", "serve from")
    several.add_argument(
        "--max-replicas",
        type=whole(most=65_536),
        metavar="N",
        help="maximum while requests wait (default: --replicas)",
    )
    add_document_arguments(parser, required=False)
    add_passage_arguments(parser)
    add_store_argument(parser)
    add_model_arguments(parser, several=True)


def run(args: argparse.Namespace) -> int:
    """Serve rerankers over HTTP, with the APIs of Jina, Cohere, TEI and vLLM:
    POST /v1/rerank (Jina, vLLM), /v2/rerank (Cohere), /rerank (TEI's with "texts", Jina's with "documents").
    Also: /v1/documents (encode documents ahead), /v1/models, /health, /metrics (Prometheus), /docs (OpenAPI).

    Concurrent requests are scored together. With --store, document states are cached on disk, and a document
    seen before only costs the query's tokens. The documents of --documents are indexed before the port opens:
    requests can then have {"id": …} instead of texts.

    Ctrl-C or SIGTERM ends the service after the current work, a second Ctrl-C at once.
    """
    from ..files.extras import require

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, "serve", "tsarank serve")

    _check_address(args.host, args.port)
    logging.getLogger("modeling_tsarank.serving").setLevel(logging.INFO)
    if args.calibration is not None and len(args.model or ()) > 1:
        raise InputError("--calibration is for one model: put each calibration.json into its model's folder")
    args.api_key = os.environ.get("TSARANK_API_KEY") or None
    check_ray_arguments(args, "replica")
    if args.ray is not None:
        return _serve_on_ray(args)
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit and sig == signal.SIGINT:
                # Python itself would wait for the model's thread.
                sys.stderr.write("tsarank: interrupted\n")
                sys.stderr.flush()
                os._exit(130)
            super().handle_exit(sig, frame)

    # During indexing; uvicorn raises it once more at the end.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        app = make_app(args)
        config = uvicorn.Config(app, args.host, args.port, log_level="warning", timeout_graceful_shutdown=30)
        server = Server(config)
        server.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if server.started else 2


def make_app(args: argparse.Namespace) -> Any:
    """The application of the command line, with its models loaded."""
    from ..cache.folder_store import FolderStore, open_store
    from ..scores.calibration import Calibration
    from ..scores.fusion import fusion_setting
    from ..serving.application import Limits, create_app

    fusion = None if args.fusion is None else fusion_setting(args.fusion)
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    documents = [] if args.documents is None else documents_from_arguments(args)
    there = args.store is not None and Path(args.store).is_dir()
    with contextlib.ExitStack() as stack:
        store: FolderStore | None = None
        if args.store is not None:
            store = stack.enter_context(open_store(args.store) if there else FolderStore(args.store))
        kept = store if store is not None and not store.read_only else None
        models: dict[str, Any] = {}
        for name in args.model or [None]:
            model = model_from_arguments(argparse.Namespace(**{**vars(args), "model": name}))
            if store is not None:
                model.check_cacheable()
                model.document_store = store
            if calibration is not None:
                model.calibration = calibration
            if kept is not None and documents:
                say(f"indexing {len(documents):,} documents")
                model.index([document.text for document in documents], kept)
            models[resolve(name).label] = model
        app = create_app(
            models,
            Limits(args.max_documents, args.max_body, args.max_queue, args.timeout, args.batch_tokens),
            api_key=args.api_key,
            uploads=None if kept is None else kept.folder / "documents.sqlite",
            takes_uploads=kept is not None or args.ray is None,
            fusion=fusion,
            output=args.output,
            passages={name: getattr(args, name) for name in ("passages", "passage_length", "passage_stride")},
            close=stack.pop_all().close,
        )
        app.state.service.uploads.put((document.id, "", document.text) for document in documents)
    return app


def _serve_on_ray(args: argparse.Namespace) -> int:
    from ..serving.ray_serving import Replicas, serve_on_ray

    most = args.replicas if args.max_replicas is None else args.max_replicas
    if most < args.replicas:
        raise InputError(f"--max-replicas ({most}) must not be smaller than --replicas ({args.replicas})")
    for name in args.model or [None]:
        resolve(name)  # invalid names are errors here, and not in every replica
    address = None if args.ray == "local" else args.ray
    replicas = Replicas(address, args.replicas, most, args.replica_cpus, args.replica_gpus)
    return serve_on_ray(functools.partial(make_app, args), args.host, args.port, replicas)


def _stop(*_: object) -> None:
    raise SystemExit(0)


def _check_address(host: str, port: int) -> None:
    """Raises `InputError`, before any model is loaded, for an unusable address."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except (OSError, TypeError, UnicodeError) as error:  # the last two: an invalid host name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}, port {port}: {reason}; give another --host or --port") from error
