"""Methods with nested reconstructions in the loss."""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack

from saejax.errors import InputError
from saejax.recipes import batch_sparse, common, limits, row_sparse
from saejax.sae import activations, initial, widened
from saejax.sae.sae import SAE
from saejax.training.parts import constraints, losses, nested_losses, rules
from saejax.training.recipe import Recipe, Term

FRACTIONS = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
MEASURES = {
  "row_normalised_mse": nested_losses.row_normalised_mse,
  "normalised_mse": losses.normalised_mse,
  "mse": losses.mse,
}


def matryoshka(
  d: int,
  n: int,
  k: float,
  *,
  prefixes: tuple[int, ...] | tuple[float, ...] = FRACTIONS,
  weights: tuple[float, ...] | None = None,
  sampled: int = 0,
  sampled_power: float = 0.5,
  sampled_shortest: int = 1,
  reduction: Literal["mean", "sum"] = "mean",
  bias_only: bool = True,
  sort_decay: float | None = None,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Matryoshka SAE: BatchTopK whose first m latents also reconstruct x alone.

      x_hat_m = sum_{i < m} z_i w_i + b_dec
      loss = sum_m c_m |x - x_hat_m|^2 / sum_m c_m + 1/8 AuxK

  summed over d, averaged over rows and over several m, the last of which is n.
  One selection serves all; AuxK is that of the whole code. Early latents become
  general, later ones special; `sae.truncate` cuts a small SAE out of a large
  one.

  Codes differ by a factor: the authors' averages over the prefixes and the bias
  alone (the default here), SAELens adds up (`reduction="sum"` without the
  bias), dictionary_learning averages prefixes of weight 1/G (sum, weights
  1/G^2). The sampled prefixes come from code with ReLU and L1; here they have
  BatchTopK, so that no controller of L0 is needed.

  Args:
    d: width of the activations.
    n: latents.
    k: mean number of active latents per row, which may be a fraction.
    prefixes: widths, increasing, the last n; or fractions of n for the groups
      between them, which sum to 1.
    weights: weights of the prefixes, 1 by default; not for sampled ones.
    sampled: number of prefixes whose widths are drawn anew at each step, n
      included, instead of `prefixes`; 10 in the code. 0 draws none.
    sampled_power: exponent of their distribution; below 1 favours short ones.
    sampled_shortest: minimum width of a sampled prefix.
    reduction: "mean" divides by the sum of the weights, "sum" does not.
    bias_only: count b_dec alone as one more prefix of weight 1.
    sort_decay: keep latents sorted by energy, averaged with this decay (0.95 in
      the code of sampled prefixes); None does not sort.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Bussmann et al., Learning Multi-Level Features with Matryoshka Sparse
    Autoencoders, 2025, arXiv:2503.17547.
  """
  limits.check_choice("reduction", reduction, ("mean", "sum"))
  base = batch_sparse.batchtopk(
    d, n, k, k_aux=k_aux, aux_weight=aux_weight, **options
  )
  if sampled:
    drawn = _sampled(sampled, sampled_power, sampled_shortest, n, weights)
    loss = nested_losses.sampled_prefixes(
      drawn, reduction=reduction, bias=bias_only
    )
  else:
    loss = _fixed(_widths(prefixes, n), weights, reduction, bias_only)
  sort = () if sort_decay is None else (_sort(sort_decay),)
  return _with_terms(
    base, "matryoshka", {"mse": Term(fn=loss)}, rules=(*base.rules, *sort)
  )


def _fixed(lengths, weights, reduction: str, bias_only: bool):
  """The loss of prefixes of given widths."""
  shares = _weights(weights, len(lengths))
  if bias_only:
    lengths, shares = (0, *lengths), (1.0, *shares)
  whole = sum(shares) if reduction == "mean" else 1.0
  shares = tuple(share / whole for share in shares)
  return nested_losses.prefixes(lengths, shares, order="latent")


def msae(
  d: int,
  n: int,
  *,
  levels: int | tuple[int, ...] = 64,
  weights: Literal["uniform", "reverse"] | tuple[float, ...] = "uniform",
  measure: Literal[
    "row_normalised_mse", "normalised_mse", "mse"
  ] = "row_normalised_mse",
  **options: Unpack[common.Options],
) -> Recipe:
  """MSAE: reconstructions from TopK of one encoding at several k.

      x_hat_k = relu(top_k(a)) W_dec + b_dec
      loss = sum_k c_k R(x, x_hat_k) / sum_k c_k

  R is |x - x_hat|^2 over |x - m|^2 of the same row, m the mean of all rows so
  far, averaged over rows; the authors' notes say that plain squares do better
  (measure "mse"). Decoder
  rows start at norm 0.1 and are held at 1 by moving their norms to the encoder.
  No penalty, no AuxK; gradients are clipped at norm 1. Their cap tanh(z / c) is
  off in their settings and not here. The SAE keeps every positive latent where
  n is a level (the default), else as many as the largest; set another TopK for
  fewer.

  Args:
    d: width of the activations.
    n: latents.
    levels: values of k, increasing; or the first, which is doubled while at
      most n, with n at the end.
    weights: "uniform"; "reverse", N, N-1, ..., 1 from the sparsest level on; or
      one for each level.
    measure: R: "row_normalised_mse", "normalised_mse" as in TopK, or "mse" for
      plain squares.
    **options: see `common.Options`.

  References:
    Zaigrajew et al., Interpreting CLIP with Hierarchical Sparse Autoencoders,
    2025, arXiv:2502.20578.
  """
  ks = _doubling(levels, n) if isinstance(levels, int) else tuple(levels)
  _check_levels("levels", ks, n)
  limits.check_choice("measure", measure, MEASURES)
  shares = _level_weights(weights, len(ks))
  rows = activations.TopK(ks[-1], ordered=True)
  keep = activations.ReLU() if ks[-1] == n else rows
  centred = measure == "row_normalised_mse"
  return common.compose(
    "msae",
    d,
    n,
    {"clip_norm": 1.0, **options},
    init=partial(initial.init, activation=keep, row_norm=0.1),
    terms={
      "levels": Term(
        fn=nested_losses.prefixes(
          ks, shares, order="value", measure=MEASURES[measure]
        ),
        after=centred,
      )
    },
    rules=(rules.DataMean(),) if centred else (),
    project=constraints.folded_norms,
  )


def _level_weights(
  weights: str | Sequence[float], count: int
) -> tuple[float, ...]:
  """Weights by name or as given, with sum 1."""
  named = {"uniform": None, "reverse": range(count, 0, -1)}
  if isinstance(weights, str):
    limits.check_choice("weights", weights, named)
  given = named[weights] if isinstance(weights, str) else weights
  shares = _weights(given, count)
  return tuple(share / sum(shares) for share in shares)


def hierarchical_topk(
  d: int,
  n: int,
  k: int,
  *,
  ranks: Literal["all", "powers"] | tuple[int, ...] = "all",
  weights: tuple[float, ...] | None = None,
  normalise_weights: bool = True,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """HierarchicalTopK: the errors of all prefixes of a TopK code at once.

      x_hat_j = b_dec + the j largest terms z_i w_i of the row
      loss = sum_{j in J} c_j |x - x_hat_j|^2 / (var(x) sum_{j in J} c_j)
             + 1/8 AuxK

  so that one SAE serves every k' <= k: set another TopK for fewer. Costs about
  one decode more than TopK whatever J is. The paper divides by nothing but |J|
  and d; var(x) is that of `row_sparse.topk`, which J = {k} is.

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    ranks: J: "all" of 1..k, "powers" of two below k and k, or a list that ends
      with k: latents beyond the last rank would be kept and never trained.
    weights: weights of the ranks in J, 1 by default.
    normalise_weights: whether to divide by their sum.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Balagansky et al., Train One Sparse Autoencoder Across Multiple Sparsity
    Budgets to Preserve Interpretability and Accuracy, 2025, arXiv:2505.24473.
  """
  base = row_sparse.topk(d, n, k, k_aux=k_aux, aux_weight=aux_weight, **options)
  chosen = _ranks(ranks, k)
  at = dict(zip(chosen, _weights(weights, len(chosen)), strict=True))
  loss = nested_losses.ranks(
    [at.get(j, 0.0) for j in range(1, k + 1)], normalise=normalise_weights
  )
  return _with_terms(
    base,
    "hierarchical_topk",
    {"nmse": Term(fn=loss)},
    activation=activations.TopK(k, ordered=True),
  )


def multi_topk(
  d: int,
  n: int,
  k: int,
  *,
  factor: int = 4,
  weight: float = 1 / 8,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Multi-TopK: the error at k and, with a smaller weight, at 4 k.

      loss = L(k) + L(4 k) / 8 + 1/8 AuxK,  L(k) = |x - x_hat_k|^2 / var(x)

  so that rows still make sense where more or fewer than k latents are kept. One
  pass keeps 4 k: its AuxK and its dead latents are those of 4 k, where OpenAI's
  code uses those of k. The inference form is TopK with k.

  Args:
    d: width of the activations.
    n: latents, at least factor k.
    k: active latents per row.
    factor: multiple of k, for the wider reconstruction.
    weight: weight of the wider reconstruction's error.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  limits.check_k(k, n)
  if not 2 <= factor <= n // k or factor != int(factor):
    rule = f"must be a whole number of at least 2, with factor k at most n={n}"
    raise InputError("factor", factor, rule, "lower k or raise n")
  limits.check_least("weight", weight, 0)
  return _with_terms(
    row_sparse.topk(d, n, k, k_aux=k_aux, aux_weight=aux_weight, **options),
    "multi_topk",
    {
      "nmse": Term(fn=nested_losses.at_k(k, losses.normalised_mse)),
      "nmse_wide": Term(fn=losses.normalised_mse, weight=weight),
    },
    activation=widened.Widened(k, factor),
    finish=_narrow,
  )


def _narrow(sae: SAE, stats, rows) -> SAE:
  """Converts `Widened` to its inference form, TopK with k."""
  del stats, rows
  wide: Any = sae.activation
  return sae.replace(activation=activations.TopK(wide.k))


def _with_terms(base: Recipe, name: str, terms, activation=None, **parts):
  """Replaces the terms of a recipe, and optionally its activation."""
  draw: Any = base.init
  if activation is not None:
    parts["init"] = partial(draw, activation=activation)
  return dataclasses.replace(
    base, name=name, terms={**base.terms, **terms}, **parts
  )


def _widths(prefixes: Sequence[int] | Sequence[float], n: int):
  """Lengths of prefixes from lengths, or from fractions of the groups."""
  lengths = tuple(prefixes)
  if any(isinstance(part, float) for part in lengths):
    if abs(sum(lengths) - 1) > 1e-6 or min(lengths) <= 0:
      raise InputError(
        "prefixes", lengths, "fractions must sum to 1", "such as 1/4, 3/4"
      )
    ends = itertools.accumulate(lengths)
    lengths = (*[round(n * end) for end in ends][:-1], n)
  _check_levels("prefixes", lengths, n)
  if lengths[-1] != n:
    raise InputError(
      "prefixes", lengths, f"the last must be n={n}", f"append {n}"
    )
  return lengths


def _check_levels(field: str, levels: Sequence[int], most: int) -> None:
  """Checks that levels are increasing integers in [1, most]."""
  rises = all(low < high for low, high in itertools.pairwise(levels))
  whole = all(isinstance(level, int) for level in levels)
  inside = levels and levels[0] >= 1 and levels[-1] <= most
  if not (rises and whole and inside):
    raise InputError(
      field,
      tuple(levels),
      f"must be whole numbers that increase within [1, {most}]",
      "sort them, drop repeats, or raise n",
    )


def _weights(weights, count: int) -> tuple[float, ...]:
  """Weights as given, or ones."""
  shares = (1.0,) * count if weights is None else tuple(map(float, weights))
  if len(shares) != count or min(shares) < 0 or not sum(shares) > 0:
    raise InputError(
      "weights",
      shares,
      f"must be {count} numbers of at least 0, not all 0",
      "pass one weight per prefix",
    )
  return shares


def _doubling(first: int, n: int) -> tuple[int, ...]:
  """first, 2 first, ... while at most n, and n."""
  if not 1 <= first <= n:
    raise InputError("levels", first, f"must be in [1, n={n}]", "such as 8")
  count = (n // first).bit_length()
  return tuple(dict.fromkeys([first * 2**i for i in range(count)] + [n]))


def _ranks(ranks: str | Sequence[int], k: int) -> tuple[int, ...]:
  """Ranks by name or as given, of which the last is k."""
  named = {"all": range(1, k + 1), "powers": _powers(k)}
  if isinstance(ranks, str):
    limits.check_choice("ranks", ranks, named)
  chosen = tuple(named[ranks] if isinstance(ranks, str) else ranks)
  _check_levels("ranks", chosen, k)
  if chosen[-1] != k:
    raise InputError("ranks", chosen, f"the last must be k={k}", "add k")
  return chosen


def _powers(k: int) -> tuple[int, ...]:
  """1, 2, 4, ... while below k, and k."""
  return _doubling(1, int(k))


def _sampled(
  count: int, power: float, shortest: int, n: int, weights
) -> nested_losses.Sampled:
  """Builds the distribution of widths; checks its settings."""
  if weights is not None:
    raise InputError(
      "weights",
      tuple(weights),
      "sampled prefixes have equal weights",
      "leave weights out",
    )
  limits.check_k(shortest, n, "sampled_shortest")
  if not power > 0:
    raise InputError("sampled_power", power, "must be above 0", "such as 0.5")
  if not 1 <= count <= n - shortest + 1:
    rule = f"must be in [1, {n - shortest + 1}] distinct widths"
    raise InputError("sampled", count, rule, "lower it")
  return nested_losses.Sampled(count=count, power=power, shortest=shortest)


def _sort(decay: float) -> nested_losses.SortByEnergy:
  if not 0 <= decay < 1:
    raise InputError("sort_decay", decay, "must be in [0, 1)", "such as 0.95")
  return nested_losses.SortByEnergy(decay)
