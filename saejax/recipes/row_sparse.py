"""Methods that bound or penalise the latents of each row on its own."""

from functools import partial
from typing import Unpack

from saejax.recipes import common
from saejax.sae import activations, decoders, initial
from saejax.training import losses
from saejax.training.recipe import Recipe, Term


def topk(d: int, n: int, k: int, **options: Unpack[common.Options]) -> Recipe:
  """TopK SAE: each row keeps its k largest pre-activations.

      loss = |x - x_hat|^2 / var(x) + 1/32 |e - e_hat|^2 / var(e)

  with e = x - x_hat held fixed and e_hat its reconstruction from the k_aux
  largest dead latents (AuxK). Decoder rows have unit norm.

  Args:
    d: width of the activations.
    n: latents.
    k: latents kept in a row.
    **options: see `common.Options`.

  References:
    Gao et al., Scaling and evaluating sparse autoencoders, 2024,
    arXiv:2406.04093.
  """
  common.check_k(k, n)
  return common.compose(
    "topk",
    d,
    n,
    options,
    init=partial(initial.tied, activation=activations.TopK(k)),
    terms={"nmse": Term(fn=losses.normalised_mse)},
    aux={},
  )


def relu_l1(
  d: int,
  n: int,
  *,
  coefficient: float,
  decoder_norm: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """ReLU SAE with an L1 penalty on its latents.

      loss = |x - x_hat|^2 + coefficient sum_i |z_i| w_i

  summed over d and over latents, averaged over rows. w_i = 1 with decoder rows
  normalised in every forward pass, or w_i = |W_dec_i| with a free decoder.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: of the L1 term.
    decoder_norm: weight the penalty by the norms of a free decoder.
    **options: see `common.Options`.

  References:
    Cunningham et al., Sparse Autoencoders Find Highly Interpretable Features in
    Language Models, 2023, arXiv:2309.08600.
    Conerly et al., Update on how we train SAEs, Transformer Circuits, 2024.
  """
  decoder = decoders.Free if decoder_norm else decoders.Normalised
  penalty = losses.l1_decoder_norm if decoder_norm else losses.l1
  return common.compose(
    "relu_l1",
    d,
    n,
    options,
    init=partial(initial.tied, activation=activations.ReLU(), decoder=decoder),
    terms={
      "mse": Term(fn=losses.mse),
      "l1": Term(fn=penalty, weight=coefficient, swept=True),
    },
    unit_norm=False,
  )
