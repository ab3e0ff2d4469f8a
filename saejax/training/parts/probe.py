"""A linear probe that predicts a row's score: its fit, loss and optimizer.

The probe is `sae.row_budgets.Probe`, the budget of the SAE's activation. It is
fitted at initialisation, fixed for most of the run, and in the last part
trained beside the SAE, by its own loss alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae import activations, initial
from saejax.sae.context import Batch, as_batch
from saejax.sae.row_budgets import Probe
from saejax.sae.sae import SAE
from saejax.training.recipe import Record, Rule, Stats, mean

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
FOLDS = 5
START_W, START_B = "probe_start_w", "probe_start_b"
PULL, LOSSES = "probe_pull", "probe_losses"


def ridge(
  x: Float[Array, "s d"],
  y: Float[Array, "s"],
  penalty: float | Float[Array, ""],
  weight: Float[Array, "s"] | None = None,
) -> tuple[Float[Array, "d"], Float[Array, ""]]:
  """Weighted ridge regression: minimises sum_i weight_i r_i^2 + penalty |w|^2.

  With r_i = y_i - x_i w - b the solution is

      (X^T X + penalty I) w = X^T y,   b = mean y - mean x w

  with x and y centred, so that b is not penalised.

  Args:
    x: rows.
    y: targets.
    penalty: total penalty.
    weight: weights of the rows; 1 by default.

  Returns:
    (w, b).
  """
  weight = jnp.ones_like(y) if weight is None else weight
  share = weight / jnp.sum(weight)
  with jax.default_matmul_precision("highest"):
    centre_x, centre_y = share @ x, share @ y
    scaled = jnp.sqrt(weight)
    X, Y = (x - centre_x) * scaled[:, None], (y - centre_y) * scaled
    gram = X.T @ X + penalty * jnp.eye(x.shape[-1])
    w = jax.scipy.linalg.solve(gram, X.T @ Y, assume_a="pos")
    return w, centre_y - centre_x @ w


def fit(
  x: Float[Array, "s d"],
  y: Float[Array, "s"],
  penalties: tuple[float, ...] = PENALTIES,
) -> tuple[Float[Array, "d"], Float[Array, ""], Float[Array, ""]]:
  """Ridge fit with a cross-validated penalty: w, b and the penalty per row.

  The penalty has the least out-of-fold error; row i is in fold i mod 5.

  Args:
    x: rows.
    y: targets.
    penalties: penalties per row to choose from.
  """
  fold = jnp.arange(y.shape[0]) % FOLDS
  choices = jnp.asarray(penalties)

  def error(penalty, f):
    out = (fold == f).astype(y.dtype)
    w, b = ridge(x, y, penalty, 1 - out)
    return jnp.sqrt(mean(jnp.square(x @ w + b - y), out))

  each = jax.vmap(error, (None, 0))
  errors = jax.lax.map(lambda p: jnp.mean(each(p, jnp.arange(FOLDS))), choices)
  penalty = choices[jnp.argmin(errors)]
  return *ridge(x, y, penalty), penalty / y.shape[0]


def init(
  key: PRNGKeyArray,
  *,
  d: int,
  sample: Array | Batch | None = None,
  min_k: int,
  max_k: int,
  least: float = 0.0,
  most: float = 10.0,
  steepness: float = 6.0,
  **around: Any,
) -> SAE:
  """Draws an SAE as `initial.init` does, with a probe fitted to the scores.

  Without a sample the probe is 0.

  Args:
    key: random key.
    d: width of the activations.
    sample: rows with their scores.
    min_k, max_k, least, most, steepness: see `row_budgets.Probe`.
    **around: arguments of `initial.init`.

  Raises:
    InputError: the sample has no scores, or fewer than 5 rows.
  """
  w, b, penalty = jnp.zeros((d,)), jnp.zeros(()), jnp.zeros(())
  if sample is not None:
    sample = as_batch(sample)
    if sample.score is None or sample.rows < FOLDS:
      raise InputError(
        "sample",
        f"{sample.rows} rows",
        f"a probe is fitted to at least {FOLDS} rows, each with a score",
        "pass Batch(x=..., score=...)",
      )
    x = sample.x.reshape(-1, d).astype(jnp.float32)
    w, b, penalty = fit(x, sample.score.reshape(-1).astype(jnp.float32))
  budget = Probe(
    w=w,
    b=b,
    penalty=penalty,
    min_k=min_k,
    max_k=max_k,
    least=least,
    most=most,
    steepness=steepness,
  )
  activation = activations.Ranked(budget)
  return initial.init(key, d=d, sample=sample, activation=activation, **around)


def loss(record: Record) -> Float[Array, ""]:
  """The probe's own loss, a scalar of the batch.

      mean (x w + b - y)^2 + lambda |w|^2 + c (|w - w_0| + |b - b_0|)

  with lambda the ridge penalty per row, so that the fit minimises the loss on
  its own rows; w_0 and b_0 the fit; c the statistic of `Pull`. The paper's code
  adds half the total penalty to a mean error, which is stronger by half the
  number of rows.

  Args:
    record: the record of the batch.
  """
  probe, stats = _probe(record.sae), record.stats
  far = _length(probe.w - stats[START_W]) + _length(probe.b - stats[START_B])
  size = jax.lax.stop_gradient(probe.penalty) * jnp.sum(jnp.square(probe.w))
  return error(record) + size + stats[PULL] * far


def _length(a: Array) -> Float[Array, ""]:
  """|a|, with gradient 0 (not NaN) at 0, where the probe starts."""
  squares = jnp.sum(jnp.square(a))
  off = squares > 0
  return jnp.where(off, jnp.sqrt(jnp.where(off, squares, 1)), 0)


def error(record: Record) -> Float[Array, ""]:
  """Mean squared error of the probe.

  Args:
    record: the record of the batch.

  Raises:
    ValueError: the batch has no scores.
  """
  batch = record.batch
  if batch.score is None:
    raise ValueError("the probe learns from Batch.score, which is None")
  off = _probe(record.sae).predict(batch.x) - batch.score
  return mean(jnp.square(off), batch.weight)


@dataclasses.dataclass(frozen=True)
class Pull(Rule):
  """Adapts the strength c that pulls the probe to its fit while it is trained.

  If the error fell by more than 5 % over three batches, c becomes 0.8 c, at
  least 0.01; else it becomes 1.2 c, at most 0.5.

  Attributes:
    start_step: first step in which the probe is trained.
    c: initial strength.
  """

  start_step: int
  c: float = 0.2

  def init(self, sae: SAE) -> Stats:
    probe = _probe(sae)
    return {
      START_W: jnp.array(probe.w),
      START_B: jnp.array(probe.b),
      PULL: jnp.asarray(self.c, jnp.float32),
      LOSSES: jnp.full((3,), jnp.inf, jnp.float32),
    }

  def axes(self) -> Mapping[str, str]:
    return {START_W: "d", START_B: "", PULL: "", LOSSES: "last"}

  def update(self, stats: Stats, record: Record) -> Stats:
    step = record.forward.ctx.step
    if step is None:
      return stats
    learns = step >= self.start_step
    losses = jnp.append(stats[LOSSES][1:], error(record))
    c = stats[PULL]
    fell = losses[0] - losses[2] > 0.05 * losses[0]
    new = jnp.where(fell, jnp.maximum(0.8 * c, 0.01), jnp.minimum(1.2 * c, 0.5))
    new = jnp.where(jnp.isfinite(losses[0]), new, c)
    return {
      **stats,
      PULL: jnp.where(learns, new, c),
      LOSSES: jnp.where(learns, losses, stats[LOSSES]),
    }

  def metrics(self, stats: Stats) -> Mapping[str, Array]:
    """probe_pull: c."""
    return {PULL: stats[PULL]}


def optimizer(
  make: Callable[[Any], optax.GradientTransformation],
  *,
  start_step: int,
  clip_norm: float,
) -> Callable[[Any], optax.GradientTransformation]:
  """Separate instances of an optimizer for the SAE and for the probe.

  Each clips its gradients by their own global norm; the probe's starts with
  moments of 0 at `start_step`, and does not change the probe before.

  Args:
    make: function of a learning rate that gives an optax transformation.
    start_step: first step that updates the probe.
    clip_norm: maximum global norm, for each instance.
  """

  def label(sae: SAE):
    def name(path, leaf):
      del leaf
      path = jax.tree_util.keystr(path, simple=True, separator=".")
      return "probe" if path.startswith("activation.budget.") else "sae"

    return jax.tree_util.tree_map_with_path(name, sae)

  def both(rate: Any) -> optax.GradientTransformation:
    clipped = optax.chain(optax.clip_by_global_norm(clip_norm), make(rate))
    late = optax.transforms.conditionally_mask(
      clipped, should_transform_fn=lambda step: jnp.asarray(step) >= start_step
    )
    return optax.multi_transform({"sae": clipped, "probe": late}, label)

  return both


def _probe(sae: SAE) -> Probe:
  activation: Any = sae.activation
  return activation.budget
