"""base_name: the name, for messages, of the model that an adapter or a quantized model was made from."""

from __future__ import annotations

from pathlib import PurePath

__all__ = ["base_name"]


def base_name(base_model: str | None) -> str | None:
    """Returns a Hub id or a relative path unchanged, and the last part of an absolute path.

    Messages with this name may be sent to clients of a server, which should not learn the server's directories.
    """
    if base_model is None or not base_model.startswith(("/", "~")):
        return base_model
    return PurePath(base_model).name
