"""The sampling settings that a model's authors recommend, which are the defaults of requests that name none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict, cast

from ryzjax.errors import ConfigError, RequestError
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["SamplingDefaults", "sampling_defaults"]


class SamplingDefaults(TypedDict, total=False):
    """The settings of `SamplingParams` that a generation_config.json may give."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


def sampling_defaults(generation: Mapping[str, object], *, source: str) -> SamplingDefaults:
    """Returns the settings in a generation_config.json. `do_sample: false` gives a temperature of 0.

    Args:
      generation: The parsed file.
      source: The name of the model, for error messages.

    Raises:
      ConfigError: A value has the wrong type or is out of range.
    """
    do_sample = generation.get("do_sample")
    found = {name: value for name in SamplingDefaults.__annotations__ if (value := generation.get(name)) is not None}
    try:
        if do_sample not in (None, True, False):
            raise RequestError(f"do_sample={do_sample!r}; expected true or false", param="do_sample")
        SamplingParams(**found)  # pyright: ignore[reportArgumentType]  # it checks each value itself
    except RequestError as error:
        raise ConfigError(
            f"generation_config.json of {source}: {error}; correct the file, or ignore its sampling settings with "
            "--generation-config none"
        ) from error
    if do_sample is False:
        # The filters have no meaning then, and a request that names a temperature gets plain sampling.
        kept = {name: value for name, value in found.items() if name == "repetition_penalty"}
        found = {"temperature": 0.0, **kept}
    return cast("SamplingDefaults", found)
