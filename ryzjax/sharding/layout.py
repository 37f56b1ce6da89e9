"""Layout: mesh axes and the rules from logical to mesh axes, as a TOML file or as this dataclass."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ryzjax.errors import LayoutError
from ryzjax.shipped import shipped_path

__all__ = ["LOGICAL_AXES", "Layout"]

ExpertExchange = Literal["all_gather", "all_to_all"]

LOGICAL_AXES = {
    "vocab": "rows of the embedding table and of the head; logits",
    "embed": "the hidden dimension of weights",
    "heads": "query heads",
    "kv_heads": "key/value heads, of weights and of the KV cache",
    "ffn": "the inner dimension of the MLP",
    "experts": "experts of a mixture-of-experts layer",
    "expert_ffn": "the inner dimension of one expert",
    "tokens": "tokens of a step, in activations",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The distribution of a model over devices.

    Attributes:
      name: the name in messages and in `ryzjax info`.
      mesh: the number of devices along each mesh axis. At most one may be -1, which means all remaining devices.
      rules: the mesh axis of each logical axis. A logical axis without a rule is replicated.
      expert_exchange: how tokens and experts that are split over the same devices meet: "all_gather" or "all_to_all"
        (`layers.expert_exchange`). In a file it is `exchange` of the table [experts].
    """

    name: str
    mesh: Mapping[str, int]
    rules: Mapping[str, str] = field(default_factory=dict)
    expert_exchange: ExpertExchange = "all_gather"

    def __post_init__(self) -> None:
        if self.expert_exchange not in get_args(ExpertExchange):
            raise LayoutError(
                f"layout {self.name!r}: [experts] exchange is {self.expert_exchange!r}; expected one of "
                f"{', '.join(get_args(ExpertExchange))}"
            )
        for axis, size in self.mesh.items():
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise LayoutError(f"layout {self.name!r}: mesh axis {axis}={size!r}; expected a positive size or -1")
        if not self.mesh:
            raise LayoutError(f"layout {self.name!r} has no mesh axes; name at least one in [mesh]")
        if sum(size == -1 for size in self.mesh.values()) > 1:
            raise LayoutError(f"layout {self.name!r}: only one mesh axis may be -1, got {dict(self.mesh)}")
        for logical, axis in self.rules.items():
            if logical not in LOGICAL_AXES:
                known = ", ".join(sorted(LOGICAL_AXES))
                raise LayoutError(f"layout {self.name!r}: unknown logical axis {logical!r} in [rules]; known: {known}")
            if axis not in self.mesh:
                raise LayoutError(
                    f"layout {self.name!r}: rule {logical} = {axis!r} names no mesh axis; "
                    f"[mesh] has {sorted(self.mesh)}"
                )

    @classmethod
    def load(cls, name_or_path: str) -> Layout:
        """Loads a shipped layout by name, such as "tp", or a TOML file by path."""
        path = Path(name_or_path)
        if path.suffix != ".toml":
            path = shipped_path(f"sharding/{name_or_path}.toml")
        if not path.is_file():
            names = sorted(p.stem for p in shipped_path("sharding").glob("*.toml"))
            raise LayoutError(f"layout {name_or_path!r} not found; expected one of {names} or the path of a TOML file")
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise LayoutError(f"layout file {path} is not valid TOML: {error}") from error
        experts = raw.get("experts", {})
        unknown = sorted(set(raw) - {"mesh", "rules", "experts"}) + sorted(set(experts) - {"exchange"})
        if unknown:
            raise LayoutError(
                f"layout file {path}: unknown {unknown}; expected [mesh], [rules] and [experts] with `exchange`"
            )
        return cls(
            name=path.stem,
            mesh=raw.get("mesh", {}),
            rules=raw.get("rules", {}),
            expert_exchange=experts.get("exchange", "all_gather"),
        )

    def resolve(self, num_devices: int) -> Layout:
        """Returns the layout with -1 replaced for `num_devices` devices."""
        fixed = 1
        for size in self.mesh.values():
            fixed *= size if size != -1 else 1
        wild = [axis for axis, size in self.mesh.items() if size == -1]
        if num_devices < fixed or (wild and num_devices % fixed):
            raise LayoutError(
                f"layout {self.name!r} needs {'a multiple of ' if wild else ''}{fixed} devices, there are "
                f"{num_devices}; change [mesh] {dict(self.mesh)} or the number of devices"
            )
        sizes = {axis: (num_devices // fixed if size == -1 else size) for axis, size in self.mesh.items()}
        return replace(self, mesh=sizes)
