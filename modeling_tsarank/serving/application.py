"""The service as an ASGI application: three rerank APIs, uploads, models, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from modeling_tsarank.hub_cards.app_server import BodyLimit

from .. import __version__
from ..ranking_errors import InputError, ModelError, ResourceError, TSARankError
from ..scores.fusion import FusionSetting, fuse
from ..scores.ranking import by_passages, check_fusion
from . import shapes
from .batching import Batcher, ClosedError, OverloadedError, ServedModel
from .documents import UploadedTexts
from .metrics import Metrics


logger = logging.getLogger("modeling_tsarank.serving")
_DISCONNECT_SECONDS = 0.5
_PASSAGES = ("passages", "passage_length", "passage_stride")


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes:
        documents: per request; more are rejected with 422.
        body_bytes: per request; more are rejected with 413.
        queue_pairs: pairs that may wait for each model; more are rejected with 429 and `Retry-After`.
        seconds: per request; after that the answer is 503 with `Retry-After`.
        batch_tokens: per forward pass, as in `predict`.
    """

    documents: int = 1000
    body_bytes: int = 16 << 20
    queue_pairs: int = 4096
    seconds: float = 60.0
    batch_tokens: int | None = None


@dataclass(frozen=True)
class Ranked:
    """The content of a response.

    Attributes:
        order: Indexes of the documents, best first, without those below the threshold.
        values: Shape `(documents,)`, in the given order: scores, fused scores or probabilities.
        tokens: Of all prompts.
        raw: Whether the values are the model's own scores.
        passages: The best passage of each document, if passages were scored; else empty.
    """

    order: list[int]
    values: np.ndarray
    tokens: int
    raw: bool
    passages: list[dict[str, Any]]

    def row(self, index: int, name: str) -> dict[str, Any]:
        """Index, value (under `name`) and, if there is one, best passage of a document."""
        passage = {"passage": self.passages[index]} if self.passages else {}
        return {"index": index, name: float(self.values[index]), **passage}


