"""Methods whose budget of latents is shared by the rows of a batch."""

from functools import partial
from typing import Unpack

from saejax.recipes import common
from saejax.sae import activations, budgets, initial
from saejax.training import finish, losses, rules
from saejax.training.recipe import Recipe, Term


def batchtopk(
  d: int,
  n: int,
  k: float,
  *,
  rate: float = 0.01,
  **options: Unpack[common.Options],
) -> Recipe:
  """BatchTopK SAE: the k B largest pre-activations of a batch of B rows.

      loss = |x - x_hat|^2 + 1/32 AuxK

  summed over d, averaged over rows. Afterwards a threshold, the running mean of
  the smallest value kept, takes the place of the selection, so that rows do not
  depend on each other. The paper averages over d; the threshold follows the
  later code of its authors.

  Args:
    d: width of the activations.
    n: latents.
    k: latents a row on average, which may be a fraction.
    rate: of the running threshold.
    **options: see `common.Options`.

  References:
    Bussmann et al., BatchTopK Sparse Autoencoders, 2024, arXiv:2412.06410.
  """
  common.check_k(k, n)
  activation = activations.Ranked(budgets.Constant(k), scope="batch")
  return common.compose(
    "batchtopk",
    d,
    n,
    options,
    init=partial(initial.tied, activation=activation),
    terms={"mse": Term(fn=losses.mse)},
    rules=(rules.ThresholdAverage(rate),),
    aux={},
    finish=finish.ToThreshold(),
  )
