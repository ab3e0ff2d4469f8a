"""Claims whose rows are planted: absorption, coupling, rare domains, ensembles.

Every group has rows of its own and returns its points and claims.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from saejax.data import synthetic
from saejax.evals import recovery
from saejax.recipes import (
  batch_sparse,
  nested,
  row_sparse,
  several,
  specialised,
  stochastic,
)
from saejax.studies import arms, ensembling
from saejax.studies.claims import Claim, both, each, log_of, mean_of
from saejax.training import fit

ROWS, HELD_OUT = 65_536, 8192
# Not the keys of initial weights: those would start at the truth.
TRUTH, TRAIN, TEST = (1_000_003 + i for i in range(3))
Group = tuple[list[dict[str, Any]], list[Claim]]
RECALL = "difference in mean max cosine with planted directions"


def of(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """Points and claims of every group."""
  points, claims = [], []
  for group in (dictionaries, absorption, coupled, rare, ensembles):
    found, wanted = group(folder, config)
    points += found
    claims += wanted
  return points, claims


def dictionaries(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """L1 against PCA on a dictionary with more directions than dimensions."""
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
  )
  return arms.run(folder, [arm], rows, config, measure=measure), [
    Claim(
      recipe="relu_l1",
      paper="2309.08600",
      claim="finds planted directions better than PCA",
      method=arm.name,
      against=arm.name,
      compare=each(mean_of("recall"), mean_of("pca_recall")),
      direction="higher",
      data="planted",
      unit=RECALL,
    )
  ]


def absorption(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """Whether a parent's latent still fires where a child of it is on."""
  V = synthetic.orthonormal(jax.random.key(TRUTH), 16, 20)
  draw = lambda key, rows: synthetic.tree(key, rows).astype(jnp.float32) @ V
  rows = _rows(draw, "planted tree")
  on = np.greater(rows.held_out.x @ np.asarray(V).T, 0.5)
  d, n, options = 20, 16, arms.options(config, rows)
  made = {
    "matryoshka": lambda k: nested.matryoshka(
      d, n, 0.75, prefixes=(4, 16), reduction="sum", bias_only=False, **options
    ),
    "batchtopk": lambda k: batch_sparse.batchtopk(d, n, 0.75, **options),
    "atm": lambda k: stochastic.atm(
      d, n, coefficient=0.1, start_step=config.steps // 5, **options
    ),
    "relu_l1": lambda k: row_sparse.relu_l1(d, n, coefficient=0.1, **options),
  }
  measure = lambda trained: [
    {"parent_recall": parent_recall(s, rows.held_out.x, on)}
    for s in trained.saes
  ]
  points = arms.run(
    folder,
    [
      arms.Arm(name=f"tree {name}", make=make, n=n)
      for name, make in made.items()
    ],
    rows,
    config,
    measure=measure,
  )
  return points, [
    Claim(
      recipe=method,
      paper=paper,
      claim=f"less absorption than {against}",
      method=f"tree {method}",
      against=f"tree {against}",
      compare=both(mean_of("parent_recall")),
      direction="higher",
      data="planted tree",
      unit="difference in recall of parents whose child is on",
    )
    for method, against, paper in (
      ("matryoshka", "batchtopk", "2503.17547"),
      ("atm", "relu_l1", "2510.08855"),
    )
  ]


def parent_recall(sae, x, on: np.ndarray, parents: int = 4) -> float:
  """Share of rows with parent and child on which the parent's latent fires.

  The parent's latent is the one that best tells rows with the parent alone from
  rows without it, by balanced accuracy.
  """
  fires = np.not_equal(sae.encode(x), 0)
  child: np.ndarray = np.any(
    on[:, parents:].reshape(len(on), parents, -1), axis=-1
  )
  found = []
  for i in range(parents):
    alone, off = on[:, i] & ~child[:, i], ~on[:, i]
    accuracy = fires[alone].mean(axis=0) - fires[off].mean(axis=0)
    both_on = on[:, i] & child[:, i]
    found.append(fires[both_on, int(accuracy.argmax())].mean())
  return float(np.mean(found))


