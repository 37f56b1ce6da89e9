"""The route /v1/embeddings."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ryzjax.serving.http.context import context_of
from ryzjax.serving.http.disconnect import until_disconnect
from ryzjax.serving.http.openai.embeddings import TOO_LONG_REMEDY, EmbeddingRequest, Embeddings, embeddings_pieces
from ryzjax.serving.http.pieces import json_response
from ryzjax.serving.http.prompts import encode_prompts

__all__ = ["EMBEDDING_PATHS", "router"]

EMBEDDING_PATHS = frozenset({"/v1/embeddings"})

_CHARS_PER_NUMBER = 20

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """Answers with a vector for each input."""
    context = context_of(request)
    body = await context.read(request, EmbeddingRequest)
    adapter = context.adapter_of(body.model)
    encoding = encode_prompts(
        context,
        body.inputs(),
        field="input",
        add_special_tokens=body.add_special_tokens is not False,
        remedy=TOO_LONG_REMEDY,
    )
    token_ids = await until_disconnect(request.receive, encoding)
    concurrency = min(context.config.max_prompts_per_request, context.max_sequences_per_request)
    running = Embeddings(context.engine, token_ids, body, concurrency=concurrency, adapter=adapter)
    vectors = await until_disconnect(request.receive, running.collect())
    answer = embeddings_pieces(
        vectors,
        model=body.model,
        prompt_tokens=running.prompt_tokens,
        encoding_format=body.encoding_format or "float",
    )
    size = _CHARS_PER_NUMBER * sum(vector.size for vector in vectors)
    return json_response(answer, size=size, workers=context.workers)
