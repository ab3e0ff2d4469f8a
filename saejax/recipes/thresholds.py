"""Methods whose latents are on above a threshold, learned or estimated."""

import dataclasses
from functools import partial
from typing import Unpack

import numpy as np
import optax

from saejax.errors import InputError
from saejax.recipes import common
from saejax.sae import activations, budgets, initial
from saejax.sae import gated as gates
from saejax.sae import jumprelu as jump
from saejax.sae.prep import Identity, Prep
from saejax.training.parts import (
  constraints,
  finish,
  losses,
  optimizers,
  schedules,
  sparsity,
)
from saejax.training.recipe import Recipe, Term, same

# DeepMind's settings: no momentum.
adam = partial(optax.adam, b1=0.0, b2=0.999, eps=1e-8)


def jumprelu(
  d: int,
  n: int,
  *,
  coefficient: float,
  penalty: sparsity.Penalty = sparsity.l0,
  coefficient_steps: int = 10_000,
  silent_weight: float = 0.0,
  theta: float = 0.001,
  eps: float = 0.001,
  kernel: str = "rectangle",
  ste_to_input: bool = False,
  post_jump: bool = False,
  theta_rate: float = 1.0,
  free_decoder: bool = False,
  pre_bias: bool = False,
  **options: Unpack[common.Options],
) -> Recipe:
  """JumpReLU SAE: each latent is on above a threshold that it learns.

      loss = |x - x_hat|^2 + coefficient sum_i H(a_i - theta_i)

  summed over d and over latents, averaged over rows. Gradients in theta come
  from a kernel of width eps (`sae.jumprelu`), so eps and theta are in the units
  of a: the defaults are for rows of mean square norm 1, and rows of norm sqrt(d)
  need about sqrt(d) times as much, else hardly a row falls in the window and L0
  stays where it is. L0 stops falling from some coefficient on, since Adam
  forgets the size of the one gradient that theta gets from it; `l0_target` does
  not have that fault. The paper's settings; its code learns log theta instead,
  from which small thresholds hardly move.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: of the penalty.
    penalty: `sparsity.l0`, `l0_target(...)`, `tanh(...)` and others there.
    coefficient_steps: over which the coefficient rises from 0.
    silent_weight: of `sparsity.below_threshold`, which goes with tanh.
    theta: all thresholds at the start.
    eps: bandwidth of the kernel.
    kernel: by name in `sae.jumprelu.KERNELS`.
    ste_to_input: whether the estimators reach a too.
    post_jump: H is taken of z instead of a, as in the published listing;
      thresholds are then held at eps/2 or above.
    theta_rate: multiplies the learning rate of theta.
    free_decoder: decoder rows may have any norm; for penalties that know it.
    pre_bias: whether b_dec is subtracted from x.
    **options: see `common.Options`.

  References:
    Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with
    JumpReLU Sparse Autoencoders, 2024, arXiv:2407.14435.
  """
  common.check_least("silent_weight", silent_weight, 0)
  common.check_least("theta_rate", theta_rate, 0)
  least = eps / 2 if post_jump else 0.0
  _check(kernel=kernel, eps=eps, theta=theta, least=least)
  activation = jump.JumpReLU(
    np.full((n,), theta, np.float32), eps, kernel, ste_to_input, post_jump
  )
  terms = {
    "mse": Term(fn=losses.mse),
    "sparsity": common.penalty(penalty, coefficient, coefficient_steps),
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
    unit_norm=not free_decoder,
    project=lambda sae: constraints.thresholds_above(norms(sae), least),
    optimizer=optimizers.multiplied(adam, {"activation.theta": theta_rate}),
    finish=finish.inference_form,
  )


def _check(*, kernel: str, eps: float, theta: float, least: float) -> None:
  """Refuses estimators that do not exist or do not work."""
  if kernel not in jump.KERNELS:
    raise InputError(
      "kernel", kernel, f"must be one of {', '.join(jump.KERNELS)}", "pick one"
    )
  if not eps > 0:
    raise InputError("eps", eps, "must be above 0", "such as 0.001")
  if theta < least:
    raise InputError(
      "theta",
      theta,
      f"must be at least {least:g} with this estimator",
      "raise it, or lower eps with post_jump",
    )


