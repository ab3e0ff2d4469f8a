"""Number of parameters of an SAE and of operations of its encoder."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from saejax.sae.context import Batch, as_batch
from saejax.sae.sae import SAE

ROWS = 512


def cost(sae: SAE, rows: Float[Array, "b d"] | Batch) -> Mapping[str, float]:
  """Counts the parameters of an SAE and the FLOPs of encoding a row.

  Args:
    sae: the SAE, in its training or inference form.
    rows: rows, of which the first 512 are used; only their shape matters.

  Returns:
    "parameters", numbers in the SAE's arrays without the prep, and
    "encode_flops" per row, as XLA counts them before optimisation (bodies of
    loops once).
  """
  batch = jax.tree.map(lambda a: jnp.asarray(a[:ROWS]), as_batch(rows))
  program = jax.jit(lambda s, b: s.encode(b)).lower(sae, batch)
  analysis: Any = program.cost_analysis()
  parts = (sae.encoder, sae.activation, sae.decoder)
  return {
    "parameters": int(sum(a.size for a in jax.tree.leaves(parts))),
    "encode_flops": float(analysis.get("flops", float("nan"))) / batch.rows,
  }
