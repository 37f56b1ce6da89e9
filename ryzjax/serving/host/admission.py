"""check_request: refuses requests that could never run."""

from __future__ import annotations

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.messages.request import EngineRequest

__all__ = ["check_request"]


def check_request(request: EngineRequest, *, max_context_tokens: int) -> None:
    """Refuses a request that could never run.

    Raises:
      RequestError: the prompt is empty, or the request asks for nothing.
      ContextLengthError: the prompt and one token after it do not fit the context.
    """
    prompt_len = len(request.prompt_token_ids)
    if not prompt_len:
        raise RequestError("the prompt has no token; expected at least 1", param="prompt")
    fewest = 0 if request.prompt_logprobs is not None or request.pooling is not None else 1
    if request.max_new_tokens < fewest:
        raise RequestError(
            f"max_new_tokens={request.max_new_tokens} is out of range; expected at least {fewest}",
            param="max_tokens",
        )
    if request.pooling is not None and request.max_new_tokens:
        raise RequestError(
            f"max_new_tokens={request.max_new_tokens} with pooling={request.pooling!r}; expected 0, because an "
            "embedding generates nothing",
            param="max_tokens",
        )
    new_tokens = min(request.max_new_tokens, 1)
    if prompt_len + new_tokens > max_context_tokens:
        raise ContextLengthError.of_prompt(prompt_len, max_context_tokens, new_tokens=new_tokens)
