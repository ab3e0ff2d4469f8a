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

Pairs are those of `attribute_pairs`. The loss has no term for the size of m, as in the
reference; `sparsity` adds one. `attribute_rotation` learns the directions too.

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
from saejax.evals.control.attribute_pairs import Pairs
from saejax.sae.sae import SAE

START, END = 1.0, 1e-4  # of the temperature
# (x' [B, d], context of the base prompts) -> logits of answers [B, C].
Answer = Callable[[Array, Any], Array]


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
  decode = sae.decode
  if isinstance(sae, SAE):  # a prep of each row is undone with the base's
    decode = partial(decode, statistics=sae.forward(x_base).statistics)
  new = decode((1 - m) * z + m * z_source)
  return new + x_base - decode(z) if keep_error else new


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
  x = jnp.asarray(x)
  n = jax.eval_shape(lambda x: sae.encode(x), x[:1]).shape[-1]

  def loss_of(a, base, source, wanted, T):
    m = jax.nn.sigmoid(a / T)
    new = exchanged(sae, x[base], x[source], m, keep_error=keep_error)
    ce = cross_entropy(answer, new, context, base, wanted)
    return ce + sparsity * jnp.mean(m)

  steps = schedule(pairs, batch=batch, epochs=epochs, end=END, seed=seed)
  a, losses = descend(loss_of, jnp.zeros(n), steps, rate=rate)
  return Learnt(np.asarray(a), np.asarray(losses))


Steps = tuple[Array, Array, Array, Array]  # base, source, wanted, temperature


def schedule(
  pairs: Pairs, *, batch: int, epochs: int, end: float, seed: int
) -> Steps:
  """Returns the batches of pairs and the temperature of each step.

  Args:
    pairs, batch, epochs, seed: as for `learn`.
    end: temperature of the last step.

  Raises:
    InputError: there are fewer pairs than a batch has.
  """
  per_epoch = len(pairs) // batch
  if not per_epoch:
    rule = f"must be at most the number of pairs, {len(pairs)}"
    raise InputError("batch", batch, rule, "lower it, or draw more pairs")
  rng, steps = np.random.default_rng(seed), epochs * per_epoch
  cut = per_epoch * batch
  orders = [rng.permutation(len(pairs))[:cut] for _ in range(epochs)]
  order = np.concatenate(orders).reshape(steps, batch)
  columns = (pairs.base[order], pairs.source[order], pairs.wanted[order])
  temperature = np.geomspace(START, end, steps).astype(np.float32)
  base, source, wanted, T = map(jnp.asarray, (*columns, temperature))
  return base, source, wanted, T


def cross_entropy(
  answer: Answer, x: Array, context: Any, base: Array, wanted: Array
) -> Float[Array, ""]:
  """Computes the mean cross-entropy of the wanted answers.

  Args:
    answer, context: as for `learn`.
    x: activations that are put into the base prompts.
    base: the base prompts.
    wanted: the answers.
  """
  logits = answer(x, _rows(context, base)).astype(jnp.float32)
  ce = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
  return jnp.mean(ce)


def descend(
  loss: Callable[..., Float[Array, ""]],
  start: Any,
  steps: Steps,
  *,
  rate: float,
  project: Callable[[Any], Any] = lambda p: p,
) -> tuple[Any, Float[Array, "steps"]]:
  """Minimises with Adam, a batch per step.

  Args:
    loss: loss of (parameters, base, source, wanted, temperature).
    start: parameters, a pytree.
    steps: from `schedule`.
    rate: learning rate.
    project: applied to the parameters after each step.

  Returns:
    (parameters, loss per step).
  """
  optimizer = optax.adam(rate)

  def step(carry, at):
    p, state = carry
    value, gradient = jax.value_and_grad(loss)(p, *at)
    with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
      updates, state = optimizer.update(gradient, state)
    return (project(optax.apply_updates(p, updates)), state), value

  run = jax.jit(lambda carry, steps: jax.lax.scan(step, carry, steps))
  (p, _), losses = run((start, optimizer.init(start)), steps)
  return p, losses


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