class Service:
    """Models by name, uploaded documents, limits: see `create_app`."""

    def __init__(
        self,
        models: Mapping[str, Any],
        limits: Limits | None = None,
        *,
        api_key: str | None = None,
        uploads: Path | None = None,
        fusion: FusionSetting | None = None,
        output: str = "score",
        passages: Mapping[str, Any] | None = None,
        takes_uploads: bool = True,
    ) -> None:
        self.passages = dict(passages or {})
        for name, model in models.items():
            if output == "probability" and getattr(model, "calibration", None) is None:
                raise InputError(
                    f"{name} has no calibration, which probabilities need; fit one with `tsarank calibrate`"
                )
            by_passages(model, *map(self.passages.get, _PASSAGES))
        self.limits, self.metrics, self.uploads = limits or Limits(), Metrics(), UploadedTexts(uploads)
        self.api_key, self.fusion, self.output, self.takes_uploads = api_key, fusion, output, takes_uploads
        queue: Any = {"batch_tokens": self.limits.batch_tokens, "queue_pairs": self.limits.queue_pairs}
        queue["observe"] = self.metrics.batched.observe
        self.models = {name: ServedModel(name, Batcher(model, **queue)) for name, model in models.items()}

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, the first one for `None`. Raises 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise HTTPException(404, f"there is no model {name[:100]!r}; this service has {', '.join(self.models)}")
        return self.models[name]

    def texts(self, documents: Sequence[shapes.Document]) -> list[dict[str, str]]:
        """Title and text of each document. Raises 422 for an id that was not uploaded, or neither text nor id."""
        found = []
        for place, document in enumerate(documents):
            if document.text is not None:
                found.append({"title": document.title, "text": document.text})
                continue
            known = None if document.id is None else self.uploads.get(document.id)
            if known is None:
                what = "neither text nor id" if document.id is None else f"the unknown id {document.id[:100]!r}"
                raise HTTPException(422, f"document {place} has {what}")
            found.append(known)
        return found

    async def score(
        self, http: Request, model: ServedModel, body: shapes.AnyRequest, texts: Sequence[Any], truncate: bool = True
    ) -> Ranked:
        """The ranking for a request, within the limits. If the client disconnects, its pairs leave the queue."""
        if len(texts) > self.limits.documents:
            raise HTTPException(422, f"{len(texts)} documents; a request may have {self.limits.documents}")
        first = body.first_stage_scores
        fusion = self.fusion if first and body.weight is None else None
        setting = check_fusion(first, body.weight, fusion, len(texts))
        output = self._output(model, body)
        given = {name: value for name in _PASSAGES if (value := getattr(body, name)) is not None}
        split = by_passages(model.model, *({**self.passages, **given}.get(name) for name in _PASSAGES))
        split = None if split is model.model else split
        task = asyncio.ensure_future(model.score(body.query, texts, truncate=truncate, by_passages=split))
        ends = time.monotonic() + self.limits.seconds
        try:
            while not task.done():
                left = ends - time.monotonic()
                if left <= 0:
                    raise _retry(503, "the service did not answer in time; give fewer documents or try again", 1)
                await asyncio.wait([task], timeout=min(left, _DISCONNECT_SECONDS))
                if not task.done() and await http.is_disconnected():
                    raise HTTPException(499, "the client has disconnected")
            scored = task.result()
        except OverloadedError as error:
            raise _retry(429, "too many documents are waiting; try again later", error.seconds) from error
        except ClosedError as error:
            raise _retry(503, "the service is shutting down", 1) from error
        finally:
            task.cancel()
        if scored is None:
            raise HTTPException(413, "a document is too long for the model; set truncate to true or shorten it")
        http.state.facts = {"model": model.name, "documents": len(texts), "tokens": scored.tokens}
        self.metrics.documents.labels(model.name).inc(len(texts))
        self.metrics.tokens.labels(model.name).inc(scored.tokens)
        self.metrics.cut.inc(scored.cut_documents)
        values = scored.scores
        if setting is not None and first is not None:
            values = fuse(scored.scores, first, setting.weight, setting.normalization)
        order = np.argsort(-values, kind="stable")  # equal scores keep the given order
        if model.calibration is not None and (output == "probability" or body.threshold is not None):
            probabilities = model.calibration.probabilities(scored.scores)
            values = probabilities if output == "probability" else values
            order = order[probabilities[order] >= (body.threshold or 0)]
        raw = output == "score" and setting is None
        return Ranked(order.tolist(), values, scored.tokens, raw, scored.passages or [])

    def _output(self, model: ServedModel, body: shapes.AnyRequest) -> str:
        """The kind of output: score or probability. Raises 422 if the model does not support it."""
        mixed = body.first_stage_scores is not None
        output = body.output or ("score" if mixed else self.output)
        if output == "probability" and mixed:
            raise HTTPException(422, "probabilities are for the model's own scores: leave out first_stage_scores")
        if model.calibration is None and (output == "probability" or body.threshold is not None):
            raise HTTPException(
                422,
                f"{model.name} has no calibration, which probabilities and thresholds need; fit one with `tsarank "
                "calibrate` and start the service with --calibration",
            )
        return output


def _retry(status: int, detail: str, seconds: float) -> HTTPException:
    return HTTPException(status, detail, headers={"Retry-After": str(max(1, round(seconds)))})


