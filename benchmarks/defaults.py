"""Held-out error of TopK as each setting of training departs from its default.

  python benchmarks/defaults.py --rows=train.npy --held_out=held.npy \
    --site="MiniLM layer 3" --write=benchmarks/results/defaults.json

One pass over the rows, in the order of the file, for the defaults of
`TrainConfig` and for each other value of one setting at a time. FVU and dead
latents are of held-out rows. The defaults were chosen by tables like this one.
"""

import dataclasses
import functools
import io
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import saejax
from saejax import config as flags
from saejax import durable, machine
from saejax.data.batches import IteratorBatches
from saejax.recipes import common, row_sparse
from saejax.runs import inputs
from saejax.sae import prep as preps
from saejax.training import loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member

B2 = "b2"  # of Adam; not a setting of TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
  """What is trained on, and the size of the SAE."""

  rows: str  # .npy with training rows [rows, d], in the order of training
  held_out: str  # .npy with held-out rows
  site: str  # name of the rows, for the table
  n: int = 1024
  k: int = 16
  seeds: int = 1
  write: str = ""  # JSON of results; empty: only printed


def departures(steps: int, rows: int, n: int) -> list[dict[str, Any]]:
  """The settings that are tried, the defaults first.

  Args:
    steps: of a pass at the default batch.
    rows: of a pass.
    n: latents.
  """
  rate, batch = TrainConfig().rate(n), TrainConfig.batch_rows
  values: dict[str, tuple[Any, ...]] = {
    "batch_rows": tuple(f * batch // 2 for f in (1, 4, 8)),
    "learning_rate": (rate / 2, rate * 2),
    "warmup_steps": (10, steps // 5),
    "decay_fraction": (0.2, 1.0),
    "clip_norm": ("off", 1.0),
    "dead_after_tokens": (rows // 50,),
    B2: (0.99,),
  }
  each = [{name: v} for name, vs in values.items() for v in vs]
  return [{}, *each]


def trained(
  config: DefaultsConfig, x: np.ndarray, given: dict[str, Any], seed: int
):
  """An SAE trained with one setting; its inference form.

  Args:
    config: sizes.
    x: the rows, in order.
    given: the settings that are not the defaults.
    seed: of the weights.
  """
  given = dict(given)
  b2 = given.pop(B2, 0.999)
  rate = given.pop("learning_rate", TrainConfig().rate(config.n))
  size = given.get("batch_rows", TrainConfig.batch_rows)
  steps = len(x) // size
  train = TrainConfig(steps=steps, **given)
  options = train.options(steps)
  stats = inputs.given(x, x[:1]).stats
  options["defaults"]["prep"] = preps.from_stats("centre_scale", stats)
  recipe = row_sparse.topk(x.shape[1], config.n, config.k, **options)
  adam = functools.partial(common.adam, b2=b2)
  recipe = dataclasses.replace(recipe, optimizer=adam)

  def batches() -> Iterator[dict[str, np.ndarray]]:
    for batch in np.split(x[: steps * size], steps):
      yield {"x": batch}

  (found,) = loop.train(
    lambda: recipe,
    [Member(seed=seed, learning_rate=rate)],
    IteratorBatches(batches()),
    config=train,
    total_steps=steps,
    stream=io.StringIO(),
  )
  return found.sae


def main(config: DefaultsConfig) -> None:
  x = np.load(config.rows).astype(np.float32)
  held = np.load(config.held_out).astype(np.float32)
  rows = []
  for given in departures(len(x) // TrainConfig.batch_rows, len(x), config.n):
    start = time.perf_counter()
    each = [
      saejax.evaluate(trained(config, x, given, seed), held, mean=x.mean(0))
      for seed in range(config.seeds)
    ]
    (setting,) = given.items() or [("defaults", None)]
    row = {
      "setting": setting[0],
      "value": setting[1],
      "FVU": f"{np.mean([e.fvu for e in each]):.4f}",
      "dead": f"{np.mean([e.dead for e in each]):.1%}",
      "seconds": round((time.perf_counter() - start) / config.seeds, 1),
    }
    rows.append(row)
    print(*row.values(), sep="\t", flush=True)
    if config.write:
      about = {"site": config.site, "n": config.n, "k": config.k}
      about |= {"rows_of_a_pass": len(x), "seeds": config.seeds}
      about |= {"date": time.strftime("%Y-%m-%d")}
      about |= {"machine": machine.environment(), "settings": rows}
      text = json.dumps(about, indent=1) + "\n"
      durable.write_file(pathlib.Path(config.write), text.encode())


if __name__ == "__main__":
  flags.run(main, DefaultsConfig)
