"""Methods that bound or penalise the active latents of each row separately."""

from functools import partial
from typing import Unpack

import optax

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import (
  activations,
  budgets,
  decoders,
  encoders,
  groups,
  initial,
)
from saejax.training.parts import constraints, finish, losses
from saejax.training.recipe import Recipe, Term, unchanged


def topk(
  d: int,
  n: int,
  k: int,
  *,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """TopK SAE: each row keeps its k largest pre-activations.

      loss = |x - x_hat|^2 / var(x) + 1/8 |e - e_hat|^2 / var(e)

  with e = x - x_hat held fixed and e_hat its reconstruction from the k_aux
  largest dead latents (AuxK). Decoder rows have unit norm. In the paper k_aux is
  the power of two nearest d/2 and the weight 1/32: where k is small, more latents
  stay dead with these (benchmarks/README.md).

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  limits.check_k(k, n)
  return common.compose(
    "topk",
    d,
    n,
    options,
    init=partial(initial.init, activation=activations.TopK(k)),
    terms={"nmse": Term(fn=losses.normalised_mse)},
    aux=common.aux_k(k_aux, aux_weight, k),
  )


def relu_l1(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_warmup: float = 0.0,
  decoder_norm: bool = False,
  tied: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """ReLU SAE with an L1 penalty on its latents.

      loss = |x - x_hat|^2 + coefficient sum_i |z_i| w_i

  summed over d and over latents, averaged over rows. w_i = 1 with decoder rows
  normalised in every forward pass, or w_i = |W_dec_i| with a free decoder.
  The error of the paper's code is a mean over d: its coefficient times d is
  ours. By default the encoder is free, as in its second model, with a pre-bias
  and a b_dec that starts at the geometric median; `tied` is its main model.
  Latents that die stay dead: there is no AuxK, and no resampling.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of the L1 term.
    coefficient_warmup: fraction of the run in which it rises from 0.
    decoder_norm: weight the penalty by the norms of a free decoder.
    tied: encode with the decoder's rows, as used: z = relu(x W_dec^T + b_enc),
      x_hat = z W_dec, without b_dec.
    **options: see `common.Options`.

  References:
    Cunningham et al., Sparse Autoencoders Find Highly Interpretable Features in
    Language Models, 2023, arXiv:2309.08600.
    Conerly et al., Update on how we train SAEs, Transformer Circuits, 2024.
  """
  fn = losses.l1_decoder_norm if decoder_norm else losses.l1
  return common.compose(
    "relu_l1",
    d,
    n,
    options,
    init=partial(
      initial.init,
      activation=activations.ReLU(),
      encoder=encoders.tied if tied else initial.affine,
      decoder=decoders.Free if decoder_norm else decoders.Normalised,
      pre_bias=not tied,
      centre=not tied,
    ),
    terms={
      "mse": Term(fn=losses.mse),
      "l1": common.penalty(fn, coefficient, coefficient_warmup, options),
    },
    swept="coefficient",
    unit_norm=False,
    transcodes=not tied,
    gradient=constraints.without_decoder_bias if tied else unchanged,
  )


def k_sparse(
  d: int,
  n: int,
  k: int,
  *,
  anneal: float = 0.5,
  k_start: int | None = None,
  alpha: float = 1.0,
  **options: Unpack[common.Options],
) -> Recipe:
  """k-sparse autoencoder: tied weights, and top-k as the only non-linearity.

      u = x W^T + b;   z = u on the k largest of u, else 0;   x_hat = z W + b_dec
      loss = |x - x_hat|^2

  summed over d, averaged over rows. Values that are kept may be negative, and
  rows of W have any norm. k falls from `k_start` in a straight line, so that
  every latent learns before few are kept. Afterwards alpha k are kept.
  Its codes of pictures made of strokes classified better than those of random
  weights, by 0.14 in accuracy (n 128, k 8).

  Stochastic gradient descent with momentum 0.9 and weights from N(0, 0.01^2)
  are the paper's from memory; there is no code.

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row, at the end of the annealing.
    anneal: fraction of the run in which k falls, half of it in the paper.
    k_start: active latents per row at step 0; n by default.
    alpha: factor of k after training, at least 1.
    **options: see `common.Options`.

  Raises:
    InputError: alpha k is outside [k, n], or another argument is out of range.

  References:
    Makhzani and Frey, k-Sparse Autoencoders, 2013, arXiv:1312.5663.
  """
  limits.check_k(k, n)
  limits.check_k(n if k_start is None else k_start, n, "k_start")
  if not 1 <= alpha <= n / k:
    raise InputError("alpha", alpha, f"must be in [1, n/k={n / k:g}]", "use 1")
  steps = max(1, common.duration("anneal", anneal, options))
  budget = budgets.Annealed(k, k_start or n, steps)
  return common.compose(
    "k_sparse",
    d,
    n,
    {"clip_norm": None, **options},
    init=partial(
      initial.init,
      activation=activations.Ranked(budget, keep="signed"),
      encoder=encoders.tied,
      row_norm=0.01 * d**0.5,
      pre_bias=False,
      centre=False,
    ),
    terms={"mse": Term(fn=losses.mse)},
    optimizer=partial(optax.sgd, momentum=0.9),
    unit_norm=False,
    transcodes=False,
    finish=finish.ToTopK(alpha, keep="signed"),
  )


def abstopk(
  d: int,
  n: int,
  k: int,
  *,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """AbsTopK SAE: the k pre-activations of largest size, with their signs.

      loss = |x - x_hat|^2 + 1/8 |e - e_hat|^2

  with e = x - x_hat held fixed and e_hat its reconstruction from the k_aux dead
  latents of largest |a|, signed. One latent codes both ends of an axis. The
  paper has no AuxK; a port of its code has this one, with a factor of 1 and
  less where few are dead. Nor has it a pre-bias: here b_dec is subtracted and
  starts at the geometric median. `batch_sparse.batchtopk` with `signed` shares
  the k among the rows of a batch.

  Where features come with both signs n latents explain what a TopK explains
  with 2 n (variance 0.83 and 0.83; d 16, n 32, k 3). On activations of MiniLM
  they do not (docs/methods.md).

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Zhu, Khalili and Zhu, AbsTopK: Rethinking Sparse Autoencoders For
    Bidirectional Features, 2025, arXiv:2510.00404.
  """
  limits.check_k(k, n)
  kept = {"score": "magnitude", "keep": "signed"}
  return common.compose(
    "abstopk",
    d,
    n,
    options,
    init=partial(initial.init, activation=activations.TopK(k, **kept)),
    terms={"mse": Term(fn=losses.mse)},
    aux=common.aux_k(k_aux, aux_weight, k, normalised=False, **kept),
    optimizer=partial(common.adam, b2=0.99),
  )


def group_max(
  d: int,
  n: int,
  k: int,
  *,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """GroupMax SAE: the largest of each of k contiguous groups, then ReLU.

  The loss is that of `topk`. Latents of one group never fire together.

  Args:
    d: width of the activations.
    n: latents.
    k: number of groups, a divisor of n.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  Raises:
    InputError: k does not divide n.

  References:
    EleutherAI, sparsify, activation "groupmax".
  """
  limits.check_k(k, n)
  if n % k:
    raise InputError("k", k, f"groups must divide n={n}", "change k or n")
  return common.compose(
    "group_max",
    d,
    n,
    options,
    init=partial(initial.init, activation=groups.GroupMax(k)),
    terms={"nmse": Term(fn=losses.normalised_mse)},
    aux=common.aux_k(k_aux, aux_weight, k),
  )
