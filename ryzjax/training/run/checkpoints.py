"""RunCheckpoints: the latest checkpoints of a run and its best one. A resumed run continues bit for bit.

    <folder>/<step>/arrays      trained arrays, optimizer state, random keys: every array as it is in memory
    <folder>/<step>/run         JSON: state of the data, config, fingerprint of the base, shape and dtype of each array

Orbax writes them in the background (https://orbax.readthedocs.io), under a temporary name that it changes at the end,
so that a checkpoint is either complete or absent. Older checkpoints are removed once a new one is complete.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast

import jax

from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.training.run.checkpoint_arrays import ArrayShapes, arrays_by_name, check_arrays, shapes_of
from ryzjax.training.run.json_value import Json
from ryzjax.training.run.orbax_errors import ORBAX_FAILURES, failure_reason, hide_orbax_tracebacks

if TYPE_CHECKING:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

__all__ = ["RunCheckpoints"]

_log = logging.getLogger(__name__)

Tree = TypeVar("Tree")
_ARRAYS, _RUN = "arrays", "run"


class RunCheckpoints:
    """The checkpoints of one run.

    Orbax and its threads start with the first checkpoint, so a run that fails earlier never starts them.

    Args:
      folder: Folder of this run's checkpoints. Created if missing. Half-written checkpoints of a killed run are
        removed.
      fingerprint: Fingerprint of the frozen base, see `base_fingerprint`; "" if nothing is frozen.
      keep: Number of latest checkpoints to keep, at least 1.
      keep_best: Also keep the checkpoint with the lowest `eval_loss`.

    Raises:
      ConfigError: `keep` is below 1.
      CheckpointError: The folder cannot be created or read.
    """

    def __init__(self, folder: Path, *, fingerprint: str, keep: int = 3, keep_best: bool = True):
        if keep < 1:
            raise ConfigError(f"keep={keep}; expected at least 1 checkpoint, the latest")
        self.folder = folder.resolve()
        self._fingerprint = fingerprint
        self._keep, self._keep_best = keep, keep_best
        self._eval_losses: dict[int, float | None] = {}
        self._saving: int | None = None
        self._opened: ocp.CheckpointManager | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            has_checkpoints = any(self.folder.iterdir())
        except OSError as error:
            raise self._unusable(error) from error
        if has_checkpoints:
            self._manager()

    def _manager(self) -> ocp.CheckpointManager:
        """Returns Orbax's manager of the folder."""
        if self._opened is None:
            # Imported here because it takes a second.
            import orbax.checkpoint as ocp

            hide_orbax_tracebacks()
            options = ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True)
            handlers = {_ARRAYS: ocp.StandardCheckpointHandler(), _RUN: ocp.JsonCheckpointHandler()}
            try:
                self._opened = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
            except ORBAX_FAILURES as error:
                raise CheckpointError(
                    f"{self.folder}: cannot be used for checkpoints ({failure_reason(error)})"
                ) from error
        return self._opened

    def _unusable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.folder}: cannot be used for checkpoints ({failure_reason(error)})")

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in ascending order."""
        if self._opened is None:
            return []
        return sorted(step for step in self._opened.all_steps() if step != self._saving)

    def latest_step(self) -> int | None:
        """Returns the step of the latest complete checkpoint; None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step with the lowest evaluation loss; None if no checkpoint was evaluated."""
        return self._best(self.steps())

    def eval_loss(self, step: int) -> float | None:
        """Returns the evaluation loss that a checkpoint was saved with; None if it was not evaluated.

        Raises:
          CheckpointError: The checkpoint does not exist or is damaged.
        """
        if step not in self._eval_losses:
            self._eval_losses[step] = cast("float | None", self._run(step)["eval_loss"])
        return self._eval_losses[step]

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Tells Orbax which checkpoints to keep, including the one that is being written."""
        del context
        steps = [int(checkpoint.step) for checkpoint in checkpoints]
        kept = {*steps[-self._keep :], *([self._best(steps)] if self._keep_best else [])}
        return [step in kept for step in steps]

    def save(self, step: int, arrays: object, state: Mapping[str, Json], *, eval_loss: float | None = None) -> None:
        """Saves in the background, after a wait for the previous save.

        The arrays have been copied when this returns, so they may be donated at once.

        Args:
          step: Updates done. Higher than the step of the latest checkpoint.
          arrays: A pytree of arrays: what is trained, the optimizer's state, random keys as raw uint32.
          state: Everything else that a resumed run needs, as JSON: state of the batch loader, config, best loss so far.
          eval_loss: Evaluation loss of this step; None if it was not evaluated.

        Raises:
          CheckpointError: This save or the previous one cannot be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        named = arrays_by_name(arrays)
        ranked = eval_loss is not None and math.isfinite(eval_loss)
        self._eval_losses[step] = eval_loss if ranked else None
        run = {
            "fingerprint": self._fingerprint,
            "eval_loss": self._eval_losses[step],
            "state": dict(state),
            "leaves": shapes_of(named),
        }
        args = ocp.args.Composite(**{_ARRAYS: ocp.args.StandardSave(named), _RUN: ocp.args.JsonSave(run)})
        manager = self._manager()
        self._saving = step
        try:
            manager.save(step, args=args, force=True)
        except ORBAX_FAILURES as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          CheckpointError: It cannot be written. The checkpoints before it are intact.
        """
        if self._saving is None:
            return
        try:
            self._manager().wait_until_finished()
            self._manager().check_for_errors()
        except ORBAX_FAILURES as error:
            raise self._failed(error) from error
        self._saving = None

    def read_state(self, step: int) -> dict[str, Json]:
        """Returns the `state` that a checkpoint was saved with.

        Raises:
          CheckpointError: The checkpoint does not exist, is damaged, or belongs to another base model.
        """
        run = self._run(step)
        self._check_base(step, run)
        return cast("dict[str, Json]", run["state"])

    def restore(self, step: int, like: Tree) -> Tree:
        """Returns the arrays of a checkpoint.

        Args:
          step: One of `steps`.
          like: A pytree of arrays or `jax.ShapeDtypeStruct`s. The result has its structure and shardings.

        Raises:
          CheckpointError: The checkpoint does not exist, is damaged, or belongs to another model. The message names the
            first array that differs.
        """
        import orbax.checkpoint as ocp

        run, wanted = self._run(step), arrays_by_name(like)
        self._check_base(step, run)
        check_arrays(str(self.folder), cast("ArrayShapes", run["leaves"]), wanted, step=step)
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in wanted.items()
        }
        restored = self._read(step, ocp.args.Composite(**{_ARRAYS: ocp.args.StandardRestore(target)}))[_ARRAYS]
        leaves = cast("dict[str, jax.Array]", restored)
        return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in wanted])

    def close(self) -> None:
        """Waits for the last save and closes Orbax.

        Raises:
          CheckpointError: The last save cannot be written.
        """
        try:
            self.wait()
        finally:
            if self._opened is not None:
                self._opened.close()

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        try:
            self.close()
        except CheckpointError as failed:
            if error is None:
                raise
            # The error that is being raised came first and says more.
            _log.error("%s", failed)

    def _best(self, steps: Sequence[int]) -> int | None:
        losses = {step: loss for step in steps if (loss := self.eval_loss(step)) is not None}
        return min(losses, key=losses.__getitem__, default=None)

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._saving = self._saving, None
        self._eval_losses.clear()
        for unfinished in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        self._manager().reload()
        left = self.latest_step()
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} cannot be written ({failure_reason(error)}); check the disk "
            "space and permissions" + ("" if left is None else f". The checkpoint of step {left} is intact")
        )

    def _run(self, step: int) -> dict[str, Json]:
        import orbax.checkpoint as ocp

        if step not in self.steps():
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; it has {self.steps()}")
        return cast("dict[str, Json]", self._read(step, ocp.args.Composite(**{_RUN: ocp.args.JsonRestore()}))[_RUN])

    def _check_base(self, step: int, run: Mapping[str, Json]) -> None:
        if run["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"{self.folder}: step {step} was trained over base model {run['fingerprint']!r}; this one is "
                f"{self._fingerprint!r}. Name the same model and quantization, or start a new run in another folder"
            )

    def _read(self, step: int, args: ocp.args.Composite) -> Mapping[str, object]:
        try:
            return cast("Mapping[str, object]", self._manager().restore(step, args=args))
        except ORBAX_FAILURES as error:
            others = [other for other in self.steps() if other != step]
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be read ({failure_reason(error)}); other checkpoints: {others}"
            ) from error
