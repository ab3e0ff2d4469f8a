"""Coupling losses of all members of a run, and restarts of single members.

`Recipe.coupling` is a function of the stacked SAEs and the step; the scalar it
returns is added once to the sum of the members' own losses.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float, Int, PRNGKeyArray

from saejax.errors import InputError
from saejax.sae.decoders import unit_rows
from saejax.sae.latents import SparseLatents
from saejax.sae.sae import SAE
from saejax.training.parts import schedules
from saejax.training.recipe import Record, Rule, Stats
from saejax.training.state import TrainState

MATCHES = ("max", "hungarian")
HUNGARIAN_LIMIT = 4096  # maximum n; the assignment costs n^3 on the host
NEEDS_RESTART = "needs_restart"
RESTARTS = "restarts"


@dataclasses.dataclass(frozen=True)
class MutualFeatures:
  """Penalises differences between members' dictionaries, up to permutation.

      C(t) = weight warm(t) mean_{i<j} (1 - sim(W_i, W_j))

  over pairs of members, W the decoder's rows at unit norm. sim is the mean
  cosine of matched rows: with `match` "hungarian" under the best one-to-one
  assignment, with "max" between each row and the nearest row of the other
  dictionary, averaged over both directions. The matching has no gradient.
  warm(t) = (1 - cos(pi t / warmup_steps)) / 2, then 1.

  The paper's code uses the one-to-one assignment; its text the nearest row.

  Attributes:
    weight: weight of the term.
    warmup_steps: steps before the full weight.
    match: "max" or "hungarian", which runs on the host.
    detach_peers: whether only the row, not its match, gets a gradient.

  References:
    Marks et al., Enhancing Neural Network Interpretability with
    Feature-Aligned Sparse Autoencoders, 2024, arXiv:2411.01220.
  """

  weight: float
  warmup_steps: int = 100
  match: str = "max"
  detach_peers: bool = False

  def __call__(self, saes: SAE, step: Int[Array, ""]) -> Float[Array, ""]:
    rows = jax.vmap(lambda sae: unit_rows(sae.W_dec))(saes)
    pairs = itertools.combinations(range(rows.shape[0]), 2)
    first, second = jnp.asarray(list(pairs)).T

    def apart(pair: tuple[Array, Array]) -> Array:
      a, b = (rows[i] for i in pair)
      return 1 - similarity(a, b, self.match, self.detach_peers)

    warm = schedules.cosine_warmup(self.warmup_steps, start=0.0)(step)
    apart_each = jax.lax.map(apart, (first, second))
    return self.weight * warm * jnp.mean(apart_each)


def similarity(
  a: Float[Array, "n d"],
  b: Float[Array, "n d"],
  match: str = "max",
  detach_peers: bool = False,
) -> Float[Array, ""]:
  """Computes the mean cosine of matched rows of two dictionaries.

  Args:
    a, b: unit rows of the dictionaries.
    match: "max" or "hungarian".
    detach_peers: whether matched rows are constants for the gradient.
  """
  fixed_a, fixed_b = jax.lax.stop_gradient((a, b))
  cosines = fixed_a @ fixed_b.T
  if match == "hungarian":
    of_a = assignment(cosines)
    of_b = jnp.argsort(of_a)
  else:
    of_a, of_b = jnp.argmax(cosines, axis=1), jnp.argmax(cosines, axis=0)
  peers_b, peers_a = (fixed_b, fixed_a) if detach_peers else (b, a)
  mean = lambda rows, peers: jnp.mean(jnp.sum(rows * peers, axis=-1))
  return (mean(a, peers_b[of_a]) + mean(b, peers_a[of_b])) / 2


def assignment(cosines: Float[Array, "n n"]) -> Int[Array, "n"]:
  """For each row, its column in the best one-to-one assignment; on the host.

  Args:
    cosines: cosines of all pairs.

  Raises:
    InputError: a mesh of several devices is set: one would wait for the host
      and the others for it, without end on CPUs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1:
    raise InputError(
      "match",
      "hungarian",
      f"is computed on the host, for which a mesh of {mesh.size} devices cannot "
      "wait",
      "use --sae.match=max, or --train.mesh=1,1,1",
    )

  def solve(cosines) -> np.ndarray:
    cosines = np.nan_to_num(np.asarray(cosines, np.float64))
    _, columns = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    return columns.astype(np.int32)

  shape = jax.ShapeDtypeStruct(cosines.shape[:1], jnp.int32)
  return jax.pure_callback(solve, shape, cosines, vmap_method="sequential")


