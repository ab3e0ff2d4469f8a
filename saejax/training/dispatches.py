"""Several steps of a member, or of a stack, in one call of a compiled program."""

import jax
import jax.numpy as jnp

from saejax.sae.context import as_batch

MOST_STEPS = 50  # in one call of a program that draws its batches


def drawn(one_step, state, hyper, draw, start, stop, most=MOST_STEPS):
  """Takes at most `most` steps, start to stop.

  Args:
    one_step: (state, hyper, batch) -> (state, metrics).
    state: the state before them.
    hyper: settings of the member, or of the stack.
    draw: from the step to a batch.
    start: first step.
    stop: step after the last.
    most: room for metrics.

  Returns:
    The new state, and the metrics of each step, then zeros.
  """
  # Traced once, for its shapes and for the loop.
  step = jax.jit(
    lambda i, state: one_step(state, hyper, as_batch(draw(i))), inline=True
  )
  shapes = jax.eval_shape(step, start, state)[1]
  kept = jax.tree.map(lambda a: jnp.zeros((most, *a.shape), a.dtype), shapes)

  def body(i, carry):
    state, metrics = step(i, carry[0])
    put = lambda all_, one: all_.at[i - start].set(one)
    return state, jax.tree.map(put, carry[1], metrics)

  return jax.lax.fori_loop(start, stop, body, (state, kept))


def several(one_step, state, hyper, batches, count):
  """Takes one step for each of the first `count` batches.

  Args:
    one_step, state, hyper: as for `drawn`.
    batches: batches of equal shapes.
    count: how many of them are used.

  Returns:
    As `drawn`.
  """
  if len(batches) == 1:
    state, metrics = one_step(state, hyper, batches[0])
    return state, jax.tree.map(lambda a: a[None], metrics)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
  draw = lambda i: jax.tree.map(lambda leaf: leaf[i], stacked)
  first = jnp.zeros((), jnp.int32)
  return drawn(one_step, state, hyper, draw, first, count, len(batches))
