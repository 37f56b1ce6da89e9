"""Mesh, logical-axis rules and placement: sharding is data, models only name their axes."""

from ryzjax.sharding.layout import Layout
from ryzjax.sharding.placement import Placement

__all__ = ["Layout", "Placement"]
