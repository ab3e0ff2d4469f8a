"""L0 asked for, in training and in use, of methods that end in a threshold.

    python benchmarks/inference_form.py --store=STORE --held_out=STORE

Trains every method on planted rows, and on the rows of the stores where they
are given, for few and for many steps. The training form is measured on held-out
rows in batches as large as those of training, the inference form row by row.
Results go to benchmarks/results/inference_form.json, point by point; the same
command measures what is missing there.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax import config, durable, terminal
from saejax.data import batches, streams, synthetic
from saejax.data.store import reader
from saejax.evals import reconstruction
from saejax.recipes import batch_sparse, bias_adaptation, nested, thresholds
from saejax.sae import prep
from saejax.sae.context import Batch
from saejax.training import fit, step
from saejax.training.parts import bias_rule, rules, schedules
from saejax.training.recipe import Recipe

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "inference_form.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is trained."""

  store: str = ""  # folder of a training store; empty: planted rows alone
  held_out: str = ""  # folder of its held-out store
  steps: tuple[int, ...] = (80, 150, 600)  # batches
  batch_rows: int = 1024  # rows a batch
  n: int = 256  # latents
  k: int = 16  # latents per row
  rows: int = 100_000  # training rows
  learning_rate: float = 2e-3  # peak
  ema_decay: float = 0.0  # of the average of weights; 0: off


def _gba(d: int, n: int, k: int, **options: Any) -> Recipe:
  """Targets over a factor of 50 whose mean is k / n."""
  falling = bias_rule.targets(8, 1.0, 1 / 50)
  htf = min(k / (n * sum(falling) / len(falling)), 0.9)
  return bias_adaptation.gba(
    d, n, groups=8, every=5, htf=htf, ltf=htf / 50, **options
  )


def methods() -> dict[str, Any]:
  """From the sizes and the options to a recipe, by name."""
  return {
    "batchtopk": batch_sparse.batchtopk,
    "feature_choice": batch_sparse.feature_choice,
    "mutual_choice_zipf": functools.partial(batch_sparse.batchtopk, aux="zipf"),
    "mc_then_fc": batch_sparse.mc_then_fc,
    "matryoshka": nested.matryoshka,
    "llama_scope": thresholds.llama_scope,
    "gba": _gba,
  }


def planted(rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Training and held-out rows of 160 directions in 48 dimensions."""
  keys = jax.random.split(jax.random.key(0), 4)
  V = synthetic.directions(keys[0], 160, 48)
  active = synthetic.bernoulli(
    keys[1], rows + 16_384, synthetic.power_law(160, 12.0, 0.5)
  )
  H = synthetic.coefficients(keys[2], active)
  x = np.asarray(H @ V, np.float32)
  return x[:rows], x[rows:]


def stored(settings: Config) -> tuple[np.ndarray, np.ndarray]:
  """Training and held-out rows of the stores."""
  opened = reader.open(settings.store), reader.open(settings.held_out)
  x, held_out = (
    np.asarray(batches.spread(store, count), np.float32)
    for store, count in zip(opened, (settings.rows, 16_384), strict=True)
  )
  return x, held_out


def measured(
  make: Any, settings: Config, steps: int, x: np.ndarray, held_out: np.ndarray
) -> dict[str, float]:
  """L0 and FVU of one SAE in both forms."""
  mean = x.mean(axis=0, dtype=np.float64)
  square = float(np.mean(np.sum(np.square(x, dtype=np.float64), axis=1)))
  recipe = make(
    x.shape[1],
    settings.n,
    settings.k,
    steps=steps,
    batch_rows=settings.batch_rows,
    dead_after_tokens=rules.dead_after(steps * settings.batch_rows),
    prep=prep.from_stats("centre_scale", {"mean": mean, "mean_square": square}),
    schedule=schedules.warmup_decay(steps, warmup_steps=10, decay_fraction=0.2),
    clip_norm=1.0,
    ema_decay=settings.ema_decay or None,
  )
  passes = -(-steps * settings.batch_rows // len(x))
  draw = streams.array_draw(
    {"x": x}, batch_rows=settings.batch_rows, seed=0, epochs=passes
  )
  (sae,), (state,), _ = fit.fit(
    recipe,
    draw,
    steps=steps,
    members=[fit.member(learning_rate=settings.learning_rate)],
    sample=Batch(x=jnp.asarray(x[:4096])),
  )
  evaluate = functools.partial(
    reconstruction.evaluate_many,
    batches=[held_out],
    means=[np.zeros(x.shape[1], np.float32)],
    batch_rows=settings.batch_rows,
  )
  (use,) = evaluate([sae])
  (training,) = evaluate([step.averaged(recipe, state)], stats=[state.stats])
  return {
    "l0": use.l0,
    "training_l0": training.l0,
    "fvu": use.fvu,
    "training_fvu": training.fvu,
  }


def table(points: list[Mapping[str, Any]]) -> str:
  """The points as lines of text."""
  lines = [
    f"{'rows':8} {'method':18} {'steps':>5} {'asked':>6} {'training':>8} "
    f"{'in use':>7} {'FVU training':>12} {'in use':>7}"
  ]
  for p in points:
    asked = "-" if p["k"] is None else f"{p['k']:.0f}"
    lines.append(
      f"{p['rows']:8} {p['method']:18} {p['steps']:5} {asked:>6} "
      f"{p['training_l0']:8.2f} {p['l0']:7.2f} {p['training_fvu']:12.4f} "
      f"{p['fvu']:7.4f}"
    )
  return "\n".join(lines)


def main(settings: Config) -> None:
  sources = {"planted": planted(settings.rows)}
  if settings.store:
    sources["stored"] = stored(settings)
  about = dataclasses.asdict(settings)
  for field in ("store", "held_out"):  # by name: folders are this machine's
    about[field] = pathlib.Path(about[field]).name
  points: list[dict[str, Any]] = []
  if RESULTS.exists():  # what was measured with these settings stays
    found = json.loads(RESULTS.read_text())
    points = (
      found["points"]
      if found["config"] == json.loads(json.dumps(about))
      else []
    )
  done = {(p["rows"], p["method"], p["steps"]) for p in points}
  for rows, (x, held_out) in sources.items():
    for (method, make), steps in itertools.product(
      methods().items(), settings.steps
    ):
      if (rows, method, steps) in done:
        continue
      found = measured(make, settings, steps, x, held_out)
      # Biases follow targets of their own; there is no k to keep.
      asked = None if method == "gba" else settings.k
      points.append(
        {"rows": rows, "method": method, "steps": steps, "k": asked, **found}
      )
      terminal.say(table(points[-1:]).splitlines()[-1])
      text = json.dumps({"config": about, "points": points}, indent=1) + "\n"
      durable.write_file(RESULTS, text.encode(), field="run_dir")
  print(table(points))


if __name__ == "__main__":
  config.run(main, Config)
