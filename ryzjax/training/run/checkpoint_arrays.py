"""The arrays of a checkpoint, by name: their shapes and dtypes, and the check that they fit a run."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from ryzjax.errors import CheckpointError
from ryzjax.training.optimizers.parameter_groups import parameter_name

__all__ = ["ArrayShapes", "arrays_by_name", "check_arrays", "shapes_of"]

ArrayShapes = Mapping[str, tuple[list[int], str]]
"""Name -> (shape, dtype) of each array, as a checkpoint's JSON holds them."""


def arrays_by_name(tree: object) -> dict[str, jax.Array]:
    """Returns the leaves of a pytree by the names of their key paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {parameter_name(path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two arrays of a run have one name"
    assert not any(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in named.values()), "typed keys"
    return named


def shapes_of(arrays: Mapping[str, jax.Array]) -> dict[str, list[list[int] | str]]:
    """Returns the shape and dtype of each array, as JSON."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in arrays.items()}


def check_arrays(where: str, saved: ArrayShapes, wanted: Mapping[str, jax.Array], *, step: int) -> None:
    """Checks that a checkpoint holds the arrays of a run, in their shapes and dtypes.

    Args:
      where: Folder of the checkpoints, for the message.
      saved: The checkpoint's arrays.
      wanted: The run's arrays, or `jax.ShapeDtypeStruct`s.
      step: Step of the checkpoint, for the message.

    Raises:
      CheckpointError: They differ. The message names the first array that does.
    """
    for name in [*wanted, *saved]:
        array = f"{where}: array {name!r} of step {step}"
        remedy = "resume with the model and settings of that run, or start a new one in another folder"
        if name not in saved:
            raise CheckpointError(f"{array} is missing, but this run needs it: {remedy}")
        if name not in wanted:
            raise CheckpointError(f"{array} does not exist in this run: {remedy}")
        shape, dtype = saved[name]
        if (shape, dtype) != (list(wanted[name].shape), str(wanted[name].dtype)):
            raise CheckpointError(
                f"{array} is {dtype}{shape}; expected {wanted[name].dtype}{list(wanted[name].shape)}: {remedy}"
            )
