"""What messages call the model that an adapter was made for, or a quantized model was made from."""

from __future__ import annotations

from pathlib import PurePath

__all__ = ["base_name"]


def base_name(base_model: str | None) -> str | None:
    """A Hub id or a relative path as it is, and the last part of an absolute path.

    What has this name may go to a client of a server, who need not know the server's directories.
    """
    if base_model is None or not base_model.startswith(("/", "~")):
        return base_model
    return PurePath(base_model).name
