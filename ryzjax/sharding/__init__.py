"""Sharding as data: layouts of logical axes over a mesh, and their placement on devices. Models only name axes."""

from ryzjax.sharding.layout import Layout
from ryzjax.sharding.placement import Placement

__all__ = ["Layout", "Placement"]
