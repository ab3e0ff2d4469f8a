"""How many latents AuxK revives: dead at the end, and the error that is left.

    python benchmarks/revival.py --store=STORE --held_out=STORE

Three cases: TopK on the rows of the stores; a transcoder without pre-bias from
those rows to those of a random network; and planted rows, where most latents
start too weak to be kept and a few can never be positive. Results go to
benchmarks/results/revival.json under the label given; other labels stay.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax import config, durable
from saejax.data import batches, streams, synthetic
from saejax.data.store import reader
from saejax.recipes import common, row_sparse
from saejax.sae import prep
from saejax.sae.context import Batch
from saejax.training import step
from saejax.training.parts import rules
from saejax.training.recipe import Hyper

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "revival.json"
SILENT = -1e3  # bias of a latent that is never positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is trained."""

  store: str = ""  # folder of a training store; empty: planted rows alone
  held_out: str = ""  # folder of its held-out store
  label: str = "now"  # under which the numbers are kept
  steps: int = 200  # batches
  batch_rows: int = 1024  # rows a batch


def trained(recipe, x: dict[str, np.ndarray], settings: Config, start=None):
  """The state after the run, and the last metrics."""
  passes = -(-settings.steps * settings.batch_rows // len(x["x"]))
  draw = streams.array_draw(
    x, batch_rows=settings.batch_rows, seed=0, epochs=passes
  )
  sample = Batch(**{name: jnp.asarray(a[:4096]) for name, a in x.items()})
  state = step.init_state(recipe, jax.random.key(0), sample=sample)
  state = state if start is None else start(state)
  one = step.make_step(recipe)
  hyper = Hyper(learning_rate=jnp.float32(2e-3))

  @jax.jit
  def run(state, draw):
    def body(i, state):
      fields = {k: v for k, v in draw(i).items() if k != "row"}
      return one(state, hyper, Batch(**fields))[0]

    return jax.lax.fori_loop(0, settings.steps, body, state)

  return run(state, draw)


def measured(state, held_out: Batch, dead_after: int) -> dict[str, Any]:
  """Dead latents and the unexplained share of held-out variance."""
  out = jax.jit(lambda sae, rows: sae.forward(rows))(state.sae, held_out)
  error = jnp.sum((out.target - out.x_hat) ** 2)
  spread = jnp.sum((out.target - out.target.mean(axis=0)) ** 2)
  dead = np.asarray(state.stats[rules.SINCE_FIRED]) >= dead_after
  return {
    "dead": int(dead.sum()),
    "n": int(dead.size),
    "fvu": round(float(error / spread), 4),
  }


def centred(x: np.ndarray) -> prep.Prep:
  """The prep to mean 0 and mean square norm 1."""
  mean = x.mean(axis=0, dtype=np.float64)
  square = float(np.mean(np.sum(np.square(x, dtype=np.float64), axis=1)))
  return prep.from_stats("centre_scale", {"mean": mean, "mean_square": square})


def stored(settings: Config) -> dict[str, Any]:
  """TopK, and a transcoder to a random network of two layers."""
  x, fresh = (
    np.asarray(batches.spread(reader.open(path), count), np.float32)
    for path, count in ((settings.store, 100_000), (settings.held_out, 8192))
  )
  d, tokens = x.shape[1], settings.steps * settings.batch_rows
  options = {
    "dead_after_tokens": rules.dead_after(tokens),
    "prep": centred(x),
    "clip_norm": 1.0,
  }
  found = {}
  state = trained(row_sparse.topk(d, 1024, 16, **options), {"x": x}, settings)
  found["topk"] = measured(
    state, Batch(x=jnp.asarray(fresh)), options["dead_after_tokens"]
  )
  rng = np.random.default_rng(0)
  A, B = (rng.standard_normal((d, d)) / d**0.5 for _ in range(2))
  inner = lambda x: np.maximum(centred(x).apply(x)[0] * d**0.5 @ A, 0)
  network = lambda x: np.asarray(inner(x) @ B, np.float32)
  target = network(x)
  of_network = common.Target(d=d, prep=centred(target))
  recipe = row_sparse.topk(d, 256, 16, target=of_network, **options)
  state = trained(recipe, {"x": x, "target": target}, settings)
  held_out = Batch(x=jnp.asarray(fresh), target=jnp.asarray(network(fresh)))
  found["transcoder"] = measured(state, held_out, options["dead_after_tokens"])
  return found


def planted(settings: Config) -> dict[str, Any]:
  """64 latents: 4 never positive, 47 too weak to be kept, 13 as they are."""
  keys = jax.random.split(jax.random.key(1), 3)
  V = synthetic.directions(keys[0], 64, 32)
  rows = np.asarray(synthetic.sparse(keys[1], 60_000, V, 3.0))
  dead_after = 10 * settings.batch_rows

  def start(state):
    i = jnp.arange(64)
    encoder = state.sae.encoder
    W = encoder.W * jnp.where(i < 51, 0.05, 1.0)[:, None]
    b = jnp.where(i < 4, SILENT, 0.0)
    sae = state.sae.replace(encoder=encoder.replace(W=W, b=b))
    return state.replace(sae=sae)

  recipe = row_sparse.topk(32, 64, 3, dead_after_tokens=dead_after)
  state = trained(recipe, {"x": rows[:50_000]}, settings, start)
  return {
    "planted": measured(state, Batch(x=jnp.asarray(rows[50_000:])), dead_after)
  }


def main(settings: Config) -> None:
  found = planted(settings)
  if settings.store:
    found.update(stored(settings))
  kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  sizes = {"steps": settings.steps, "batch_rows": settings.batch_rows}
  kept[settings.label] = {**sizes, **found}
  text = json.dumps(kept, indent=1) + "\n"
  durable.write_file(RESULTS, text.encode(), field="label")
  print(json.dumps(found))


if __name__ == "__main__":
  config.run(main, Config)
