"""Small cases of every method of the catalogue: recipes and batches.

Latents die within a few steps, so that what revives them takes part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step_programs import Sizes
from saejax.recipes import arguments, common
from saejax.sae import activations, initial
from saejax.sae.context import Batch
from saejax.studies import short_runs
from saejax.training import recipe as recipes
from saejax.training.config import TrainConfig

SIZES, STEPS = Sizes(rows=64, d=16, n=256, k=4), 3


def general(n: int, d: int) -> Any:
  """The SAE that finetuned methods start from.

  Args:
    n, d: its sizes.
  """
  return initial.init(
    jax.random.key(3), n=n, d=d, activation=activations.ReLU()
  )


# Of methods that the studies do not run: from (k, n, d).
SPECIAL: Mapping[str, Any] = {
  "ba": lambda k, n, d: {"frequency": 0.1, "every": 2},
  "mfr": lambda k, n, d: {"k": k},
  "ssae": lambda k, n, d: {
    "init_from": general(n, d),
    "t": 10.0,
    "coefficient": 0.3 / d,
  },
  "csae": lambda k, n, d: {},
  "tide": lambda k, n, d: {"k": k, "timesteps": 5, "modulation": "table"},
  "layergroup": lambda k, n, d: {"k": k, "scale": (1.0, 2.0, 0.5, 1.5, 1.0)},
  "circuit_codes": lambda k, n, d: {},
}


# Batches that initial weights are drawn with, of methods that need more than one.
SAMPLED = {"ra_sae": 5}


def recipe(
  name: str, sizes: Sizes = SIZES, *, steps: int = 100, **more: Any
) -> recipes.Recipe:
  """A method as the studies run it, with latents that die in a few steps.

  Args:
    name: name in the catalogue.
    sizes: sizes of a step.
    steps: steps of the whole run.
    **more: further arguments and options of the recipe.
  """
  if name in SPECIAL:
    arguments_of = SPECIAL[name]
  else:
    variant = next(v for v in short_runs.VARIANTS.values() if v.recipe == name)
    arguments_of = variant.arguments
  given = {**arguments_of(sizes.k, sizes.n, sizes.d)}
  train = TrainConfig(
    batch_rows=sizes.rows, steps=steps, dead_after_tokens=2 * sizes.rows
  )
  options = train.options(steps=steps)
  for key, value in more.items():
    of_run = key in common.Options.__annotations__
    (options if of_run else given)[key] = value
  return arguments.make(name, d=sizes.d, n=sizes.n, arguments=given, **options)


def batches(
  name: str, sizes: Sizes = SIZES, *, steps: int = STEPS
) -> list[dict[str, np.ndarray]]:
  """Rows of mean square norm 1 for each step, with all fields of a batch.

  Args:
    name: name in the catalogue.
    sizes: sizes of a step.
    steps: number of batches.
  """
  rng, rows, d, n = np.random.default_rng(0), sizes.rows, sizes.d, sizes.n
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  directions, found = normal(n, d), []
  for _ in range(steps):
    x = (rng.random((rows, n)) < 3 / n) * rng.uniform(0.5, 1.5, (rows, n))
    x = (x @ directions + 0.1 * normal(rows, d)).astype(np.float32)
    x /= np.sqrt(np.mean(np.sum(x**2, axis=1)))
    batch = {"x": x, "score": x @ directions[0], "cond": np.arange(rows) % 5}
    if name == "csae":
      batch = {"x": x.reshape(-1, 2, d)}
    found.append({k: np.asarray(v) for k, v in batch.items()})
  return found


def joined(found: Sequence[Mapping[str, np.ndarray]]) -> Batch:
  """The rows of several batches as one, such as those to draw weights with.

  Args:
    found: the batches.
  """
  join = lambda key: jnp.asarray(np.concatenate([b[key] for b in found]))
  return Batch(**{key: join(key) for key in found[0]})
