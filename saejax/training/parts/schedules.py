"""Schedules: factors of learning rates and coefficients over a run."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array


def warmup_decay(
  total_steps: int,
  *,
  warmup_steps: int = 0,
  decay_fraction: float = 0.0,
  end: float = 0.0,
) -> Callable[[Array], Array]:
  """Linear warmup to 1, constant, then linear decay to `end`.

  Step s (from 0) gets min(1, (s + 1) / (warmup_steps + 1), (T - s) / (f T)), so
  that no step has a rate of 0.

  Args:
    total_steps: T, steps of the run.
    warmup_steps: steps before the full rate.
    decay_fraction: f, fraction of the run over which the rate decays.
    end: final factor; (T - s) / (f T) interpolates between 1 and it.
  """
  decay_steps = max(1.0, decay_fraction * total_steps)

  def factor(step: Array) -> Array:
    step = step.astype(jnp.float32)
    rising = (step + 1) / (warmup_steps + 1)
    falling = end + (1 - end) * (total_steps - step) / decay_steps
    ends = falling if decay_fraction > 0 else jnp.ones_like(step)
    return jnp.clip(jnp.minimum(rising, jnp.maximum(ends, end)), 0.0, 1.0)

  return factor


def learning_rate_for(
  n: int, *, base: float, base_n: int, exponent: float
) -> float:
  """Learning rate of an SAE with n latents: base (n / base_n)^exponent.

  An exponent of -1/2 is the scaling of Gao et al. 2024; 0 gives equal rates.

  Args:
    n: number of latents.
    base: learning rate at base_n.
    base_n: number of latents of the base.
    exponent: exponent.

  >>> learning_rate_for(4096, base=1e-3, base_n=1024, exponent=-0.5)
  0.0005
  """
  return base * (n / base_n) ** exponent


def cosine_warmup(
  steps: int, *, start: float = 0.1
) -> Callable[[Array], Array]:
  """Cosine warmup from `start` to 1, then constant.

      start + (1 - start) (1 - cos(pi min(s / steps, 1))) / 2

  Args:
    steps: steps before the full rate.
    start: factor at step 0.

  References:
    Rajamanoharan et al., Jumping Ahead, 2024, arXiv:2407.14435.
  """

  def factor(step: Array) -> Array:
    part = jnp.minimum(step.astype(jnp.float32) / max(1, steps), 1.0)
    return start + (1 - start) * (1 - jnp.cos(jnp.pi * part)) / 2

  return factor


def ramp(value: float, steps: int) -> float | Callable[[Array], Array]:
  """A coefficient that rises linearly from 0, then stays constant.

  Args:
    value: value from step `steps` on.
    steps: duration of the rise; 0 for none.
  """
  if not steps:
    return value
  return lambda step: value * jnp.minimum(step.astype(jnp.float32) / steps, 1.0)
