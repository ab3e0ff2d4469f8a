"""Disentanglement of attributes: a learnt mask of latents is exchanged (RAVEL).

Two prompts about entities, a base and a source, have activations x at the entity's
last token, and latents z. With a mask m in [0, 1]^n,

  x' = decode((1 - m) z_base + m z_source)       (the SAE's error is left out)

takes the base prompt's place. For a target attribute A, m should exchange A and
nothing else:

  cause      both prompts ask for A, with different answers: wanted is the source's
  isolation  both ask for another attribute, with different answers: wanted is the
             base's

m = sigmoid(a / T) is learnt with a = 0 at the start, cross-entropy of the wanted
answer, Adam, and T falling from 1 to 1e-4 in equal ratios; it is tested as
1[a > 0]. The scores are the shares of cause and of isolation prompts answered as
wanted, and disentanglement is their mean.

The kind of a pair and the wanted answer come from two label functions, given with
the pairs, and not from whether two first tokens are equal. Entities of the training
pairs are not in the test pairs. The loss has no term for the size of m, as in the
reference; `sparsity` adds one.

References:
  Huang et al., RAVEL, 2024, arXiv:2402.17700.
  Karvonen et al., SAEBench, 2025, arXiv:2503.09532.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from saejax.errors import InputError
from saejax.sae.sae import SAE

START, END = 1.0, 1e-4  # of the temperature
Labels = Callable[[np.ndarray, np.ndarray], np.ndarray]
# (x' [B, d], context of the base prompts) -> logits of answers [B, C].
Answer = Callable[[Array, Any], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of prompts, as numbers of rows of a table of prompts.

  Attributes:
    base, source: the prompts.
    cause: whether a pair is of the kind cause; else isolation.
    wanted: number of the answer.
  """

  base: Int[np.ndarray, "P"]
  source: Int[np.ndarray, "P"]
  cause: Bool[np.ndarray, "P"]
  wanted: Int[np.ndarray, "P"]

  def __len__(self) -> int:
    return len(self.base)


def from_source(label: Int[np.ndarray, "R"]) -> Labels:
  """Returns the label function of cause: the source's answer.

  Args:
    label: number of the answer of each prompt.
  """
  return lambda base, source: label[source]


def from_base(label: Int[np.ndarray, "R"]) -> Labels:
  """Returns the label function of isolation: the base's answer.

  Args:
    label: number of the answer of each prompt.
  """
  return lambda base, source: label[base]


def draw_pairs(
  entity: Int[np.ndarray, "R"],
  asked: Int[np.ndarray, "R"],
  label: Int[np.ndarray, "R"],
  *,
  target: int,
  count: int,
  test: float = 0.3,
  seed: int = 0,
  cause: Labels | None = None,
  isolation: Labels | None = None,
) -> tuple[Pairs, Pairs]:
  """Draws pairs for training and for a test with other entities.

  Args:
    entity: entity of each prompt.
    asked: attribute that each prompt asks for.
    label: number of the answer of each prompt.
    target: the attribute to exchange.
    count: number of pairs of each kind, in both parts together.
    test: share of the entities, and of the pairs, of the test.
    seed: seed of the draw.
    cause, isolation: wanted answers of pairs (base rows, source rows); by
      default `from_source` and `from_base`.

  Raises:
    InputError: a part has no pair of a kind.
  """
  rng = np.random.default_rng(seed)
  entity, asked, label = (np.asarray(a) for a in (entity, asked, label))
  wanted = (isolation or from_base(label), cause or from_source(label))
  names = rng.permutation(np.unique(entity))
  held = np.isin(entity, names[: round(test * len(names))])
  parts = []
  for rows, share in ((~held, 1 - test), (held, test)):
    kinds = []
    for is_cause in (True, False):
      kind = (asked == target) == is_cause
      base, source = _pairs(
        rng, np.flatnonzero(rows & kind), asked, label, round(share * count)
      )
      flags = np.full(len(base), is_cause)
      kinds.append((base, source, flags, wanted[is_cause](base, source)))
    order = rng.permutation(sum(len(kind[0]) for kind in kinds))
    columns = (np.concatenate(c)[order] for c in zip(*kinds, strict=True))
    parts.append(Pairs(*columns))
  return parts[0], parts[1]


