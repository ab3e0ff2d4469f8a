"""The loss curve of TopK with each option that saves memory in training.

  python benchmarks/memory_options.py --rows=STORE --held_out=STORE \
    --site="MiniLM layer 3" --write=benchmarks/results/memory-options.json

Each option is trained on the same rows in the same order, from the same weights, as
the defaults of `TrainConfig`: a batch in parts, weights in bfloat16 with stochastic
rounding, one second moment per latent, and these together. A control rounds the
weights to nearest. FVU and dead latents are of held-out rows, of the inference form.
The curve is the loss of the training rows, averaged over each eighth of the run.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np

import saejax
from saejax import config as flags
from saejax import durable, machine
from saejax.data.batches import IteratorBatches
from saejax.recipes import row_sparse
from saejax.runs import inputs
from saejax.sae import prep as preps
from saejax.training import loop
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.parts import rounding

NARROW = {"param_dtype": "bfloat16"}
ROWS = {"second_moments": "row"}
OPTIONS: dict[str, dict[str, Any]] = {
  "defaults": {},
  "accumulate=4": {"accumulate": 4},
  "second_moments=row": ROWS,
  "param_dtype=bfloat16": NARROW,
  "all three": {"accumulate": 4, **ROWS, **NARROW},
  "param_dtype=bfloat16, to nearest": NARROW,
}
NEAREST = "param_dtype=bfloat16, to nearest"  # a control, which is no option
EIGHTHS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is trained on, and the size of the SAE."""

  rows: str  # store with the training rows
  held_out: str  # store with held-out rows
  site: str  # name of the rows, for the table
  steps: int = 300
  n: int = 1024
  k: int = 16
  seeds: int = 2
  margin: float = 0.002  # increase of FVU that counts as none
  write: str = ""  # JSON of results; empty: only printed


def trained(
  config: Config, x: np.ndarray, name: str
) -> tuple[list[saejax.SAE], np.ndarray]:
  """The inference form of each seed's SAE, and the mean losses of its run.

  Args:
    config: sizes.
    x: the rows, in order.
    name: name of the option.

  Returns:
    The SAEs, and the loss in each eighth of the run [seeds, 8].
  """
  train = TrainConfig(steps=config.steps, **OPTIONS[name])
  options = train.options(config.steps)
  stats = inputs.given(x, x[:1]).stats
  options["defaults"]["prep"] = preps.from_stats("centre_scale", stats)
  recipe = row_sparse.topk(x.shape[1], config.n, config.k, **options)
  losses: list[np.ndarray] = []

  def batches() -> Iterator[dict[str, np.ndarray]]:
    for batch in np.split(x, config.steps):
      yield {"x": batch}

  control = contextlib.nullcontext()
  if name == NEAREST:
    nearest = lambda x, key: x.astype(jnp.bfloat16)
    control = mock.patch.object(rounding, "stochastic", nearest)
  with control:
    found = loop.train(
      lambda: recipe,
      [
        Member(seed=seed, learning_rate=train.rate(config.n))
        for seed in range(config.seeds)
      ],
      IteratorBatches(batches()),
      config=train,
      total_steps=config.steps,
      observe=lambda step, metrics: losses.append(metrics["nmse"]),
      stream=io.StringIO(),
    )
  eighths = np.array_split(np.stack(losses), EIGHTHS)
  return [f.sae for f in found], np.stack([a.mean(0) for a in eighths], axis=1)


def state_bytes(given: dict[str, Any]) -> int:
  """Bytes of weights and moments per parameter, of its matrices.

  Args:
    given: settings of training.
  """
  weights = 2 if given.get("param_dtype") else 4
  return weights + 4 + (0 if given.get("second_moments") else 4)


def main(config: Config) -> None:
  count = config.steps * TrainConfig.batch_rows
  x = _rows(config.rows, count)
  held = _rows(config.held_out, 16_384)
  table: list[dict[str, Any]] = []
  curves: dict[str, list[list[float]]] = {}
  for name, given in OPTIONS.items():
    saes, curve = trained(config, x, name)
    found = [saejax.evaluate(sae, held, mean=x.mean(0)) for sae in saes]
    fvu, dead = [float(f.fvu) for f in found], [float(f.dead) for f in found]
    curves[name] = curve.tolist()
    usual = table[0]["each FVU"] if table else fvu
    apart = np.subtract(fvu, usual)
    ratio = np.divide(curves[name], curves["defaults"])
    table.append(
      {
        "option": name,
        "bytes per parameter": state_bytes(given),
        "FVU": f"{np.mean(fvu):.4f}",
        "difference by seed": ", ".join(f"{a:+.4f}" for a in apart),
        f"mean at most {config.margin:g} worse": bool(
          apart.mean() <= config.margin
        ),
        "loss, largest ratio": f"{ratio.max():.3f}",
        "dead": f"{np.mean(dead):.1%}",
        "each FVU": fvu,
      }
    )
    print(*table[-1].values(), sep="\t", flush=True)
    if config.write:
      _write(config, table, curves)


def _rows(place: str, count: int) -> np.ndarray:
  """Rows of a store in a random order, the same in every run."""
  store = saejax.open_store(place)
  order = np.random.default_rng(0).permutation(store.rows)[:count]
  return np.asarray(store.read(0, store.rows)[order], np.float32)


def _write(config: Config, table, curves) -> None:
  about: dict[str, Any] = {
    name: getattr(config, name) for name in ("site", "n", "k", "steps", "seeds")
  }
  about |= {"batch_rows": TrainConfig.batch_rows}
  about |= {"date": time.strftime("%Y-%m-%d")}
  about |= {"machine": machine.environment(), "curves": curves}
  shown = [{k: v for k, v in row.items() if k != "each FVU"} for row in table]
  about |= {"each_fvu": {row["option"]: row["each FVU"] for row in table}}
  text = json.dumps(about | {"options": shown}, indent=1) + "\n"
  durable.write_file(pathlib.Path(config.write), text.encode())


if __name__ == "__main__":
  flags.run(main, Config)
