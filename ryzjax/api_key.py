"""The API key of a server, from a flag or from the environment: flags show in `ps`."""

from __future__ import annotations

import os

from ryzjax.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "api_key_or_environment"]

API_KEY_VARIABLE = "RYZJAX_API_KEY"


def api_key_or_environment(api_key: str | None) -> str | None:
    """The key of a flag or a TOML file, or else of the environment; None where there is none.

    Raises:
      ConfigError: the variable is set and empty, which is more likely a mistake than a wish for an open server.
    """
    if api_key is not None:
        return api_key
    found = os.environ.get(API_KEY_VARIABLE)
    if found == "":
        raise ConfigError(f"{API_KEY_VARIABLE} is set and empty; give it a key, or unset it for no key")
    return found
