"""The API key of a server, from a flag or from the environment. Other users see flags in `ps`."""

from __future__ import annotations

import os

from ryzjax.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "api_key_or_environment"]

API_KEY_VARIABLE = "RYZJAX_API_KEY"


def api_key_or_environment(api_key: str | None) -> str | None:
    """Returns the key of a flag or TOML file or, without one, of the environment; None if there is no key.

    Raises:
      ConfigError: the variable is set but empty, which is more likely a mistake than a request for an open server.
    """
    if api_key is not None:
        return api_key
    found = os.environ.get(API_KEY_VARIABLE)
    if found == "":
        raise ConfigError(f"{API_KEY_VARIABLE} is set but empty; give it a key, or unset it to use no key")
    return found
