"""How a run reads its rows: settings to arguments of the loader."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.data import loader, shared
from saejax.data import mix as mixes
from saejax.data.batches import StoreBatches
from saejax.data.mix import Mix
from saejax.data.online import OnlineRows
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals import reconstruction
from saejax.sae import prep as preps
from saejax.training import sharding
from saejax.training.config import TrainConfig

Rows = Store | Mix | OnlineRows


def batches(
  rows: Sequence[Rows], train: TrainConfig
) -> Sequence[StoreBatches | shared.Reader]:
  """Returns the batches of several runs.

  Args:
    rows: those of each run; of one origin where they are computed.
    train: settings of training.
  """
  online = [one for one in rows if isinstance(one, OnlineRows)]
  if online:
    return shared.readers(online, batch_rows=train.batch_rows, seed=train.seed)
  given = order(train) | part(train)
  return [StoreBatches(one, **given) for one in rows]


def steps(rows: Rows, train: TrainConfig) -> int:
  """Returns the number of batches of a run.

  Args:
    rows: what is trained on; those of rows that are computed are counted before
      some are dropped by their values, and the next epoch has those missing.
    train: settings of training.
  """
  if train.steps is not None:
    return train.steps
  if isinstance(rows, OnlineRows):
    return train.total_steps(rows.rows)
  return loader.count_batches(rows, **order(train))


def order(train: TrainConfig) -> dict[str, Any]:
  """Returns the arguments of the loader that fix the order of rows.

  Args:
    train: settings of training.
  """
  return {
    "batch_rows": train.batch_rows,
    "seed": train.seed,
    "epochs": train.epochs if train.steps is None else None,
    "window_chunks": train.window_chunks,
    "lanes": train.lanes,
  }


def part(train: TrainConfig) -> dict[str, int]:
  """Returns those that say which part of a batch this process reads.

  Args:
    train: settings of training.
  """
  mesh = sharding.make_mesh(train.mesh, first=train.first_device)
  return sharding.rows_part(mesh, train.batch_rows)


def check(store: Store | Mix, train: TrainConfig) -> None:
  """Checks that the loader can give the batches of a run; reads nothing.

  Args:
    store: the store or mix.
    train: settings of training.

  Raises:
    InputError: see `loader.batches`.
  """
  given = order(train)
  try:
    loader.batches(store, **given, **part(train))
  except InputError as error:
    if error.field in given:
      raise error.renamed(f"train.{error.field}") from error
    raise


def mean(prep: preps.Prep, store: Rows) -> np.ndarray:
  """Returns the mean of the training rows in the frame of a prep, float32.

  Args:
    prep: the prep.
    store: the rows.
  """
  parts = mixes.parts(store)
  means = [reconstruction.frame_mean(prep, one) for one, _ in parts]
  weights = [weight for _, weight in parts]
  return np.average(means, axis=0, weights=weights).astype(np.float32)