def create_app(
    models: Mapping[str, Any], limits: Limits | None = None, close: Callable[[], None] = lambda: None, **settings: Any
) -> FastAPI:
    """The application that `tsarank serve` runs.

    Args:
        models: Rankers (`load_ranker`) by the names for requests; the first is the default. A model with a
            `document_store` uses its document states.
        limits: The limits of the service.
        close: Called after the last request.
        api_key: The key for `Authorization: Bearer`; `None` allows everybody.
        uploads: An SQLite file for uploaded documents; `None` keeps them in memory.
        fusion: How to fuse the first stage's scores of a request without a weight.
        output: `score` or `probability`, the default for requests; the second needs calibrated models.
        passages: `passages`, `passage_length` and `passage_stride`, the defaults for requests.
        takes_uploads: False rejects uploads, if other processes of the service would not have them.

    Raises:
        InputError: probabilities of a model without calibration, or passages that a model does not support.
    """
    service = Service(models, limits, **settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in service.models.values():
            await asyncio.to_thread(served.warm_up)
        yield
        for served in service.models.values():
            await asyncio.to_thread(served.batcher.close)
        service.uploads.close()
        close()

    app = FastAPI(title="tsarank", version=__version__, description="Rerankers as a service.", lifespan=lifespan)
    app.state.service = service
    app.add_middleware(BodyLimit, limit=service.limits.body_bytes)
    _answer_errors(app)
    _watch(app, service)
    guard = _guard(service)
    _add_operations(app, service, guard)
    _add_rerank(app, service, guard)
    return app


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if "json" not in (kind := request.headers.get("content-type", "")):
            return JSONResponse({"detail": f"send JSON with Content-Type: application/json, not {kind[:80]!r}"}, 422)
        # Without the values: they may be texts, or numbers that are invalid in JSON.
        detail = [{"loc": part["loc"], "msg": part["msg"], "type": part["type"]} for part in error.errors()[:20]]
        return JSONResponse({"detail": json.loads(json.dumps(detail, default=str).encode("utf-8", "replace"))}, 422)

    @app.exception_handler(TSARankError)
    async def refused(_: Request, error: TSARankError) -> JSONResponse:
        status = (
            422 if isinstance(error, InputError | ModelError) else 503 if isinstance(error, ResourceError) else 500
        )
        detail = str(error)[:500].encode("utf-8", "replace").decode()
        return JSONResponse({"detail": detail}, status, {"Retry-After": "1"} if status == 503 else None)

    @app.exception_handler(RecursionError)
    async def too_deep(_: Request, error: RecursionError) -> JSONResponse:
        return JSONResponse({"detail": "the JSON is nested too deeply"}, 422)


def _watch(app: FastAPI, service: Service) -> None:
    """A line of JSON for every request, without its texts, and the metrics."""

    @app.middleware("http")
    async def watch(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        identifier = uuid.uuid4().hex
        request.state.id = identifier
        response = await call(request)
        seconds = time.perf_counter() - start
        route = request.scope.get("route")
        path = getattr(route, "path", "other")
        service.metrics.requests.labels(path, response.status_code).inc()
        service.metrics.seconds.labels(path).observe(seconds)
        response.headers["X-Request-Id"] = identifier
        if path not in ("/health", "/metrics"):
            facts = {"id": identifier, "method": request.method, "path": path, "status": response.status_code}
            facts |= {"seconds": round(seconds, 4), **getattr(request.state, "facts", {})}
            logger.info("%s", json.dumps(facts))
        return response


def _guard(service: Service) -> Any:
    async def check(
        given: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False)),  # noqa: B008
    ) -> None:
        key = "" if given is None else given.credentials
        if service.api_key is not None and not hmac.compare_digest(key.encode(), service.api_key.encode()):
            raise HTTPException(401, "a valid API key is needed", headers={"WWW-Authenticate": "Bearer"})

    return Depends(check)