def _pairs(rng, rows, asked, label, count) -> tuple[np.ndarray, np.ndarray]:
  """Random rows that ask for one attribute and have different answers."""
  possible = []
  for kind in np.unique(asked[rows]):
    among = rows[asked[rows] == kind]
    if len(np.unique(label[among])) > 1:
      possible += [(base, among) for base in among]
  if not possible or count < 1:
    raise InputError(
      "label",
      f"{len(rows)} prompts, {count} pairs",
      "must differ for two prompts of one attribute, in training and in the test,"
      " for the target and for another attribute",
      "add entities, or raise test or count",
    )
  found = []
  for i in rng.integers(len(possible), size=count):
    base, among = possible[i]
    found.append((base, rng.choice(among[label[among] != label[base]])))
  base, source = np.array(found).T
  return base, source


# --- the mask --------------------------------------------------------------------


def exchanged(
  sae: SAE,
  x_base: Float[Array, "B d"],
  x_source: Float[Array, "B d"],
  m: Float[Array, "n"],
  *,
  keep_error: bool = False,
) -> Float[Array, "B d"]:
  """Computes x'; see the module.

  Args:
    sae: the SAE, or anything with `encode` and `decode`.
    x_base, x_source: activations.
    m: the mask.
    keep_error: whether the SAE's error at the base is added.
  """
  z, z_source = sae.encode(x_base), sae.encode(x_source)
  new = sae.decode((1 - m) * z + m * z_source)
  return new + x_base - sae.decode(z) if keep_error else new


@dataclasses.dataclass(frozen=True, eq=False)
class Learnt:
  """A learnt mask.

  Attributes:
    a: its logits.
    loss: loss per step.
  """

  a: Float[np.ndarray, "n"]
  loss: Float[np.ndarray, "steps"]

  @property
  def mask(self) -> Bool[np.ndarray, "n"]:
    """1[a > 0]."""
    return self.a > 0


def learn(
  sae: SAE,
  answer: Answer,
  x: Float[Array, "R d"],
  pairs: Pairs,
  *,
  context: Any = None,
  epochs: int = 2,
  batch: int = 32,
  rate: float = 1e-3,
  sparsity: float = 0.0,
  keep_error: bool = False,
  seed: int = 0,
) -> Learnt:
  """Learns the mask on pairs.

  Args:
    sae: the SAE, or anything with `encode` and `decode`.
    answer: logits of answers from activations and the context of the base
      prompts; differentiable. For a language model, the logits of the first
      generated token with the activations written at the entity's token.
    x: activation of each prompt.
    pairs: the training pairs.
    context: pytree of arrays whose first axis is that of prompts, such as token
      ids; None for none.
    epochs: passes over the pairs.
    batch: pairs per step; the last ones of an epoch that do not fill a batch are
      left out.
    rate: learning rate of Adam.
    sparsity: weight of the mean of m in the loss.
    keep_error: as for `exchanged`.
    seed: seed of the order of pairs.

  Raises:
    InputError: there are fewer pairs than a batch has.
  """
  per_epoch = len(pairs) // batch
  if not per_epoch:
    rule = f"must be at most the number of pairs, {len(pairs)}"
    raise InputError("batch", batch, rule, "lower it, or draw more pairs")
  rng, steps = np.random.default_rng(seed), epochs * per_epoch
  orders = [rng.permutation(len(pairs)) for _ in range(epochs)]
  cut = per_epoch * batch
  order = np.concatenate([o[:cut] for o in orders]).reshape(steps, batch)
  temperature = np.geomspace(START, END, steps).astype(np.float32)
  x, optimizer = jnp.asarray(x), optax.adam(rate)
  n = jax.eval_shape(lambda x: sae.encode(x), x[:1]).shape[-1]

  def loss_of(a, base, source, wanted, T):
    m = jax.nn.sigmoid(a / T)
    new = exchanged(sae, x[base], x[source], m, keep_error=keep_error)
    logits = answer(new, _rows(context, base)).astype(jnp.float32)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return jnp.mean(ce) + sparsity * jnp.mean(m)

  @jax.jit
  def step(carry, at):
    a, state = carry
    loss, gradient = jax.value_and_grad(loss_of)(a, *at)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
      updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(a, updates), state), loss

  a = jnp.zeros(n, jnp.float32)
  columns = (pairs.base[order], pairs.source[order], pairs.wanted[order])
  carry, losses = jax.lax.scan(
    step, (a, optimizer.init(a)), (*map(jnp.asarray, columns), temperature)
  )
  return Learnt(np.asarray(carry[0]), np.asarray(losses))


