"""Arms (compared settings) on planted rows with a known dictionary.

Every group has rows of its own, whose name is the "data" of its points.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data import synthetic
from saejax.evals import absorption, recovery
from saejax.recipes import (
  batch_sparse,
  nested,
  row_sparse,
  several,
  specialised,
  stochastic,
)
from saejax.runs import folder as run_folder
from saejax.sae.sae import SAE
from saejax.studies import arms, ensembling
from saejax.training.config import TrainConfig
from saejax.training.members import Member
from saejax.training.recipe import Recipe

ROWS, HELD_OUT = 65_536, 8192
# Not the keys of initial weights: those would start at the truth.
TRUTH, TRAIN, TEST = (1_000_003 + i for i in range(3))
Points = list[dict[str, Any]]


def points(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, dict[str, Any]]:
  """Points of every group, and facts about its rows by name.

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: SAEs of each arm.
  """
  found: Points = []
  data: dict[str, Any] = {}
  for group in (dictionaries, trees, coupled, rare, ensembles):
    more, rows = group(folder, config, seeds)
    name = rows.about["rows"]
    found += [{**p, "data": name} for p in more]
    data[name] = rows.about
  return found, data


def dictionaries(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, arms.Rows]:
  """L1 against PCA on a dictionary with more directions than dimensions.

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: SAEs of each arm.

  Returns:
    One point per SAE, and the rows.
  """
  V = synthetic.directions(jax.random.key(TRUTH), 64, 32)
  p = np.full(64, 3 / 64, np.float32)

  def draw(key, rows):
    on, size = jax.random.split(key)
    z = synthetic.coefficients(size, synthetic.bernoulli(on, rows, p))
    return z @ V

  rows = _rows(draw, "planted dictionary")
  pca = recovery.baselines(np.asarray(V), np.asarray(rows.held_out.x), 64)

  def measure(trained):
    return [
      {
        "recall": recovery.mmcs(np.asarray(V), np.asarray(sae.W_dec)),
        "pca_recall": pca["pca"].recall,
      }
      for sae in trained.saes
    ]

  arm = arms.Arm(
    name="planted relu_l1",
    make=lambda k: row_sparse.relu_l1(
      32, 64, coefficient=0.3, **arms.options(config, rows)
    ),
    n=64,
    facts={"arm": "relu_l1"},
  )
  return arms.run(
    folder, [arm], rows, config, seeds=seeds, measure=measure
  ), rows


def trees(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, arms.Rows]:
  """Absorption: does a parent's latent fire where a child is active?

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: SAEs of each arm.

  Returns:
    One point per SAE, and the rows.
  """
  V = synthetic.orthonormal(jax.random.key(TRUTH), 16, 20)
  draw = lambda key, rows: synthetic.tree(key, rows).astype(jnp.float32) @ V
  rows = _rows(draw, "planted tree")
  on = np.greater(rows.held_out.x @ np.asarray(V).T, 0.5)
  d, n, options = 20, 16, arms.options(config, rows)
  recipes = {
    "matryoshka": lambda k: nested.matryoshka(
      d, n, 0.75, prefixes=(4, 16), reduction="sum", bias_only=False, **options
    ),
    "batchtopk": lambda k: batch_sparse.batchtopk(d, n, 0.75, **options),
    "atm": lambda k: stochastic.atm(d, n, coefficient=0.1, **options),
    "relu_l1": lambda k: row_sparse.relu_l1(d, n, coefficient=0.1, **options),
  }

  def measure(trained):
    fires = [np.not_equal(s.encode(rows.held_out.x), 0) for s in trained.saes]
    return [{"parent_recall": absorption.parent_recall(f, on)} for f in fires]

  made = [
    arms.Arm(name=f"tree {name}", make=make, n=n, facts={"arm": name})
    for name, make in recipes.items()
  ]
  return arms.run(
    folder, made, rows, config, seeds=seeds, measure=measure
  ), rows


def coupled(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, arms.Rows]:
  """Pairs of SAEs trained with and without mutual feature regularisation.

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: pairs with each coefficient.

  Returns:
    One point per SAE, and the rows.
  """
  d, n, k = 32, 64, 4
  V = synthetic.directions(jax.random.key(TRUTH), n, d)

  def draw(key, rows):
    on, size = jax.random.split(key)
    z = synthetic.grouped(on, rows, n, groups=4, active=k)
    return synthetic.coefficients(size, z, low=0.0, high=1.0) @ V

  rows = _rows(draw, "planted groups")
  options = arms.options(config, rows)

  def arm(name: str, coefficient: float, replicate: int) -> arms.Arm:
    return arms.Arm(
      name=f"mfr {name} {replicate}",
      make=lambda k_: several.mfr(
        d,
        n,
        k,
        coefficient=coefficient,
        coefficient_warmup=min(1.0, 100 / options["steps"]),
        restart_above=None,
        **options,
      ),
      n=n,
      seed=2 * replicate,
      stacked=True,
      facts={"arm": f"mfr {name}", "seed": replicate},
    )

  def measure(trained):
    W = [np.asarray(s.W_dec) for s in trained.saes]
    return [
      {
        "recall": recovery.mmcs(np.asarray(V), own),
        "similarity": recovery.mmcs(own, other),
      }
      for own, other in zip(W, W[::-1], strict=True)
    ]

  made = [
    arm(name, coefficient, replicate)
    for name, coefficient in (("alone", 0.0), ("coupled", 0.005))
    for replicate in range(seeds)
  ]
  return arms.run(folder, made, rows, config, seeds=2, measure=measure), rows


def rare(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, arms.Rows]:
  """Finetuning with a tilted risk on rows of which few are of a rare domain.

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: general SAEs, each finetuned once with each risk.

  Returns:
    One point per SAE, and the rows.
  """
  d, n, k = 32, 48, 3
  rows, is_rare = _rare_rows(d)
  options = arms.options(config, rows)
  tuning = {k: v for k, v in options.items() if k != "prep"}  # its own
  general = _general(
    folder, row_sparse.topk(d, n, k, **options), n, rows, config, seeds
  )

  def measure(trained):
    x = np.asarray(rows.held_out.x)
    errors = [
      np.square(np.asarray(sae.reconstruct(x)) - x).sum(axis=-1)
      for sae in trained.saes
    ]
    return [
      {"rare_error": float(e[is_rare].mean()), "mean_error": float(e.mean())}
      for e in errors
    ]

  made = [
    arms.Arm(
      name=f"ssae {name} {seed}",
      make=lambda k_, seed=seed, t=t: specialised.ssae(
        d, n, init_from=general()[seed], t=t, relative=True, **tuning
      ),
      n=n,
      facts={"arm": f"ssae {name}", "seed": seed},
    )
    for name, t in (("tilted", 1.0), ("mean", 1e-6))
    for seed in range(seeds)
  ]
  return arms.run(folder, made, rows, config, seeds=1, measure=measure), rows


def _rare_rows(d: int) -> tuple[arms.Rows, np.ndarray]:
  """Rows with 1 % from the rare domain, and the mask of held-out rare rows."""
  often, seldom = jax.random.split(jax.random.key(TRUTH), 2)
  V = jnp.concatenate(
    [synthetic.directions(often, 64, d), synthetic.directions(seldom, 16, d)]
  )

  def features(key, rows):
    often, seldom, which = jax.random.split(key, 3)
    return synthetic.sometimes(
      which,
      synthetic.exactly(often, rows, 3, np.ones(64, np.float32)),
      synthetic.exactly(seldom, rows, 3, np.ones(16, np.float32)),
      0.01,
    )

  def draw(key, rows):
    where, size = jax.random.split(key)
    return synthetic.coefficients(size, features(where, rows)[0]) @ V

  key = jax.random.split(jax.random.key(TEST))[0]  # as `draw` splits it
  is_rare = np.asarray(features(key, HELD_OUT)[1])
  return _rows(draw, "planted rare domain"), is_rare


def _general(
  folder: pathlib.Path,
  recipe: Recipe,
  n: int,
  rows: arms.Rows,
  config: TrainConfig,
  seeds: int,
) -> Callable[[], Sequence[SAE]]:
  """The general SAEs that are finetuned, trained when first asked for."""

  @functools.cache
  def saes():
    rate = config.rate(n)
    members = [Member(seed=s, learning_rate=rate) for s in range(seeds)]
    own = folder / run_folder.ARMS / "ssae_general"
    made = arms.train(own, lambda: recipe, members, rows, config)
    return [trained.sae for trained in made]

  return saes


def ensembles(
  folder: pathlib.Path, config: TrainConfig, seeds: int
) -> tuple[Points, arms.Rows]:
  """Four members bagged and boosted, against one and against a wider SAE.

  Args:
    folder: folder of the run.
    config: how arms are trained.
    seeds: replicates of each ensemble.

  Returns:
    One point per ensemble, and the rows.
  """
  d, n, k, size = 32, 24, 2, 4
  V = synthetic.directions(jax.random.key(TRUTH), 128, d)
  p = synthetic.power_law(128, 6.0, 0.7)

  def draw(key, rows):
    on, amount = jax.random.split(key)
    z = synthetic.bernoulli(on, rows, p)
    return synthetic.coefficients(amount, z) @ V

  rows = _rows(draw, "planted power law")
  options = arms.options(config, rows)
  base = lambda n, k, *, prep: row_sparse.topk(
    d, n, k, **{**options, "prep": prep}
  )
  study = ensembling.Study(
    base=base,
    n=n,
    k=k,
    sizes=(1, size),
    replicates=seeds,
    rows=rows,
    config=config,
    folder=folder,
  )
  kept = arms.kept(
    folder / run_folder.ARMS / "ensembles", lambda _: study.run()
  )
  return kept, rows


def _rows(draw: Callable, name: str) -> arms.Rows:
  """Training and held-out rows of a planted distribution."""
  made = jax.jit(
    lambda: (
      draw(jax.random.key(TRAIN), ROWS),
      draw(jax.random.key(TEST), HELD_OUT),
    )
  )
  x, held_out = (np.asarray(a) for a in made())
  about = {"rows": name, "train_rows": ROWS, "held_out_rows": HELD_OUT}
  return arms.planted({"x": x}, {"x": held_out}, about)
