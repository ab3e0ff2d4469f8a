"""AuxK's forms: milliseconds of the term with its gradients, by dead latents.

  python benchmarks/aux_k.py --write=benchmarks/results/aux-k-cpu-2core.json

For each n and share of dead latents, in rounds that take every contender once:

  step        a TopK step without AuxK (forward, loss, gradients)
  dense       the definition, from the pre-activations of all latents
  any_number  fused encode of all latents, in which the dead compete: what the
              sparse engine runs where many are dead
  chosen      what the sparse engine runs: few dead latents are encoded alone

Every contender computes the reconstruction that the residual needs, which
`step` computes too: `over_step` is the time that AuxK adds to a step, over the
time of the step. Medians over rounds.
"""

import dataclasses
import json
import os
import pathlib
import platform
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from saejax import config
from saejax.kernels.fused_encode import xla
from saejax.recipes import common, row_sparse
from saejax.training.parts import losses, revival, rules
from saejax.training.recipe import Record, mean

B, D, K = 2048, 384, 32
SIZES = (512, 4096, 16384)
SHARES = (0.01, 0.05, 0.2, 0.6)
ROUNDS = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Where figures go."""

  write: str = ""  # JSON file to write the figures to


def contenders(n: int):
  """Functions of (sae, x, tokens since each latent fired)."""
  tracker = rules.DeadTracker(100)
  term = revival.aux_k(K, among=tracker)

  def loss(sae, x, since, *, engine: str, compact: int | None):
    record = Record(
      forward=sae.forward(x, engine=engine),
      sae=sae,
      stats={tracker.statistic: since},
      engine=engine,
    )
    value = mean(losses.normalised_mse(record), None)
    if compact is None:
      return value
    with mock.patch.object(xla, "COMPACT", compact):
      return value + common.AUX_WEIGHT * term.fn(record)

  def gradients(engine, compact):
    run = lambda *args: loss(*args, engine=engine, compact=compact)
    return jax.jit(jax.value_and_grad(run))

  return {
    "step": gradients("sparse", None),
    "dense": gradients("dense", xla.COMPACT),
    "any_number": gradients("sparse", 1),
    "chosen": gradients("sparse", xla.COMPACT),
  }


def measured(n: int) -> list[dict[str, float]]:
  """A row of figures for each share of dead latents."""
  run = contenders(n)
  recipe = row_sparse.topk(
    D, n, k=K, dead_after_tokens=100, steps=10, batch_rows=B
  )
  sae = recipe.init(jax.random.key(0), sample=None)
  x = jax.random.normal(jax.random.key(1), (B, D))
  rows = []
  for share in SHARES:
    dead = np.random.default_rng(0).permutation(n) < share * n
    since = jnp.asarray(np.where(dead, 1000, 0), jnp.int32)
    times = {name: [] for name in run}
    values = {
      n: jax.block_until_ready(f(sae, x, since)) for n, f in run.items()
    }
    for i in range(ROUNDS):
      for name in np.roll([*run], i):
        start = time.perf_counter()
        jax.block_until_ready(run[name](sae, x, since))
        times[name].append(1e3 * (time.perf_counter() - start))
    ms = {name: float(np.median(t)) for name, t in times.items()}
    worst = max(
      float(abs(values[name][0] / values["dense"][0] - 1))
      for name in ("any_number", "chosen")
    )
    rows.append(
      {
        "n": n,
        "dead": int(dead.sum()),
        **{f"{name}_ms": round(value, 1) for name, value in ms.items()},
        "over_step": round(ms["chosen"] / ms["step"] - 1, 2),
        "loss_difference": worst,
      }
    )
    print(rows[-1], flush=True)
  return rows


def main(chosen: Config) -> None:
  found = [row for n in SIZES for row in measured(n)]
  result = {
    "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "batch_rows": B,
    "d": D,
    "k": K,
    "k_aux": K,
    "figures": found,
  }
  if chosen.write:
    pathlib.Path(chosen.write).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  config.run(main, Config)
