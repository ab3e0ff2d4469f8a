"""Every method that trains on rows of one site, under one signature.

Experiments and scripts choose from this table by name; a recipe's own function
has the settings that are fixed here. Methods that need rows of another kind
(pairs, layers, a target, heads of a model) are not in it: `recipes.contrastive`,
`conditioned`, `specialised`, `circuits`, `several`.

Coefficients are for rows of mean square norm 1 (prep "centre_scale"). The
schedule of the learning rate and the clipping of gradients are the run's, alike
for all methods: those of Gemma Scope and Llama Scope are their recipes' own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from saejax.recipes import (
  batch_sparse,
  bias_adaptation,
  budgets,
  common,
  factored,
  nested,
  regularised,
  row_sparse,
  stochastic,
  thresholds,
)
from saejax.training.parts import sparsity
from saejax.training.parts.bias_rule import targets
from saejax.training.recipe import Recipe

K, COEFFICIENT, NOTHING = "k", "coefficient", "nothing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What a recipe may need to know of a run.

  Attributes:
    d: width of the rows.
    n: latents.
    steps: of the run.
    options: that all recipes take.
    batch_rows: rows a batch, for methods whose budgets depend on it.
  """

  d: int
  n: int
  steps: int
  options: common.Options
  batch_rows: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A line of the table.

  Attributes:
    family: of methods that vary the same part.
    paper: arXiv id, or name where there is none.
    make: from a setting and k to the recipe.
    sweeps: what moves L0: "k", "coefficient", or "nothing".
    coefficients: of the swept term, that reach L0 of about 5 to 60.
    rate: peak learning rate over that of Adam's methods; scripts and studies
      multiply theirs by it.
  """

  family: str
  paper: str
  make: Callable[[Setting, int], Recipe]
  sweeps: str = K
  coefficients: tuple[float, ...] = (1.0,)
  rate: float = 1.0


def _of(recipe: Callable[..., Recipe], **fixed: Any):
  """A recipe of d, n and k as a function of a setting and k."""
  return lambda s, k: recipe(s.d, s.n, k, **fixed, **s.options)


def _jumprelu(penalty: Callable[[int], sparsity.Penalty], coefficient: float):
  """JumpReLU with thresholds and a window that short runs can move."""
  return lambda s, k: thresholds.jumprelu(
    s.d,
    s.n,
    coefficient=coefficient,
    penalty=penalty(k),
    coefficient_steps=max(1, s.steps // 10),
    theta=0.03,
    eps=0.03,
    **s.options,
  )


def _gba(s: Setting, k: int) -> Recipe:
  """Targets over a factor of 50 that let k latents fire on a row."""
  falling = targets(8, 1.0, 1 / 50)
  htf = min(k / (s.n * sum(falling) / len(falling)), 0.9)
  made = bias_adaptation.gba(
    s.d, s.n, groups=8, every=5, htf=htf, ltf=htf / 50, **s.options
  )
  return dataclasses.replace(made, static_k=True)


def _msae(s: Setting, k: int) -> Recipe:
  """Levels that end at k."""
  levels = tuple(sorted({max(1, k // 4), max(1, k // 2), k}))
  made = nested.msae(s.d, s.n, levels=levels, **s.options)
  return dataclasses.replace(made, static_k=True)


def _feature_choice(budget: str):
  """Feature Choice, refused where batches have too few rows."""
  return lambda s, k: batch_sparse.feature_choice(
    s.d, s.n, k, budget=budget, batch_rows=s.batch_rows, **s.options
  )


METHODS: dict[str, Method] = {
  "topk": Method(family="row", paper="2406.04093", make=_of(row_sparse.topk)),
  "k_sparse": Method(
    family="row",
    paper="1312.5663",
    make=lambda s, k: row_sparse.k_sparse(
      s.d, s.n, k, anneal_steps=max(1, s.steps // 2), **s.options
    ),
    rate=200.0,  # gradient descent on rows of this size
  ),
  "abstopk": Method(
    family="row", paper="2510.00404", make=_of(row_sparse.abstopk)
  ),
  "group_max": Method(
    family="row", paper="sparsify", make=_of(row_sparse.group_max)
  ),
  "relu_l1": Method(
    family="penalised",
    paper="2309.08600",
    make=lambda s, k: row_sparse.relu_l1(
      s.d, s.n, coefficient=0.05, **s.options
    ),
    sweeps=COEFFICIENT,
    coefficients=(0.5, 1.0, 2.0, 4.0, 8.0),
  ),
  "jumprelu_l0": Method(
    family="penalised",
    paper="2407.14435",
    make=_jumprelu(lambda k: sparsity.l0, 1e-3),
    sweeps=COEFFICIENT,
    coefficients=(1.0, 3.0, 10.0, 30.0),
  ),
  "jumprelu_target": Method(
    family="penalised",
    paper="2407.14435",
    make=_jumprelu(lambda k: sparsity.l0_target(max(k, 1)), 1.0),
  ),
  "gated": Method(
    family="penalised",
    paper="2404.16014",
    make=lambda s, k: thresholds.gated(s.d, s.n, coefficient=0.05, **s.options),
    sweeps=COEFFICIENT,
    coefficients=(0.5, 1.0, 2.0, 4.0, 8.0),
  ),
  "gemma_scope": Method(
    family="penalised",
    paper="2408.05147",
    make=lambda s, k: thresholds.gemma_scope(
      s.d,
      s.n,
      coefficient=1e-3,
      coefficient_steps=max(1, s.steps // 5),
      theta=0.03,
      eps=0.03,
      **s.options,
    ),
    sweeps=COEFFICIENT,
    coefficients=(1.0, 3.0, 10.0, 30.0),
  ),
  "llama_scope": Method(
    family="row",
    paper="2410.20526",
    make=lambda s, k: thresholds.llama_scope(
      s.d, s.n, k, steps=s.steps, **s.options
    ),
  ),
  "batchtopk": Method(
    family="batch", paper="2412.06410", make=_of(batch_sparse.batchtopk)
  ),
  "mutual_choice_zipf": Method(
    family="batch",
    paper="2411.02124",
    make=_of(batch_sparse.batchtopk, aux="zipf"),
  ),
  "feature_choice": Method(
    family="batch", paper="2411.02124", make=_feature_choice("uniform")
  ),
  "feature_choice_zipf": Method(
    family="batch", paper="2411.02124", make=_feature_choice("zipf")
  ),
  "mc_then_fc": Method(
    family="batch",
    paper="2411.02124",
    make=lambda s, k: batch_sparse.mc_then_fc(
      s.d, s.n, k, steps=s.steps, batch_rows=s.batch_rows, **s.options
    ),
  ),
  "gba": Method(
    family="biases",
    paper="2506.14002",
    make=_gba,
  ),
  "matryoshka": Method(
    family="nested", paper="2503.17547", make=_of(nested.matryoshka)
  ),
  "msae": Method(
    family="nested",
    paper="2502.20578",
    make=_msae,
  ),
  "hierarchical_topk": Method(
    family="nested", paper="2505.24473", make=_of(nested.hierarchical_topk)
  ),
  "multi_topk": Method(
    family="nested", paper="2406.04093", make=_of(nested.multi_topk)
  ),
  "kronsae": Method(
    family="factored", paper="2505.22255", make=_of(factored.kronsae)
  ),
  "ortsae": Method(
    family="factored",
    paper="2509.22033",
    make=_of(regularised.ortsae, every=1),
  ),
  "ra_sae": Method(
    family="factored",
    paper="2502.12892",
    make=lambda s, k: regularised.ra_sae(s.d, s.n, k, points=s.n, **s.options),
  ),
  "topafa": Method(
    family="budgets",
    paper="top-AFA",
    make=lambda s, k: budgets.topafa(s.d, s.n, **s.options),
    sweeps=NOTHING,
  ),
  "adaptivek": Method(
    family="budgets",
    paper="2508.17320",
    make=lambda s, k: budgets.adaptivek(
      s.d,
      s.n,
      steps=s.steps,
      min_k=max(1, k // 4),
      max_k=2 * k - max(1, k // 4),
      l1_weight=0.005 / s.d,
      **s.options,
    ),
  ),
  "vsae": Method(
    family="stochastic",
    paper="vSAE",
    make=lambda s, k: stochastic.vsae(
      s.d,
      s.n,
      k,
      coefficient=1e-4,
      warmup_steps=max(1, s.steps // 10),
      posterior="learned",
      **s.options,
    ),
  ),
  "topk_l2": Method(
    family="stochastic", paper="vSAE", make=_of(stochastic.topk_l2)
  ),
  "atm": Method(
    family="stochastic",
    paper="2510.08855",
    make=lambda s, k: stochastic.atm(
      s.d, s.n, coefficient=0.05, start_step=s.steps // 5, **s.options
    ),
    sweeps=COEFFICIENT,
    coefficients=(0.5, 1.0, 2.0, 4.0, 8.0),
  ),
}


def recipe(name: str, setting: Setting, k: int = 0) -> Recipe:
  """The recipe of a name."""
  return METHODS[name].make(setting, k)
