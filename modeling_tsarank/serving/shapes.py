"""Requests and responses of three common reranker APIs: Jina's, Cohere's and TEI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StrictBool, Tag, model_validator

from ..files.fields import field_value, without_nulls


def _well_formed(text: Any) -> Any:
    """Replaces lone surrogates: JSON can escape them (text cut inside an emoji), but UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


def _as_document(value: Any) -> Any:
    """Accepts the field names of files, too; a number as an id becomes its digits."""
    if not isinstance(value, Mapping):
        return {"text": value} if isinstance(value, str) else value
    found = {name: field_value(value, name) for name in ("id", "title", "text")}
    if type(found["id"]) is int:
        found["id"] = str(found["id"])
    return found


Text = Annotated[str, BeforeValidator(_well_formed)]


class _Given(BaseModel):
    """A client's data: a field that is null counts as absent, as in files."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return without_nulls(value) if isinstance(value, Mapping) else value


class Document(_Given):
    """A text, or the id of an uploaded document."""

    text: Text | None = None
    title: Text = ""
    id: Text | None = None


AnyDocument = Annotated[Document, BeforeValidator(_as_document)]


class _Request(_Given):
    query: Text = Field(min_length=1, description="The query.")
    first_stage_scores: list[float] | None = Field(None, description="One per document, to be fused with the model's.")
    weight: float | None = Field(None, description="Weight of the first stage, 0 to 1. Default: the service's.")
    output: Literal["score", "probability"] | None = Field(
        None,
        description="The content of the score; a probability of relevance needs a calibrated model. Default: the "
        "service's setting.",
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="Omit documents of a lower probability of relevance (calibrated models)."
    )
    passages: str | None = Field(
        None,
        description="Score documents by their passages: max, mean, top-K such as top-3, or first. Default: the "
        "service's setting.",
    )
    passage_length: int | None = Field(None, ge=1, description="Tokens of a passage. Default: as many as fit.")
    passage_stride: int | None = Field(None, ge=1, description="Tokens between passage starts. Default: half.")


class _DocumentsRequest(_Request):
    model: str | None = Field(None, description="One of /v1/models. Default: the first.")
    documents: list[AnyDocument] = Field(min_length=1, description="Strings, or objects with text, title or id.")
    top_n: int | None = Field(None, ge=1, description="Return only the best N.")


class JinaRequest(_DocumentsRequest):
    """`/v1/rerank` and, with `documents`, `/rerank` (Jina, vLLM, infinity)."""

    return_documents: StrictBool = False
    instruction: Text | None = Field(None, description="Rejected: set it with `tsarank serve --instruction`.")


class CohereRequest(_DocumentsRequest):
    """`/v2/rerank` (Cohere)."""

    max_tokens_per_doc: int | None = Field(None, ge=1, description="Truncate longer documents to so many tokens.")


class TeiRequest(_Request):
    """`/rerank` with `texts` (Text Embeddings Inference)."""

    texts: list[Text] = Field(min_length=1)
    raw_scores: StrictBool = Field(False, description="The model's scores; otherwise their sigmoid.")
    return_text: StrictBool = False
    truncate: StrictBool = Field(True, description="If false, pairs that are too long are rejected with 413.")


AnyRequest = JinaRequest | CohereRequest | TeiRequest


def _api_of(value: Any) -> str | None:
    if isinstance(value, JinaRequest | TeiRequest):
        return "texts" if isinstance(value, TeiRequest) else "documents"
    given = {"documents", "texts"} & set(without_nulls(value)) if isinstance(value, dict) else set()
    return given.pop() if len(given) == 1 else None


JinaOrTeiRequest = Annotated[
    Annotated[JinaRequest, Tag("documents")] | Annotated[TeiRequest, Tag("texts")],
    Discriminator(
        _api_of,
        custom_error_type="documents_or_texts",
        custom_error_message="send either documents (Jina's API) or texts (TEI's)",
    ),
]


class Upload(_Given):
    """`/v1/documents`: documents to encode ahead of any query."""

    model: str | None = None
    documents: list[Annotated[UploadedDocument, BeforeValidator(_as_document)]] = Field(min_length=1)


class UploadedDocument(_Given):
    """A document for later requests by id."""

    id: Text = Field(min_length=1)
    text: Text
    title: Text = ""


class BestPassage(BaseModel):
    """The best passage of a document scored by passages: `text[start:end]` of the document."""

    start: int
    end: int
    text: str


class CohereResult(BaseModel):
    """One document; higher is more relevant. Scores order the documents of one query only."""

    index: int
    relevance_score: float
    passage: BestPassage | None = None


class JinaResult(CohereResult):
    """One document, with its text if requested."""

    document: dict[str, str] | None = None


class Usage(BaseModel):
    """Tokens of all prompts of a request."""

    total_tokens: int


class JinaResponse(BaseModel):
    """Best first."""

    model_config = ConfigDict(protected_namespaces=())
    id: str
    model: str
    usage: Usage
    results: list[JinaResult]


class CohereResponse(BaseModel):
    """Best first."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


class TeiResult(BaseModel):
    """One text."""

    index: int
    score: float
    text: str | None = None
    passage: BestPassage | None = None


class UploadResponse(BaseModel):
    """The result of an upload."""

    documents: int
    encoded: int = Field(description="Documents whose states were computed; others were cached, or cannot be.")