def _add_operations(app: FastAPI, service: Service, guard: Any) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, str]:
        """Answers once the models are loaded and warm."""
        return {"status": "ok"}

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus' text format."""
        for served in service.models.values():
            service.metrics.waiting.labels(served.name).set(served.batcher.waiting)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", tags=["operations"], dependencies=[guard])
    async def list_models() -> dict[str, Any]:
        """The model names for requests, in the format of OpenAI's API."""
        rows = [{"id": name, "object": "model", "owned_by": "tsarank"} for name in service.models]
        return {"object": "list", "data": rows}

    @app.post("/v1/documents", tags=["documents"], dependencies=[guard])
    async def upload(body: shapes.Upload) -> shapes.UploadResponse:
        """Stores documents under their ids, and caches their states if the service has a store: requests can then have
        ids instead of texts, and ranking only costs the query's tokens."""
        if len(body.documents) > service.limits.documents:
            raise HTTPException(422, f"{len(body.documents)} documents; a request may have {service.limits.documents}")
        if not service.takes_uploads:
            raise HTTPException(501, "several replicas share uploaded documents only with a store: start with --store")
        model = service.model(body.model)
        rows = [(document.id, document.title, document.text) for document in body.documents]
        identifier, times = Counter(row[0] for row in rows).most_common(1)[0]
        if times > 1:
            raise HTTPException(422, f"the id {identifier[:100]!r} occurs {times} times")
        texts = [{"title": title, "text": text} for _, title, text in rows]
        try:
            encoded = await model.index(texts)
        except ClosedError as error:
            raise _retry(503, "the service is shutting down", 1) from error
        await asyncio.to_thread(service.uploads.put, rows)
        return shapes.UploadResponse(documents=len(rows), encoded=encoded)


def _add_rerank(app: FastAPI, service: Service, guard: Any) -> None:
    async def jina(body: shapes.JinaRequest, request: Request) -> shapes.JinaResponse:
        model = service.model(body.model)
        if body.instruction:
            raise HTTPException(422, "requests cannot have an instruction; start with `tsarank serve --instruction`")
        texts = service.texts(body.documents)
        ranked = await service.score(request, model, body, texts)
        results = []
        for i in ranked.order[: body.top_n]:
            document = {name: text for name, text in texts[i].items() if text or name == "text"}
            shown = document if body.return_documents else None
            results.append(shapes.JinaResult(**ranked.row(i, "relevance_score"), document=shown))
        usage = shapes.Usage(total_tokens=ranked.tokens)
        return shapes.JinaResponse(id=request.state.id, model=model.name, usage=usage, results=results)

    async def tei(body: shapes.TeiRequest, request: Request) -> list[shapes.TeiResult]:
        ranked = await service.score(request, service.model(None), body, body.texts, body.truncate)
        results = []
        for i in ranked.order:
            row = ranked.row(i, "score")
            if ranked.raw and not body.raw_scores:
                row["score"] = float(1 / (1 + np.exp(-np.float64(row["score"]))))
            results.append(shapes.TeiResult(**row, text=body.texts[i] if body.return_text else None))
        return results

    @app.post("/v1/rerank", tags=["rerank"], dependencies=[guard], response_model_exclude_none=True)
    async def rerank_v1(body: shapes.JinaRequest, request: Request) -> shapes.JinaResponse:
        """Jina's API, which vLLM and infinity use too."""
        return await jina(body, request)

    @app.post("/rerank", tags=["rerank"], dependencies=[guard], response_model_exclude_none=True)
    async def rerank(body: shapes.JinaOrTeiRequest, request: Request) -> shapes.JinaResponse | list[shapes.TeiResult]:
        """Jina's API if the request has `documents`, TEI's if it has `texts`."""
        return await (tei(body, request) if isinstance(body, shapes.TeiRequest) else jina(body, request))

    @app.post("/v2/rerank", tags=["rerank"], dependencies=[guard], response_model_exclude_none=True)
    async def rerank_v2(body: shapes.CohereRequest, request: Request) -> shapes.CohereResponse:
        """Cohere's API."""
        model, texts = service.model(body.model), service.texts(body.documents)
        if body.max_tokens_per_doc is not None:
            longest = body.max_tokens_per_doc
            texts = [{**text, "text": model.shorten(text["text"], longest)} for text in texts]
        ranked = await service.score(request, model, body, texts)
        best = ranked.order[: body.top_n]
        results = [shapes.CohereResult(**ranked.row(i, "relevance_score")) for i in best]
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        return shapes.CohereResponse(id=request.state.id, results=results, meta=meta)
