"""Held-out error of TopK as each setting of training departs from its default.

  python benchmarks/defaults.py --rows=train.npy --held_out=held.npy \
    --site="MiniLM layer 3" --write=benchmarks/results/defaults.json

  python benchmarks/defaults.py --rows=train.npy --held_out=held.npy \
    --site="MiniLM layer 3" --n=4096 --k=4 --batch_rows=1024 --seeds=2 \
    --settings=k_aux,aux_weight,dead_after_tokens \
    --write=benchmarks/results/defaults-n4096-k4.json

One pass over the rows, in the order of the file, for the defaults of
`TrainConfig` and of the recipe, and for each other value of one setting at a
time. FVU and dead latents are of held-out rows. The defaults were chosen by
tables like this one.
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
from saejax.training.parts import revival

B2 = "b2"  # of Adam; not a setting of TrainConfig
OF_RECIPE = ("k_aux", "aux_weight")
PAPERS = "AuxK of the paper"  # all of its settings at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefaultsConfig:
  """What is trained on, and the size of the SAE."""

  rows: str  # .npy with training rows [rows, d], in the order of training
  held_out: str  # .npy with held-out rows
  site: str  # name of the rows, for the table
  n: int = 1024
  k: int = 16
  seeds: int = 1
  batch_rows: int = TrainConfig.batch_rows  # of all but its own departures
  settings: tuple[str, ...] = ()  # that depart; none: all
  write: str = ""  # JSON of results; empty: only printed


def departures(
  config: DefaultsConfig, rows: int, d: int
) -> list[dict[str, Any]]:
  """The settings that are tried, the defaults first.

  Args:
    config: sizes, and the settings that depart.
    rows: of a pass.
    d: width of the rows.
  """
  rate, batch = TrainConfig().rate(config.n), TrainConfig.batch_rows
  values: dict[str, tuple[Any, ...]] = {
    "batch_rows": tuple(f * batch // 2 for f in (1, 4, 8)),
    "learning_rate": (rate / 2, rate * 2),
    "warmup_steps": (10, rows // config.batch_rows // 5),
    "decay_fraction": (0.2, 1.0),
    "clip_norm": ("off", 1.0),
    "dead_after_tokens": (rows // 100, rows // 10),
    "k_aux": (min(4 * config.k, config.n),),
    "aux_weight": (1 / 32, 1 / 2),
    B2: (0.99,),
  }
  paper = {
    "k_aux": min(revival.default_k_aux(d), config.n),
    "aux_weight": 1 / 32,
    "dead_after_tokens": rows // 10,
  }
  chosen = config.settings or (*values, PAPERS)
  each = [{name: v} for name in values if name in chosen for v in values[name]]
  return [{}, *each, *([paper] if PAPERS in chosen else [])]


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
  of_recipe = {name: given.pop(name) for name in OF_RECIPE if name in given}
  size = given.setdefault("batch_rows", config.batch_rows)
  steps = len(x) // size
  train = TrainConfig(steps=steps, **given)
  options = train.options(steps)
  stats = inputs.given(x, x[:1]).stats
  options["defaults"]["prep"] = preps.from_stats("centre_scale", stats)
  recipe = row_sparse.topk(
    x.shape[1], config.n, config.k, **of_recipe, **options
  )
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
  for given in departures(config, len(x), x.shape[1]):
    start = time.perf_counter()
    each = [
      saejax.evaluate(trained(config, x, given, seed), held, mean=x.mean(0))
      for seed in range(config.seeds)
    ]
    name, value = next(iter(given.items()), ("defaults", None))
    if len(given) > 1:
      name, value = PAPERS, None
    row = {
      "setting": name,
      "value": value,
      "FVU": f"{np.mean([e.fvu for e in each]):.4f}",
      "dead": f"{np.mean([e.dead for e in each]):.1%}",
      "seconds": round((time.perf_counter() - start) / config.seeds, 1),
    }
    rows.append(row)
    print(*row.values(), sep="\t", flush=True)
    if config.write:
      about = {"site": config.site, "n": config.n, "k": config.k}
      about |= {"rows_of_a_pass": len(x), "seeds": config.seeds}
      about |= {"batch_rows": config.batch_rows}
      about |= {"date": time.strftime("%Y-%m-%d")}
      about |= {"machine": machine.environment(), "settings": rows}
      text = json.dumps(about, indent=1) + "\n"
      durable.write_file(pathlib.Path(config.write), text.encode())


if __name__ == "__main__":
  flags.run(main, DefaultsConfig)
