"""POST /v1/embeddings."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from ryzjax.errors import RequestError
from ryzjax.serving.http.context import context_of
from ryzjax.serving.http.disconnect import until_disconnect
from ryzjax.serving.http.embeddings import EmbeddingRequest, Embeddings, embeddings_body
from ryzjax.serving.http.generation import encode_prompts

__all__ = ["EMBEDDING_PATHS", "router"]

EMBEDDING_PATHS = frozenset({"/v1/embeddings"})

router = APIRouter()


@router.post("/v1/embeddings")
async def embeddings(request: Request) -> Response:
    """A vector for each input."""
    context = context_of(request)
    body = EmbeddingRequest.parse(await request.body())
    adapter = context.adapter_of(body.model)
    inputs = body.inputs()
    if len(inputs) > context.config.max_inputs_per_request:
        raise RequestError(
            f"input has {len(inputs)} inputs; at most {context.config.max_inputs_per_request} are taken in one "
            "request; send several",
            param="input",
        )
    add_special_tokens = body.add_special_tokens is not False
    encode = partial(encode_prompts, context.engine.tokenizer, inputs, add_special_tokens=add_special_tokens)
    token_ids = await until_disconnect(request.receive, context.tokenize(encode))
    running = Embeddings(
        context.engine, token_ids, body, concurrency=context.config.max_prompts_per_request, adapter=adapter
    )
    vectors = await until_disconnect(request.receive, running.collect())
    answer = embeddings_body(
        vectors,
        model=body.model,
        prompt_tokens=running.prompt_tokens,
        encoding_format=body.encoding_format or "float",
    )
    return Response(answer, media_type="application/json")
