"""Methods with thresholds on latents, learned or estimated."""

import dataclasses
from functools import partial
from typing import Literal, Unpack

import numpy as np
import optax

from saejax.errors import InputError
from saejax.recipes import common, limits
from saejax.sae import activations, budgets, initial
from saejax.sae import gated as gates
from saejax.sae import jumprelu as jump
from saejax.training.parts import (
  constraints,
  finish,
  losses,
  optimizers,
  schedules,
  sparsity,
)
from saejax.training.recipe import Recipe, Term, same

Kernel = Literal[
  "rectangle",
  "triangular",
  "epanechnikov",
  "quartic",
  "gaussian",
  "cosine",
  "silverman",
  "cauchy",
]

# DeepMind's settings: no momentum.
adam = partial(optax.adam, b1=0.0, b2=0.999, eps=1e-8)


def jumprelu(
  d: int,
  n: int,
  *,
  coefficient: float,
  penalty: Literal["l0", "l0_target", "tanh", "tanh_quadratic", "power"] = "l0",
  target_l0: float | None = None,
  target_scope: Literal["batch", "row"] = "batch",
  tanh_scale: float = 4.0,
  tanh_rate: float = 0.01,
  exponent: float = 0.5,
  coefficient_warmup: float = 0.1,
  silent_weight: float = 0.0,
  theta: float = 0.001,
  bandwidth: float = 0.001,
  kernel: Kernel = "rectangle",
  ste_to_input: bool = False,
  post_jump: bool = False,
  theta_rate: float = 1.0,
  free_decoder: bool = False,
  pre_bias: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """JumpReLU SAE: each latent is active above its learned threshold.

      loss = |x - x_hat|^2 + coefficient sum_i H(a_i - theta_i)

  summed over d and over latents, averaged over rows. Gradients in theta come
  from a kernel of width eps, the bandwidth, so eps and theta are in the units
  of a: the defaults are for rows of mean square norm 1, and rows of norm
  sqrt(d)
  need about sqrt(d) times as much, else hardly a row falls in the window and L0
  stays where it is. L0 stops falling from some coefficient on, since Adam
  forgets the size of the one gradient that theta gets from it; the penalty
  "l0_target" does not have that fault. The paper's settings; its code learns
  log theta instead, from which small thresholds hardly move.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of the penalty.
    penalty: name of a penalty in `training.parts.sparsity`.
    target_l0: active latents per row that "l0_target" aims at, and needs.
    target_scope: whether "l0_target" compares the mean of the "batch" or every
      "row".
    tanh_scale: c of "tanh" and "tanh_quadratic".
    tanh_rate: rate of "tanh_quadratic", the fraction of rows it tolerates.
    exponent: exponent of "power".
    coefficient_warmup: fraction of the run in which the coefficient rises from
      0; 10,000 steps in the paper.
    silent_weight: weight of `sparsity.below_threshold`, used with "tanh".
    theta: initial value of all thresholds, in the units of a.
    bandwidth: width of the kernel, in the units of a.
    kernel: name in `sae.jumprelu.KERNELS`.
    ste_to_input: whether the estimators' gradients reach a too.
    post_jump: whether H is taken of z instead of a, as in the published
      listing; thresholds are then kept at bandwidth/2 or above.
    theta_rate: factor of the learning rate of theta.
    free_decoder: whether decoder rows may have any norm; for penalties that
      depend on it.
    pre_bias: whether b_dec is subtracted from x.
    **options: see `common.Options`.

  References:
    Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with
    JumpReLU Sparse Autoencoders, 2024, arXiv:2407.14435.
  """
  limits.check_least("silent_weight", silent_weight, 0)
  limits.check_least("theta_rate", theta_rate, 0)
  least = bandwidth / 2 if post_jump else 0.0
  _check(kernel=kernel, bandwidth=bandwidth, theta=theta, least=least)
  activation = jump.JumpReLU(
    np.full((n,), theta, np.float32), bandwidth, kernel, ste_to_input, post_jump
  )
  fn = _penalty(
    penalty, target_l0, target_scope, tanh_scale, tanh_rate, exponent
  )
  terms = {
    "mse": Term(fn=losses.mse),
    "sparsity": common.penalty(fn, coefficient, coefficient_warmup, options),
  }
  if silent_weight:
    terms["silent"] = Term(fn=sparsity.below_threshold, weight=silent_weight)
  norms = same if free_decoder else constraints.unit_norm_decoder
  return common.compose(
    "jumprelu",
    d,
    n,
    options,
    init=partial(
      initial.init, activation=activation, pre_bias=pre_bias, centre=False
    ),
    terms=terms,
    swept="coefficient",
    unit_norm=not free_decoder,
    project=lambda sae: constraints.thresholds_above(norms(sae), least),
    optimizer=optimizers.multiplied(adam, {"activation.theta": theta_rate}),
    finish=finish.inference_form,
  )


def _penalty(
  name: str,
  target_l0: float | None,
  scope: str,
  tanh_scale: float,
  tanh_rate: float,
  exponent: float,
) -> sparsity.Penalty:
  """Builds a penalty by its name; checks its settings."""
  limits.check_choice("target_scope", scope, ("batch", "row"))
  if name == "l0_target":
    if target_l0 is None or not target_l0 > 0:
      raise InputError(
        "target_l0", target_l0, "must be above 0 for l0_target", "such as 32"
      )
    return sparsity.l0_target(target_l0, scope)
  if target_l0 is not None:
    raise InputError(
      "target_l0",
      target_l0,
      f"is not read by the penalty {name}",
      "leave it out, or use the penalty l0_target",
    )
  for field, value in (
    ("tanh_scale", tanh_scale),
    ("tanh_rate", tanh_rate),
    ("exponent", exponent),
  ):
    if not value > 0:
      raise InputError(field, value, "must be above 0", "such as 1")
  named = {
    "l0": sparsity.l0,
    "tanh": sparsity.tanh(tanh_scale),
    "tanh_quadratic": sparsity.tanh_quadratic(tanh_scale, tanh_rate),
    "power": sparsity.power(exponent),
  }
  limits.check_choice("penalty", name, (*named, "l0_target"))
  return named[name]


def _check(
  *, kernel: str, bandwidth: float, theta: float, least: float
) -> None:
  """Checks the settings of the gradient estimator."""
  limits.check_choice("kernel", kernel, jump.KERNELS)
  if not bandwidth > 0:
    raise InputError("bandwidth", bandwidth, "must be above 0", "such as 0.001")
  if not theta >= least:
    raise InputError(
      "theta",
      theta,
      f"must be at least {least:g} with this estimator",
      f"use theta={least:g} or more, or lower bandwidth with post_jump",
    )


def gated(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_warmup: float = 0.0,
  **options: Unpack[common.Options],
) -> Recipe:
  """Gated SAE: one encoder head gates each latent, one gives its magnitude.

      p = (x - b_dec) W_enc^T,  gate = p + b_gate,  a = p exp(r_mag) + b_mag
      z = max(a, 0) where gate > 0
      loss = |x - x_hat|^2 + coefficient sum_i max(gate_i, 0)
             + |x - (max(gate, 0) W_dec + b_dec)|^2

  summed over d and over latents, averaged over rows; the decoder of the last
  term is held fixed. The penalty does not shrink z, which it never sees.
  Decoder rows have unit norm, b_dec starts at the geometric median (at 0 in the
  paper). Afterwards the gate becomes a threshold, exactly.
  SAELens weighs the penalty by |w_i|, with a free decoder that the last term
  trains too.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of the penalty.
    coefficient_warmup: fraction of the run in which it rises from 0; 2000 steps
      in dictionary_learning.
    **options: see `common.Options`.

  References:
    Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse
    Autoencoders, 2024, arXiv:2404.16014.
  """
  fn, path = sparsity.gate_l1, Term(fn=sparsity.gate_path)
  gate_l1 = common.penalty(fn, coefficient, coefficient_warmup, options)
  return common.compose(
    "gated",
    d,
    n,
    options,
    init=partial(initial.init, activation=gates.Gate(), encoder=gates.init),
    terms={"mse": Term(fn=losses.mse), "gate_l1": gate_l1, "gate_path": path},
    swept="coefficient",
    optimizer=adam,
    finish=finish.inference_form,
  )


def gemma_scope(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_warmup: float = 0.1,
  rate_warmup: float = 0.01,
  theta: float = 0.001,
  bandwidth: float = 0.001,
  **options: Unpack[common.Options],
) -> Recipe:
  """Gemma Scope: JumpReLU with the settings used for Gemma 2.

  The loss of `jumprelu` without a pre-bias; the learning rate rises from a
  tenth along a cosine, the coefficient linearly from 0. Their learning rate is
  7e-5 at 4096 rows per batch, of mean square norm 1 (`prep`), as are the
  targets of their transcoders (`common.Options.target`). They start from
  He-uniform directions; here they are isotropic.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: weight of L0.
    coefficient_warmup: fraction of the run in which it rises; 10,000 steps in
      the paper.
    rate_warmup: fraction of the run in which the learning rate rises; 1000
      steps in the paper.
    theta: initial value of all thresholds, in the units of a.
    bandwidth: width of the kernel, in the units of a.
    **options: see `common.Options`.

  References:
    Lieberum et al., Gemma Scope: Open Sparse Autoencoders Everywhere All At
    Once on Gemma 2, 2024, arXiv:2408.05147.
  """
  warmup = common.duration("rate_warmup", rate_warmup, options)
  recipe = jumprelu(
    d,
    n,
    coefficient=coefficient,
    coefficient_warmup=coefficient_warmup,
    theta=theta,
    bandwidth=bandwidth,
    **{"schedule": schedules.cosine_warmup(warmup), **options},
  )
  return dataclasses.replace(recipe, name="gemma_scope")


def llama_scope(
  d: int,
  n: int,
  k: int,
  *,
  anneal: float = 0.1,
  rate_warmup: float = 0.05,
  **options: Unpack[common.Options],
) -> Recipe:
  """Llama Scope: TopK ranked by contribution norm, with k annealed from d/2.

      keep the k_t largest a_i |w_i| of each row, with values max(a_i, 0)
      k_t = ceil(d/2 + (k - d/2) t / T), then k;   T = anneal times the steps
      loss = mean_d (x - x_hat)^2 / |x - mean_B x|

  averaged over rows. No gradient flows through the norms that rank. Decoder
  rows start with norm 1/2 and are free; there is no pre-bias. Afterwards norms
  are folded to 1 and one threshold takes the place of the selection, the (B
  k)-th largest latent of the B rows given (32768 there). The paper anneals from
  d, its code from d/2, which we follow. Theirs scales rows to a mean norm of
  sqrt(d) (`prep`).

  Args:
    d: width of the activations.
    n: latents.
    k: active latents per row, at the end of the annealing.
    anneal: fraction of the run in which k falls.
    rate_warmup: fraction of the run in which the learning rate rises, 5000
      steps in the paper; its last fifth lowers it to 1 %.
    **options: see `common.Options`; gradients are clipped at norm 0.001 unless
      it says otherwise.

  References:
    He et al., Llama Scope: Extracting Millions of Features from Llama-3.1-8B
    with Sparse Autoencoders, 2024, arXiv:2410.20526.
  """
  limits.check_k(k, n)
  annealing = max(1, common.duration("anneal", anneal, options))
  budget = budgets.Annealed(k, max(k, d / 2), annealing, round_up=True)
  schedule = schedules.warmup_decay(
    common.run_steps(options, "rate_warmup"),
    warmup_steps=common.duration("rate_warmup", rate_warmup, options),
    decay_fraction=0.2,
    end=0.01,
  )
  return common.compose(
    "llama_scope",
    d,
    n,
    {"schedule": schedule, "clip_norm": 1e-3, **options},
    init=partial(
      initial.init,
      activation=activations.Ranked(budget, score="norm"),
      row_norm=0.5,
      pre_bias=False,
      centre=False,
    ),
    terms={"batch_norm_mse": Term(fn=losses.batch_norm_mse)},
    unit_norm=False,
    optimizer=partial(optax.adam, b1=0.9, b2=0.9999),
    finish=finish.to_jumprelu,
  )
