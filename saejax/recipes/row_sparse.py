"""Methods that bound or penalise the latents of each row on its own."""

from collections.abc import Callable
from functools import partial

import optax

from saejax.sae import activations, decoders, initial
from saejax.sae.prep import Identity, Prep
from saejax.training import constraints, losses, rules
from saejax.training.recipe import Recipe, Term, constant

# OpenAI's settings: an eps far below the size of SAE gradients.
adam = partial(optax.adam, b1=0.9, b2=0.999, eps=6.25e-10)


def topk(
  d: int,
  n: int,
  k: int,
  *,
  dead_after_tokens: int,
  prep: Prep = Identity(),
  k_aux: int | None = None,
  aux_capacity: int | None = None,
  aux_weight: float = 1 / 32,
  schedule: Callable = constant,
  clip_norm: float | None = None,
  ema_decay: float | None = None,
  dtype: str = "float32",
) -> Recipe:
  """TopK SAE: each row keeps its k largest pre-activations.

      loss = |x - x_hat|^2 / var(x) + 1/32 |e - e_hat|^2 / var(e)

  with e = x - x_hat held fixed and e_hat its reconstruction from the k_aux
  largest dead latents (AuxK). Decoder rows have unit norm.

  Args:
    d: width of the activations.
    n: latents.
    k: latents kept in a row.
    dead_after_tokens: silence after which a latent is dead.
    prep: of the activations.
    k_aux: dead latents kept in a row; the power of two nearest d/2 by default.
    aux_capacity: dead latents considered; n/16 by default.
    aux_weight: of the AuxK term.
    schedule: factor of the learning rate.
    clip_norm: largest global norm of the gradients.
    ema_decay: of the weight average.
    dtype: of matmul operands.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  tracker = rules.DeadTracker(dead_after_tokens)
  return Recipe(
    name="topk",
    init=partial(
      initial.tied,
      n=n,
      d=d,
      activation=activations.TopK(k),
      prep=prep,
      dtype=dtype,
    ),
    terms={
      "nmse": Term(fn=losses.normalised_mse),
      "aux": losses.aux_k(
        k_aux or losses.default_k_aux(d),
        tracker=tracker,
        capacity=aux_capacity or max(1, n // 16),
        weight=aux_weight,
      ),
    },
    gradient=constraints.without_parallel_gradient,
    project=constraints.unit_norm_decoder,
    rules=(tracker,),
    optimizer=adam,
    schedule=schedule,
    clip_norm=clip_norm,
    ema_decay=ema_decay,
  )


def relu_l1(
  d: int,
  n: int,
  *,
  coefficient: float,
  dead_after_tokens: int,
  prep: Prep = Identity(),
  decoder_norm: bool = False,
  schedule: Callable = constant,
  clip_norm: float | None = None,
  ema_decay: float | None = None,
  dtype: str = "float32",
) -> Recipe:
  """ReLU SAE with an L1 penalty on its latents.

      loss = |x - x_hat|^2 + coefficient sum_i |z_i| w_i

  summed over d and over latents, averaged over rows. w_i = 1 with decoder rows
  normalised in every forward pass, or w_i = |W_dec_i| with a free decoder.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: of the L1 term.
    dead_after_tokens: silence after which a latent counts as dead.
    prep: of the activations.
    decoder_norm: weight the penalty by the norms of a free decoder.
    schedule: factor of the learning rate.
    clip_norm: largest global norm of the gradients.
    ema_decay: of the weight average.
    dtype: of matmul operands.

  References:
    Cunningham et al., Sparse Autoencoders Find Highly Interpretable Features in
    Language Models, 2023, arXiv:2309.08600.
    Conerly et al., Update on how we train SAEs, Transformer Circuits, 2024.
  """
  penalty = losses.l1_decoder_norm if decoder_norm else losses.l1
  return Recipe(
    name="relu_l1",
    init=partial(
      initial.tied,
      n=n,
      d=d,
      activation=activations.ReLU(),
      decoder=decoders.Free if decoder_norm else decoders.Normalised,
      prep=prep,
      dtype=dtype,
    ),
    terms={
      "mse": Term(fn=losses.mse),
      "l1": Term(fn=penalty, weight=coefficient),
    },
    rules=(rules.DeadTracker(dead_after_tokens),),
    schedule=schedule,
    clip_norm=clip_norm,
    ema_decay=ema_decay,
  )
