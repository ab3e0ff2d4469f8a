"""The table of methods: name, function, paper, and the argument that sweeps L0.

The arguments of a method are those of its function (`recipes.arguments`).
Boosting and transcoding are not separate methods: any recipe is a boosting
stage with the option `residual_of`, and a transcoder with the option `target`.
"""

import dataclasses
from collections.abc import Callable, Mapping

from saejax.recipes import (
  batch_sparse,
  bias_adaptation,
  budgets,
  circuits,
  conditioned,
  contrastive,
  factored,
  nested,
  regularised,
  row_sparse,
  several,
  specialised,
  stochastic,
  thresholds,
)
from saejax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A method in the table.

  Attributes:
    make: the recipe's function.
    paper: arXiv id, or name where there is none.
    family: name of the group of methods that vary the same part.
    sweeps: argument that changes L0; empty if there is none.
    rate: peak learning rate relative to methods with Adam; scripts and studies
      multiply their learning rate by it.
  """

  make: Callable[..., Recipe]
  paper: str
  family: str
  sweeps: str
  rate: float = 1.0


def _line(make, paper: str, family: str, sweeps: str, rate: float = 1.0):
  return Method(make=make, paper=paper, family=family, sweeps=sweeps, rate=rate)


# Gradient descent of k_sparse on rows of mean square norm 1 needs 100 times
# Adam's rate.
METHODS: Mapping[str, Method] = {
  "topk": _line(row_sparse.topk, "2406.04093", "row", "k"),
  "k_sparse": _line(row_sparse.k_sparse, "1312.5663", "row", "k", rate=100.0),
  "abstopk": _line(row_sparse.abstopk, "2510.00404", "row", "k"),
  "group_max": _line(row_sparse.group_max, "sparsify", "row", "k"),
  "relu_l1": _line(
    row_sparse.relu_l1, "2309.08600", "penalised", "coefficient"
  ),
  "jumprelu": _line(
    thresholds.jumprelu, "2407.14435", "penalised", "coefficient"
  ),
  "gated": _line(thresholds.gated, "2404.16014", "penalised", "coefficient"),
  "gemma_scope": _line(
    thresholds.gemma_scope, "2408.05147", "penalised", "coefficient"
  ),
  "llama_scope": _line(thresholds.llama_scope, "2410.20526", "row", "k"),
  "batchtopk": _line(batch_sparse.batchtopk, "2412.06410", "batch", "k"),
  "feature_choice": _line(
    batch_sparse.feature_choice, "2411.02124", "batch", "k"
  ),
  "mc_then_fc": _line(batch_sparse.mc_then_fc, "2411.02124", "batch", "k"),
  "gba": _line(bias_adaptation.gba, "2506.14002", "biases", "htf"),
  "ba": _line(bias_adaptation.ba, "2506.14002", "biases", "frequency"),
  "matryoshka": _line(nested.matryoshka, "2503.17547", "nested", "k"),
  "msae": _line(nested.msae, "2502.20578", "nested", "levels"),
  "hierarchical_topk": _line(
    nested.hierarchical_topk, "2505.24473", "nested", "k"
  ),
  "multi_topk": _line(nested.multi_topk, "2406.04093", "nested", "k"),
  "kronsae": _line(factored.kronsae, "2505.22255", "factored", "k"),
  "ortsae": _line(regularised.ortsae, "2509.22033", "factored", "k"),
  "ra_sae": _line(regularised.ra_sae, "2502.12892", "factored", "k"),
  "topafa": _line(budgets.topafa, "top-AFA", "budgets", ""),
  "adaptivek": _line(budgets.adaptivek, "2508.17320", "budgets", "max_k"),
  "vsae": _line(stochastic.vsae, "vSAE", "stochastic", "k"),
  "topk_l2": _line(stochastic.topk_l2, "vSAE", "stochastic", "k"),
  "atm": _line(stochastic.atm, "2510.08855", "stochastic", "coefficient"),
  "mfr": _line(several.mfr, "2411.01220", "several", "k"),
  "ssae": _line(specialised.ssae, "2411.00743", "finetuned", "coefficient"),
  "csae": _line(contrastive.csae, "2406.04028", "paired", "sparsity"),
  "tide": _line(conditioned.tide, "2503.07050", "conditioned", "k"),
  "layergroup": _line(conditioned.layergroup, "2410.21508", "conditioned", "k"),
  "circuit_codes": _line(
    circuits.circuit_codes, "2405.12522", "penalised", "coefficient"
  ),
}
