"""Methods whose budget of active latents is shared by the rows of a batch.

They differ in the scope of the selection. TopK selects k latents per row;
Mutual Choice, another name of BatchTopK, the k B largest pre-activations of the
batch; Feature Choice a number of rows per latent.
"""

from functools import partial
from typing import Literal, Unpack

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import activations, budgets, initial
from saejax.training.parts import density, finish, losses, rules
from saejax.training.recipe import Recipe, Term


def batchtopk(
  d: int,
  n: int,
  k: float,
  *,
  aux: Literal["dead", "zipf"] = "dead",
  signed: bool = False,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """BatchTopK SAE: the k B largest pre-activations of a batch of B rows.

      loss = |x - x_hat|^2 + 1/8 AuxK

  summed over d, averaged over rows. After training a threshold replaces the
  selection, so that rows are independent: the one with a mean of k active
  latents per row on 32,768 training rows. The paper averages over d; its
  authors' later code uses a running mean of the smallest value kept, whose time
  constant is longer than short runs. Their Adam has b2 = 0.99 and b_dec starts
  at 0; here both are as in `row_sparse.topk`. With aux "zipf" this is Mutual
  Choice.

  Args:
    d: width of the activations.
    n: latents.
    k: mean number of active latents per row, which may be a fraction.
    aux: which latents AuxK revives, "dead" or "zipf": see `feature_choice`.
    signed: rank |a| and keep a with its sign, as `row_sparse.abstopk` does.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Bussmann et al., BatchTopK Sparse Autoencoders, 2024, arXiv:2412.06410.
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """
  return _allotted(
    "batchtopk",
    d,
    n,
    k,
    options,
    activation=activations.Ranked(
      budgets.Constant(k), scope="batch", **_kept(signed)
    ),
    aux=aux,
    signed=signed,
    k_aux=k_aux,
    aux_weight=aux_weight,
  )


def feature_choice(
  d: int,
  n: int,
  k: float,
  *,
  budget: Literal["uniform", "zipf"] = "uniform",
  alpha: float = 1.0,
  beta: float = 5.0,
  aux: Literal["dead", "zipf"] = "dead",
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Feature Choice SAE: latent i keeps its m_i largest of the batch's B rows.

      sum_i m_i = k B;    uniform: m_i = k B / n;    zipf: m_i ~ 1 / (i + beta)
      loss = |x - x_hat|^2 + 1/8 AuxK

  summed over d, averaged over rows; m_i is clipped to [1, B]. Every latent that
  is positive on some row fires in training. After training each latent has its
  own threshold, which keeps its share m_i / B of 32,768 training rows: count
  dead latents with those.

  The paper's text and code were unavailable. Its zipf budgets follow the rank
  of each latent's density; without a phase that measures it, ranks are indices.
  Aux "zipf" revives latents rarer than their rank's share, not only dead ones
  (`density.underused`, after `dead_after_tokens`).

  Args:
    d: width of the activations.
    n: latents.
    k: mean number of active latents per row, which may be a fraction.
    budget: rows of each latent, "uniform" or "zipf".
    alpha, beta: of the zipf law, m_i ~ 1 / (rank_i + beta)^alpha.
    aux: which latents AuxK revives, "dead" or "zipf".
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`; batch_rows below n / k, which leave
      latents without a row, are refused where they are given.

  References:
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """
  share = _share(n, k, budget, alpha, beta, options)
  return _allotted(
    "feature_choice",
    d,
    n,
    k,
    options,
    activation=activations.Ranked(share, scope="column"),
    shares=rules.ColumnShares(share),
    aux=aux,
    law=(alpha, beta),
    k_aux=k_aux,
    aux_weight=aux_weight,
  )


def mc_then_fc(
  d: int,
  n: int,
  k: float,
  *,
  phases: tuple[float, float] = (0.8, 0.2),
  budget: Literal["uniform", "zipf"] = "zipf",
  alpha: float = 1.0,
  beta: float = 5.0,
  aux: Literal["dead", "zipf"] = "zipf",
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Mutual Choice, then Feature Choice.

  With Feature Choice from the start latents compete for the same rows. The
  first phase measures each latent's density; from the switch on the rank is
  fixed and sets the budget. Thresholds are those of the second phase.

  Args:
    d: width of the activations.
    n: latents.
    k: mean number of active latents per row, which may be a fraction.
    phases: fractions of the run, which sum to 1.
    budget: rows of each latent in the second phase, "uniform" or "zipf".
    alpha, beta: of the zipf law, m_i ~ 1 / (rank_i + beta)^alpha.
    aux: which latents AuxK revives, "dead" or "zipf".
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `feature_choice`.

  References:
    Ayonrinde, Adaptive Sparse Allocation with Mutual Choice & Feature Choice
    Sparse Autoencoders, 2024, arXiv:2411.02124.
  """
  (switch,) = common.switches(phases, common.run_steps(options, "phases"))
  share = _share(n, k, budget, alpha, beta, options)
  return _allotted(
    "mc_then_fc",
    d,
    n,
    k,
    options,
    activation=activations.Phased(
      activations.Ranked(budgets.Constant(k), scope="batch"),
      activations.Ranked(share, scope="column"),
      switch,
    ),
    shares=rules.ColumnShares(share, start_step=switch),
    aux=aux,
    law=(alpha, beta),
    freeze_step=switch,
    k_aux=k_aux,
    aux_weight=aux_weight,
  )


def _share(n, k, budget, alpha, beta, options) -> budgets.Zipf:
  """Builds the budget; uniform is the zipf law with alpha 0."""
  limits.check_mean_k(k, n)
  limits.check_choice("budget", budget, ("uniform", "zipf"))
  limits.check_least("alpha", alpha, 0)
  if not beta > -1:
    raise InputError("beta", beta, "must be above -1", "such as 5")
  if "batch_rows" in options:
    budgets.check_rows(k, n, options["batch_rows"])
  return budgets.Zipf(k, alpha if budget == "zipf" else 0.0, beta)


def _allotted(
  name: str,
  d: int,
  n: int,
  k: float,
  options: common.Options,
  *,
  activation: activations.Activation,
  aux: str,
  k_aux: int | None,
  aux_weight: float,
  shares: rules.ColumnShares | None = None,
  law: tuple[float, float] = (1.0, 5.0),
  freeze_step: int = 0,
  signed: bool = False,
) -> Recipe:
  """A method that selects over the batch: the error, AuxK, thresholds."""
  limits.check_mean_k(k, n)
  limits.check_choice("aux", aux, ("dead", "zipf"))
  moving, among = (() if shares is None else (shares,)), _kept(signed)
  if freeze_step or aux == "zipf":
    moving = (density.Density(freeze_step=freeze_step), *moving)
  if aux == "zipf":
    alpha, beta = law
    rare = density.underused(
      options["dead_after_tokens"], k, alpha=alpha, beta=beta
    )
    moving, among = (*moving, rare), {**among, "among": rare}
  return common.compose(
    name,
    d,
    n,
    options,
    init=partial(initial.init, activation=activation),
    terms={"mse": Term(fn=losses.mse)},
    rules=moving,
    aux=common.aux_k(k_aux, aux_weight, k, **among),
    finish=finish.to_jumprelu
    if shares is None
    else finish.to_column_thresholds,
  )


def _kept(signed: bool) -> dict[str, str]:
  """Score and kept value of the activation, see `sae.activations`."""
  if signed:
    return {"score": "magnitude", "keep": "signed"}
  return {"score": "value", "keep": "relu"}
