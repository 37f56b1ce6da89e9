"""The routes /v1/completions and /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ryzjax.errors import RequestError
from ryzjax.serving.http.answer import AnswerFormat, answer_size, usage_of
from ryzjax.serving.http.context import ServerContext, context_of, request_id_of
from ryzjax.serving.http.disconnect import until_disconnect
from ryzjax.serving.http.generation import Generation
from ryzjax.serving.http.openai.chat_answer import ChatFormat
from ryzjax.serving.http.openai.completion_answer import CompletionFormat
from ryzjax.serving.http.openai.echo import Echo
from ryzjax.serving.http.openai.fields import GenerationRequest
from ryzjax.serving.http.openai.protocol import ChatCompletionRequest, CompletionRequest
from ryzjax.serving.http.pieces import json_response
from ryzjax.serving.http.prompts import decode_prompts, encode_messages, encode_prompts
from ryzjax.serving.http.sse import EventStream
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["GENERATION_PATHS", "router"]

GENERATION_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    """Completes one or more prompts."""
    context = context_of(request)
    body = await context.read(request, CompletionRequest)
    adapter = context.adapter_of(body.model)
    params = body.sampling_params(context.engine.default_sampling)
    prompts = body.prompts()
    _check_size(context, len(prompts), params)
    encoding = encode_prompts(context, prompts, field="prompt", add_special_tokens=body.add_special_tokens is not False)
    token_ids = await until_disconnect(request.receive, encoding)
    generation = Generation(context.engine, token_ids, params, kind="cmpl", prompt_field="prompt", adapter=adapter)
    echo = None
    if body.echo:
        decoding = decode_prompts(context, prompts, skip_special_tokens=params.skip_special_tokens)
        texts = await until_disconnect(request.receive, decoding)
        firsts = [ids[0] for ids in token_ids]
        echo = Echo(texts=texts, first_token_ids=firsts, n=params.n, with_logprobs=body.logprobs is not None)
    answer = CompletionFormat(
        answer_id=generation.id,
        model=body.model,
        texts=context.token_texts,
        include_usage=body.include_usage,
        skip_special_tokens=params.skip_special_tokens,
        echo=echo,
    )
    return await _answer(request, body, generation, answer)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answers a conversation."""
    context = context_of(request)
    body = await context.read(request, ChatCompletionRequest)
    adapter = context.adapter_of(body.model)
    params = body.sampling_params(context.engine.default_sampling)
    messages = body.template_messages()
    _check_size(context, 1, params)
    encoding = encode_messages(context, messages, add_generation_prompt=body.add_generation_prompt is not False)
    token_ids = await until_disconnect(request.receive, encoding)
    generation = Generation(
        context.engine, [token_ids], params, kind="chatcmpl", prompt_field="messages", adapter=adapter
    )
    answer = ChatFormat(
        answer_id=generation.id,
        model=body.model,
        texts=context.token_texts,
        include_usage=body.include_usage,
    )
    return await _answer(request, body, generation, answer)


def _check_size(context: ServerContext, prompts: int, params: SamplingParams) -> None:
    config = context.config
    if prompts > config.max_prompts_per_request:
        raise RequestError(
            f"prompt has {prompts} prompts; at most {config.max_prompts_per_request} are taken in one request",
            param="prompt",
        )
    limit = context.max_sequences_per_request
    if prompts * params.n > limit:
        raise RequestError(
            f"{prompts} prompts with n={params.n} are {prompts * params.n} sequences; this server takes at most "
            f"{limit} in one request (max_sequences_per_request); send several requests",
            param="n" if params.n > 1 else "prompt",
        )


async def _answer(request: Request, body: GenerationRequest, generation: Generation, answer: AnswerFormat) -> Response:
    context = context_of(request)
    workers = context.workers
    context.limits.check_logprobs(generation.num_logprobs(is_streamed=bool(body.stream)))
    if body.stream:
        return EventStream(
            generation,
            answer,
            include_usage=body.include_usage,
            request_id=request_id_of(request),
            workers=workers,
        )
    choices = await until_disconnect(request.receive, generation.collect())
    completion_tokens = sum(len(choice.completion.token_ids) for choice in choices)
    usage = usage_of(generation.prompt_tokens, completion_tokens)
    size = answer_size(choices) + len(choices) * answer.opening_size
    return json_response(answer.pieces(choices, usage), size=size, workers=workers)
