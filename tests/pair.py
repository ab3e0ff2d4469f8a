"""A program of two processes, which refuse together, fit, and train until killed.

  python experiments/launch_local.py --processes=2 --devices=2 -- tests/pair.py ...

The flags are those of `saejax train`. Each process prints what it found. What they
write lies beside the run folder.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import saejax
from saejax import config, processes
from saejax.data import loader
from saejax.data.store import reader
from saejax.runs import folder
from saejax.studies import train
from saejax.training import sharding

MESH, BATCH = (1, 2, 2), 48
FIT = {"n": 16, "k": 2, "steps": 20, "batch_rows": 32}
FIT |= {"progress": False, "native": False}


def rows() -> np.ndarray:
  """What is fitted."""
  draw = np.random.default_rng(0)
  return draw.normal(size=(800, 8)).astype(np.float32)


def main(settings: Any) -> None:
  base = pathlib.Path(settings.run_dir).parent
  with processes.started(settings):
    index = jax.process_index()
    sae, metrics = saejax.fit(rows(), "batchtopk", mesh=MESH, **FIT)
    if index == 0:
      saejax.save(sae, base / "two")
    # `started` would start jax.distributed a second time.
    with mock.patch.object(processes, "_initialized", lambda _: True):
      found = {
        "fvu": metrics.fvu,
        "result": processes.first(lambda: 7),
        "batches": list(batches(base / "order", index)),
        **refusals(settings, base, index),
      }
      print("found", json.dumps({"index": index, **found}), flush=True)
      train.main(settings)


def refused(work: Callable[[], Any]) -> str | None:
  """What an error says; None without one."""
  try:
    work()
  except saejax.InputError as error:
    return str(error)
  return None


def refusals(
  settings: Any, base: pathlib.Path, index: int
) -> dict[str, str | None]:
  """What is refused where processes differ, and where sizes do not fit."""
  other = dataclasses.replace(settings, run_dir=str(base / "other"))
  seed = dataclasses.replace(settings.train, seed=index)

  def fail():
    raise saejax.InputError("run_dir", "x", "is in use", "wait")

  def code():
    with mock.patch.object(processes, "code", lambda: {"jax": str(index)}):
      train.main(other)

  def store():
    contents = {"store": str(index)}
    with folder.opened(other.run_dir, other, stores=contents):
      pass

  fit = lambda x=rows(), **more: saejax.fit(
    x, "batchtopk", **{"mesh": MESH, **FIT, **more}
  )
  shown = base / "shown"
  works = {
    "first": lambda: processes.first(fail),
    "agree": lambda: processes.agree({"a": {"b": 1, "c": index}}),
    "flags": lambda: train.main(dataclasses.replace(other, train=seed)),
    "code": code,
    "store": store,
    "shared": lambda: processes.check_shared(base / "own" / str(index)),
    "same": lambda: processes.check_shared(shown),
    "rows": lambda: fit(rows() + index, run_dir=shown),
    "mesh": lambda: fit(mesh=(1, 2, 1)),
    "batch": lambda: fit(mesh=(1, 4, 1), batch_rows=30),
  }
  return {name: refused(work) for name, work in works.items()}


def batches(path: pathlib.Path, index: int) -> Iterator[float]:
  """A sum over each batch of a store that depends on the order of its rows."""
  mesh = sharding.make_mesh((1, 4, 1))
  part = sharding.rows_part(mesh, BATCH)
  assert part == {"process_index": index, "process_count": 2}, part
  whole = sharding.rows_part(sharding.make_mesh((2, 1, 2)), BATCH)
  assert whole == {"process_index": 0, "process_count": 1}, whole
  ranked = jax.jit(lambda x: (x[:, 0] * jnp.arange(BATCH)).sum())
  store = reader.open(path)
  for batch in loader.batches(store, batch_rows=BATCH, seed=0, **part):
    x = sharding.put(mesh, {"x": batch["x"]}, 2)["x"]
    assert x.shape == (BATCH, 4) and not x.is_fully_addressable
    assert x.addressable_shards[0].data.shape == (BATCH // 4, 4)
    yield float(ranked(x))


if __name__ == "__main__":
  config.run(main, train.Config)