def coupled(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """Pairs of SAEs trained with and without mutual feature regularisation."""
  d, n, k = 32, 64, 4
  V = synthetic.directions(jax.random.key(TRUTH), n, d)

  def draw(key, rows):
    on, size = jax.random.split(key)
    z = synthetic.grouped(on, rows, n, groups=4, active=k)
    return synthetic.coefficients(size, z, low=0.0, high=1.0) @ V

  rows = _rows(draw, "planted groups")
  pair = dataclasses.replace(config, seeds=2)

  def arm(name: str, coefficient: float, replicate: int) -> arms.Arm:
    return arms.Arm(
      name=f"mfr {name} {replicate}",
      make=lambda k_: several.mfr(
        d,
        n,
        k,
        coefficient=coefficient,
        restart_above=None,
        **arms.options(config, rows),
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

  points = arms.run(
    folder,
    [
      arm(name, coefficient, replicate)
      for name, coefficient in (("alone", 0.0), ("coupled", 0.005))
      for replicate in range(config.seeds)
    ],
    rows,
    pair,
    measure=measure,
  )
  claim = partial(
    Claim,
    recipe="mfr",
    paper="2411.01220",
    method="mfr coupled",
    against="mfr alone",
    data="planted groups",
  )
  return points, [
    claim(
      claim="aligns the features of two seeds",
      compare=both(mean_of("similarity")),
      direction="higher",
      unit="difference in mean max cosine between seeds",
    ),
    claim(
      claim="lower error than without the coupling",
      compare=both(log_of("fvu")),
      direction="lower",
    ),
  ]


def rare(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """Finetuning with a tilted risk on rows of which few are of a rare domain."""
  d, n, k = 32, 48, 3
  keys = jax.random.split(jax.random.key(TRUTH), 2)
  V = jnp.concatenate(
    [synthetic.directions(keys[0], 64, d), synthetic.directions(keys[1], 16, d)]
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

  rows = _rows(draw, "planted rare domain")
  key = jax.random.split(jax.random.key(TEST))[0]  # as `_rows` draws them
  is_rare = np.asarray(features(key, HELD_OUT)[1])
  options = arms.options(config, rows)
  tuning = {k: v for k, v in options.items() if k != "prep"}  # its own
  general = _general(row_sparse.topk(d, n, k, **options), rows, config)

  def measure(trained):
    found = []
    for sae in trained.saes:
      error = np.sum(
        np.square(
          np.asarray(sae.reconstruct(rows.held_out.x)) - rows.held_out.x
        ),
        axis=-1,
      )
      found.append(
        {
          "rare_error": float(error[is_rare].mean()),
          "mean_error": float(error.mean()),
        }
      )
    return found

  made = [
    arms.Arm(
      name=f"ssae {name} {seed}",
      make=lambda k_, seed=seed, t=t: specialised.ssae(
        general()[seed], t=t, relative=True, **tuning
      ),
      n=n,
      facts={"arm": f"ssae {name}", "seed": seed},
    )
    for name, t in (("tilted", 1.0), ("mean", 1e-6))
    for seed in range(config.seeds)
  ]
  points = arms.run(
    folder, made, rows, dataclasses.replace(config, seeds=1), measure=measure
  )
  claim = partial(
    Claim,
    recipe="ssae",
    paper="2411.00743",
    method="ssae tilted",
    against="ssae mean",
    data="planted rare domain",
    unit="difference of log error",
  )
  return points, [
    claim(
      claim="lower error on rows of the rare domain",
      compare=both(log_of("rare_error")),
      direction="lower",
    ),
    claim(
      claim="higher mean error",
      compare=both(log_of("mean_error")),
      direction="higher",
    ),
  ]


def _general(recipe, rows: arms.Rows, config: arms.StudyConfig) -> Callable:
  """The general SAEs that are finetuned, trained when first asked for."""
  trained: list[Sequence[Any]] = []

  def saes():
    if not trained:
      members = [fit.member(s) for s in range(config.seeds)]
      found, _, _ = fit.fit(
        recipe,
        arms.stream(rows.train, config),
        steps=config.steps,
        members=members,
      )
      trained.append(found)
    return trained[0]

  return saes


def ensembles(folder: pathlib.Path, config: arms.StudyConfig) -> Group:
  """Four members bagged and boosted, against one and against a wider SAE."""
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
  path = folder / "arms" / "ensembles.json"
  points = arms.kept(
    path,
    lambda: ensembling.Study(
      base=base,
      n=n,
      k=k,
      sizes=(1, size),
      replicates=config.seeds,
      rows=rows,
      config=config,
      folder=folder,
    ).run(),
  )
  named = lambda kind, claim, against, at: Claim(
    recipe=kind,
    paper="2505.16077",
    claim=claim,
    method=kind,
    against=against,
    compare=each(log_of("fvu", size=size), log_of("fvu", size=at)),
    direction="lower",
    data="planted",
  )
  return points, [
    named("bagging", "lower error than one member", "bagging", 1),
    named(
      "boosting",
      "lower error than one SAE as wide",
      ensembling.WIDER,
      size,
    ),
  ]


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
