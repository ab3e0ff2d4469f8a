"""One recipe trained in a folder of its own, exactly resumable."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

from saejax.data.batches import Batches
from saejax.sae.sae import SAE
from saejax.training import loop
from saejax.training.members import Member
from saejax.training.recipe import Recipe


def train(
  recipe: Recipe,
  members: Sequence[Member],
  batches: Batches,
  *,
  run_dir: str | os.PathLike[str],
  steps: int,
  batch_rows: int,
  mesh: tuple[int, int, int],
  progress: bool,
  identity: Mapping[str, Any],
) -> SAE:
  """The inference form of one member, trained with checkpoints.

  Args:
    recipe: the method.
    members: the one member.
    batches: at their start; the position is restored where the run is resumed.
    run_dir: for checkpoints, metrics and event files.
    steps: batches.
    batch_rows: rows per batch.
    mesh: devices: ensemble, data, latent.
    progress: whether progress lines are shown.
    identity: what must be equal where the folder holds a run, JSON-able.

  Raises:
    InputError: the folder holds another run, or cannot be written.
    FloatingPointError: rows or the loss became not finite.
  """
  coupled = recipe.coupling is not None
  config = loop.TrainConfig(
    batch_rows=batch_rows,
    mesh=mesh,
    members="stacked" if coupled else "auto",
    warmup_steps=0,
  )
  try:
    (trained,) = loop.train(
      lambda: recipe,
      members,
      batches,
      config=config,
      folder=run_dir,
      total_steps=steps,
      fingerprint=dict(identity),
      stream=None if progress else io.StringIO(),
    )
  except loop.NonFiniteError as error:
    raise FloatingPointError(str(error)) from error
  finally:
    getattr(batches, "close", lambda: None)()
  if trained.status != "ok":
    raise FloatingPointError(f"{trained.status}: lower learning_rate")
  return trained.sae