def gated(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_steps: int = 0,
  **options: Unpack[common.Options],
) -> Recipe:
  """Gated SAE: whether a latent is on and how strongly, by two heads.

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
    coefficient: of the penalty.
    coefficient_steps: over which it rises from 0; dictionary_learning's is 2000.
    **options: see `common.Options`.

  References:
    Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse
    Autoencoders, 2024, arXiv:2404.16014.
  """
  gate_l1 = common.penalty(sparsity.gate_l1, coefficient, coefficient_steps)
  return common.compose(
    "gated",
    d,
    n,
    options,
    init=partial(initial.init, activation=gates.Gate(), encoder=gates.init),
    terms={
      "mse": Term(fn=losses.mse),
      "gate_l1": gate_l1,
      "gate_path": Term(fn=sparsity.gate_path),
    },
    optimizer=adam,
    finish=finish.inference_form,
  )


def gemma_scope(
  d: int,
  n: int,
  *,
  coefficient: float,
  coefficient_steps: int = 10_000,
  warmup_steps: int = 1000,
  theta: float = 0.001,
  eps: float = 0.001,
  d_target: int | None = None,
  target_prep: Prep = Identity(),
  **options: Unpack[common.Options],
) -> Recipe:
  """Gemma Scope: JumpReLU as it was trained on Gemma 2, also as a transcoder.

  The loss of `jumprelu` without a pre-bias; the learning rate rises from a tenth
  along a cosine, the coefficient from 0 in a straight line. Their rate is 7e-5
  at 4096 rows a batch, of mean square norm 1 (`prep`), as are the targets of
  transcoders. Theirs starts from He-uniform directions, ours from isotropic
  ones.

  Args:
    d: width of the activations.
    n: latents.
    coefficient: of L0.
    coefficient_steps: over which it rises.
    warmup_steps: over which the learning rate rises.
    theta: all thresholds at the start.
    eps: bandwidth of the kernel.
    d_target: width of `Batch.target`, for a transcoder.
    target_prep: of the target.
    **options: see `common.Options`.

  References:
    Lieberum et al., Gemma Scope: Open Sparse Autoencoders Everywhere All At Once
    on Gemma 2, 2024, arXiv:2408.05147.
  """
  recipe = jumprelu(
    d,
    n,
    coefficient=coefficient,
    coefficient_steps=coefficient_steps,
    theta=theta,
    eps=eps,
    **{"schedule": schedules.cosine_warmup(warmup_steps), **options},
  )
  recipe = dataclasses.replace(recipe, name="gemma_scope")
  if d_target is None:
    return recipe
  return common.transcoder(recipe, d_target, target_prep)


def llama_scope(
  d: int,
  n: int,
  k: int,
  *,
  steps: int,
  warmup_steps: int = 5000,
  **options: Unpack[common.Options],
) -> Recipe:
  """Llama Scope: TopK by the size of what a latent adds, k annealed from d/2.

      keep the k_t largest a_i |w_i| of each row, with values max(a_i, 0)
      k_t = ceil(d/2 + (k - d/2) t / T), then k;   T a tenth of the steps
      loss = mean_d (x - x_hat)^2 / |x - mean_B x|

  averaged over rows. No gradient flows through the norms that rank. Decoder rows
  start with norm 1/2 and are free; there is no pre-bias. Afterwards norms are
  folded to 1 and one threshold takes the place of the selection, the (B k)-th
  largest latent of the B rows given (32768 there). The paper anneals from d,
  its code from d/2, which we follow. Theirs scales rows to a mean norm of
  sqrt(d) (`prep`).

  Args:
    d: width of the activations.
    n: latents.
    k: latents kept in a row, in the end.
    steps: of the run, whose last fifth lowers the learning rate to 1 %.
    warmup_steps: over which the learning rate rises.
    **options: see `common.Options`; gradients are clipped at norm 0.001 unless
      it says otherwise.

  References:
    He et al., Llama Scope: Extracting Millions of Features from Llama-3.1-8B
    with Sparse Autoencoders, 2024, arXiv:2410.20526.
  """
  common.check_k(k, n)
  if steps < 1:
    raise InputError("steps", steps, "must be at least 1", "raise")
  budget = budgets.Annealed(
    k, max(k, d / 2), max(1, steps // 10), round_up=True
  )
  schedule = schedules.warmup_decay(
    steps, warmup_steps=warmup_steps, decay_fraction=0.2, end=0.01
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