def check(n: int, match: str) -> None:
  """Validates the kind of matching.

  Args:
    n: number of latents.
    match: "max" or "hungarian".

  Raises:
    InputError: the match is unknown, or n is too large to assign on the host.
  """
  if match not in MATCHES:
    raise InputError(
      "match", match, f"must be one of {', '.join(MATCHES)}", "such as max"
    )
  if match == "hungarian" and n > HUNGARIAN_LIMIT:
    raise InputError(
      "match",
      match,
      f"n={n} is above {HUNGARIAN_LIMIT}, too many to assign at every step",
      "use max",
    )


def imbalance(
  rates: Float[Array, "n"], target: float | Array
) -> Float[Array, ""]:
  """mean_i (|rate_i - target| / target)^3: 0 where latents are used evenly.

  Args:
    rates: share of rows on which each latent is active.
    target: target share.
  """
  return jnp.mean((jnp.abs(rates - target) / target) ** 3)


@dataclasses.dataclass(frozen=True)
class RestartMember(Rule):
  """Reinitialises a member when a batch uses its latents too unevenly.

  The rate of a latent is the fraction of the batch's rows on which it is
  active. Where `imbalance` of the rates is above `limit`, the weights are drawn
  again and the optimizer's state is zeroed; statistics are kept. The paper's
  code repeats the step with the new weights; here they start with the next
  batch.

  The imbalance is noisy in small batches: if a latent is active on one expected
  row per batch it is 2 even under perfectly even use.

  Attributes:
    draw: function of a key that gives the initial weights.
    target: the rate under even use, k / n.
    limit: maximum imbalance.
  """

  draw: Callable[[PRNGKeyArray], SAE]
  target: float
  limit: float = 2.5

  def init(self, sae: SAE) -> Stats:
    return {
      NEEDS_RESTART: jnp.zeros((), bool),
      RESTARTS: jnp.zeros((), jnp.int32),
    }

  def axes(self) -> Mapping[str, str]:
    return {NEEDS_RESTART: "", RESTARTS: ""}

  def update(self, stats: Stats, record: Record) -> Stats:
    uneven = imbalance(_rates(record), self.target) > self.limit
    restarts = stats[RESTARTS] + uneven.astype(jnp.int32)
    return {**stats, NEEDS_RESTART: uneven, RESTARTS: restarts}

  def write(self, state: TrainState) -> TrainState:
    # The step's key is folded with the step; this one with a value no step has.
    fold = state.step.astype(jnp.uint32) + jnp.uint32(2**31)
    key = jax.random.fold_in(state.key, fold)
    fresh = lambda carry: (
      jnp.zeros((), bool),
      # The prep is no weight, and may have been fitted to a sample.
      self.draw(key).replace(prep=carry[1].prep),
      jax.tree.map(jnp.zeros_like, carry[2]),
    )
    # A while_loop of at most one pass, because under vmap a cond would compute
    # the draw in every step.
    needs, old = state.stats[NEEDS_RESTART], (state.sae, state.opt_state)
    _, sae, opt_state = jax.lax.while_loop(
      lambda carry: carry[0], fresh, (needs, *old)
    )
    return state.replace(sae=sae, opt_state=opt_state)

  def metrics(self, stats: Stats) -> Stats:
    """Logs restarts: restarts of this member so far."""
    return {RESTARTS: stats[RESTARTS]}


def _rates(record: Record) -> Float[Array, "n"]:
  """Fraction of rows on which each latent is active."""
  latents, weight = record.forward.latents, record.batch.weight
  sparse = isinstance(latents, SparseLatents)
  values = latents.values if sparse else latents.dense()
  hits = values != 0
  rows = jnp.asarray(record.batch.rows, jnp.float32)
  if weight is not None:
    hits &= (weight != 0)[..., None]
    rows = jnp.maximum(jnp.sum(weight != 0), 1).astype(jnp.float32)
  hits = hits.astype(jnp.float32)
  if not sparse:
    return jnp.sum(hits, axis=tuple(range(hits.ndim - 1))) / rows
  zeros = jnp.zeros((latents.n,))
  where = latents.indices.reshape(-1)
  return zeros.at[where].add(hits.reshape(-1)) / rows