def _rows(context: Any, rows: Int[Array, "B"]) -> Any:
  return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], context)


# --- the test ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Disentanglement:
  """Scores of a mask.

  Attributes:
    cause, isolation: shares of the pairs of each kind answered as wanted.
    latents: number of latents in the mask.
  """

  cause: float
  isolation: float
  latents: int

  @property
  def disentanglement(self) -> float:
    """Mean of both."""
    return (self.cause + self.isolation) / 2

  def record(self) -> dict[str, float]:
    """Returns the numbers, by the names of SAEBench."""
    return {
      "disentanglement_score": self.disentanglement,
      "cause_score": self.cause,
      "isolation_score": self.isolation,
      "latents": self.latents,
    }


def largest_logit(answer: Answer) -> Callable[[Array, Any, Array], Array]:
  """Returns the matcher that takes the answer of largest logit.

  Args:
    answer: logits of answers.
  """
  return lambda x, context, wanted: (
    jnp.argmax(answer(x, context), axis=-1) == wanted
  )


def evaluate(
  sae: SAE,
  matches: Callable[[Array, Any, Array], Array],
  x: Float[Array, "R d"],
  pairs: Pairs,
  mask: Bool[np.ndarray, "n"],
  *,
  context: Any = None,
  batch: int = 32,
  keep_error: bool = False,
) -> Disentanglement:
  """Tests a mask on pairs.

  Args:
    sae: the SAE, or anything with `encode` and `decode`.
    matches: (x' [B, d], context of the base prompts, wanted [B]) -> whether the
      answer is the wanted one [B]; `largest_logit`, or a text generated by the
      model and compared with the label.
    x: activation of each prompt.
    pairs: the test pairs.
    mask: the mask.
    context: as for `learn`.
    batch: pairs at once.
    keep_error: as for `exchanged`.
  """
  exchange = jax.jit(partial(exchanged, sae, keep_error=keep_error))
  x, m = jnp.asarray(x), jnp.asarray(mask, jnp.float32)
  right = np.zeros(len(pairs), bool)
  for start in range(0, len(pairs), batch):
    part = slice(start, start + batch)
    base, wanted = pairs.base[part], jnp.asarray(pairs.wanted[part])
    new = exchange(x[base], x[pairs.source[part]], m)
    right[part] = np.asarray(matches(new, _rows(context, base), wanted))
  return Disentanglement(
    cause=float(right[pairs.cause].mean()),
    isolation=float(right[~pairs.cause].mean()),
    latents=int(np.count_nonzero(mask)),
  )


def mean_score(found: list[Disentanglement]) -> dict[str, float]:
  """Means of the scores over attributes, or over kinds of entities.

  Args:
    found: the scores of each.
  """
  records = [one.record() for one in found]
  return {k: float(np.mean([r[k] for r in records])) for k in records[0]}
