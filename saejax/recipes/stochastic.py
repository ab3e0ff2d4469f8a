"""Methods that are stochastic in training, and a control."""

from functools import partial
from typing import Literal, Unpack

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import (
  activations,
  budgets,
  decoders,
  gaussian,
  initial,
  masking,
)
from saejax.training.parts import finish, importance, kl, losses
from saejax.training.recipe import Recipe, Term, as_trained

# The latents penalised, the activation in training and that of the inference
# form. `Ranked` selects as `TopK` does and keeps all pre-activations.
PENALISED = {
  "kept": (losses.l2, activations.TopK, as_trained),
  "all": (
    losses.l2_before_selection,
    lambda k: activations.Ranked(budgets.Constant(k)),
    finish.ToTopK(),
  ),
}


def vsae(
  d: int,
  n: int,
  k: int,
  *,
  coefficient: float = 0.5,
  kl_warmup: float = 0.1,
  posterior: Literal["none", "fixed", "learned"] = "none",
  masked: bool = False,
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """Variational TopK SAE: the k largest |z|, drawn from a Gaussian posterior.

      loss = |x - x_hat|^2 + coefficient KL + 1/8 AuxK

  summed over d, over latents, and averaged over rows. See `sae.gaussian` for
  the posteriors. With "none", which is what the paper's configurations ran,
  nothing is drawn and the method is TopK with a penalty on the square of every
  latent. There is no pre-bias and the decoder's rows, at norm 0.1 first, are
  free; b_dec starts at the geometric median, in the paper's code at 0.
  Gradients are clipped at norm 1 unless the options say otherwise.

  A larger coefficient lowers the means and kills latents, though not
  monotonically: at 0, 0.1, 1 and 10 the mean squares of a small run were 4.9,
  1.3, 0.35 and 0.07, with 0, 9, 47 and 44 % dead latents (n 32, no AuxK).

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    coefficient: weight of the divergence; 0.5 in the paper's configuration, 500
      in the defaults of its code. It scales with the norm of the rows.
    kl_warmup: fraction of the run in which the coefficient rises from 0.
    posterior: "none", "fixed" or "learned".
    masked: whether the divergence sums over active latents only.
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Analysis of Variational Sparse Autoencoders, 2025.
  """
  limits.check_k(k, n)
  limits.check_choice("posterior", posterior, gaussian.POSTERIORS)
  kept = {"score": "magnitude", "keep": "signed"}
  divergence = common.penalty(
    kl.masked_kl if masked else kl.kl,
    coefficient,
    kl_warmup,
    options,
    names=("coefficient", "kl_warmup"),
  )
  return common.compose(
    "vsae",
    d,
    n,
    {"clip_norm": 1.0, **options},
    init=partial(
      gaussian.init,
      posterior=posterior,
      activation=activations.TopK(k, **kept),
      row_norm=0.1,
      pre_bias=False,
    ),
    terms={"mse": Term(fn=losses.mse), "kl": divergence},
    swept="coefficient",
    aux=common.aux_k(k_aux, aux_weight, k, **kept),
    unit_norm=False,
  )


def topk_l2(
  d: int,
  n: int,
  k: int,
  *,
  coefficient: float = 0.01,
  over: Literal["kept", "all"] = "kept",
  k_aux: int | None = None,
  aux_weight: float = common.AUX_WEIGHT,
  **options: Unpack[common.Options],
) -> Recipe:
  """TopK with a penalty on the squares of its latents, a control for `vsae`.

      loss = |x - x_hat|^2 + coefficient |z|^2 + 1/8 AuxK

  summed over d and over latents, averaged over rows. Over "all" latents z is
  relu(a) before the selection: `vsae` with posterior "none" and twice the
  coefficient has that penalty too. A later version of the paper's control is
  of that kind.

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row.
    coefficient: weight of the penalty.
    over: which latents are penalised, those "kept" or "all".
    k_aux: dead latents revived per row; by default k.
    aux_weight: weight of the AuxK term; 0 leaves it out.
    **options: see `common.Options`.

  References:
    Analysis of Variational Sparse Autoencoders, 2025.
  """
  limits.check_k(k, n)
  limits.check_choice("over", over, PENALISED)
  fn, activation, end = PENALISED[over]
  return common.compose(
    "topk_l2",
    d,
    n,
    options,
    init=partial(initial.init, activation=activation(k)),
    terms={"mse": Term(fn=losses.mse), "l2": common.penalty(fn, coefficient)},
    swept="coefficient",
    aux=common.aux_k(k_aux, aux_weight, k),
    finish=end,
  )


def atm(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_warmup: float = 0.0,
  c: float = 0.0,
  r: float = 1.0,
  decay: float = 0.99,
  weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3),
  mask_start: float = 0.2,
  per_row: bool = False,
  deterministic: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """Adaptive temporal masking: masks unimportant latents at random.

      loss = |x - x_hat|^2 + coefficient sum_i z_i,   z = relu(a) m

  summed over d and over latents, averaged over rows; m_i = 0 with a probability
  that falls with the latent's running importance, see
  `training.parts.importance`. Decoder rows are normalised in every forward
  pass. There is no code; beyond the form of that probability the definitions
  are ours.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of the L1 term.
    coefficient_warmup: fraction of the run in which it rises from 0.
    c: threshold of the probability, in deviations above the mean importance.
    r: steepness of the probability; 0 never masks.
    decay: decay of the running importance.
    weights: weights of a latent's size, rate and need in its importance.
    mask_start: fraction of the run before the first step that masks.
    per_row: draw a mask for each row instead of each batch.
    deterministic: leave latents out for good that end masked half of the time
      or more; by default all are kept in use.
    **options: see `common.Options`.

  Raises:
    InputError: decay, weights or another argument is out of range.

  References:
    Time-Aware Feature Selection: Adaptive Temporal Masking for Stable Sparse
    Autoencoder Training, 2025, arXiv:2510.08855.
  """
  limits.check_least("r", r, 0)
  limits.check_finite("c", c)
  if not 0 <= decay < 1:
    raise InputError("decay", decay, "must be in [0, 1)", "such as 0.99")
  if len(weights) != 3 or min(weights) < 0 or not sum(weights) > 0:
    rule = "must be three numbers of at least 0, not all 0"
    raise InputError("weights", weights, rule, "such as 1/3 each")
  start_step = common.duration("mask_start", mask_start, options)
  return common.compose(
    "atm",
    d,
    n,
    options,
    init=partial(
      initial.init,
      activation=masking.RandomMask(per_row),
      decoder=decoders.Normalised,
    ),
    terms={
      "mse": Term(fn=losses.mse),
      "l1": common.penalty(losses.l1, coefficient, coefficient_warmup, options),
    },
    swept="coefficient",
    rules=(
      importance.Importance(
        c=c, r=r, decay=decay, weights=tuple(weights), start_step=start_step
      ),
    ),
    unit_norm=False,
    finish=importance.WithoutMasked() if deterministic else as_trained,
  )
