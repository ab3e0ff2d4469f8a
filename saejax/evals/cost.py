"""Size of an SAE and the operations that encoding takes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE

ROWS = 512


def cost(sae: SAE, rows: Float[Array, "b d"] | Batch) -> Mapping[str, float]:
  """Numbers and operations of an SAE in the form given.

  Args:
    sae: with arrays.
    rows: of which the first 512 are encoded; their values do not matter.

  Returns:
    parameters: numbers in its arrays, the prep's apart; encode_flops: of
    encoding one row, as XLA counts the program before it is optimised (bodies
    of loops once).
  """
  batch = jax.tree.map(lambda a: jnp.asarray(a[:ROWS]), as_batch(rows))
  program = jax.jit(lambda s, b: s.encode(b)).lower(sae, batch)
  analysis: Any = program.cost_analysis()
  parts = (sae.encoder, sae.activation, sae.decoder)
  return {
    "parameters": int(sum(a.size for a in jax.tree.leaves(parts))),
    "encode_flops": float(analysis.get("flops", float("nan"))) / batch.rows,
  }
