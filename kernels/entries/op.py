"""A sparse code given entry by entry, for rows with unlike numbers of latents.

    entry e: value v_e of latent i_e in row b_e
    decode   x_hat_b = sum over e with b_e = b: v_e W[i_e]
    encoded  v_e = <x_b - b_pre, W_enc[i_e]> + b_enc[i_e], given v, for gradients

A batch whose rows share a budget has exactly so many entries, though rows have
unlike numbers of them: entries cost what they number, where [B, K] would cost
the longest row for each. With rows of the batch sharded over `data`, each shard
holds the entries of its own rows, with some room beside an even share; latents
sharded over `latent` are treated as in `sparse_decode.op`.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Shaped

from saejax.kernels import dispatch, mesh
from saejax.kernels.entries import native, ref, xla
from saejax.kernels.sparse_decode import xla as sparse_xla
from saejax.kernels.topk import xla as topk

IMPLEMENTATIONS = {"ref": ref, "xla": xla}
# Room on each of several shards beside an even share, in standard deviations, if
# that of a row's number of entries were its mean; it is about half of it.
SPARE = 4


class Packed(NamedTuple):
  """Where the set entries of a mask lie, row by row.

  Attributes:
    rows: row of each entry [e], ascending.
    columns: column of each entry [e].
    filled: whether there is such an entry [e]; others are at the end of each
      shard's, in its last row.
    whole: whether there was room for all.
    taken: the entries of further arrays there, each [e].
  """

  rows: Int[Array, "e"]
  columns: Int[Array, "e"]
  filled: Bool[Array, "e"]
  whole: Bool[Array, ""]
  taken: tuple[Array, ...]


def pack(
  mask: Bool[Array, "b c"], entries: int, *arrays: Shaped[Array, "b c"]
) -> Packed:
  """The set entries of a mask, row by row.

  Args:
    mask: the mask.
    entries: maximum number of set entries.
    *arrays: arrays whose entries are taken there.
  """
  b, c = mask.shape
  data = mesh.axis_or_none(mesh.DATA, b)
  local, size = b, entries
  if data:
    local = b // mesh.size(data)
    share = entries / mesh.size(data)
    size = min(math.ceil(share * (1 + SPARE / local**0.5)), local * c)

  def body(mask, *arrays):
    within, before = topk.prefix_sums(mask)
    upto = before + within[..., -1]
    count = upto[:, -1].astype(jnp.int32)
    ends = jnp.cumsum(count)
    e = jnp.arange(size)
    row = jnp.searchsorted(ends, e, side="right")
    filled, row = e < ends[-1], jnp.minimum(row, local - 1)
    # The entry at which the row's set entries reach this one's number.
    number = (e - ends[row] + count[row] + 1).astype(jnp.float32)
    group = jnp.sum((upto[row] < number[:, None]).astype(jnp.int32), axis=1)
    group = jnp.minimum(group, upto.shape[1] - 1)
    left = (number - before[row, group])[:, None]
    inside = jnp.sum((within[row, group] < left).astype(jnp.int32), axis=1)
    column = jnp.minimum(group * topk.GROUP + inside, c - 1)
    taken = tuple(a[row, column] for a in arrays)
    first = jax.lax.axis_index(data) * local if data else 0
    whole = (ends[-1] <= size)[None]
    return first + row, column, filled, whole, taken

  if data:
    body = mesh.per_shard(body, (P(data),) * (1 + len(arrays)), P(data))
  rows, columns, filled, whole, taken = body(mask, *arrays)
  return Packed(rows, columns, filled, jnp.all(whole), taken)


def decode(
  values: Float[Array, "e"],
  rows: Int[Array, "e"],
  indices: Int[Array, "e"],
  W: Float[Array, "n d"],
  *,
  size: int,
  ends: tuple[int, ...],
  dtype: str = "float32",
) -> Float[Array, "runs size d"]:
  """The sums of each row's entries in each of several runs of latents.

      out[r, b] = sum over e with rows_e = b and ends_{r-1} <= indices_e < ends_r
                  of values_e W[indices_e]

  Accumulated in float32. Entries of value 0 are absent. Differentiable in values
  and W; gradients are float32 whatever `dtype`. One run costs what several do.

  Args:
    values: entries; 0 where absent.
    rows: row of each entry; on each shard of `data` one of its own.
    indices: latent of each entry.
    W: dense matrix, row i is latent i.
    size: number of rows.
    ends: first latent after each run, not decreasing, at most n.
    dtype: dtype in which W's rows are read.
  """
  return _decode(values, rows, indices, W, size, ends, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _decode(values, rows, indices, W, size, ends, dtype):
  shards = _Shards.build(size, W.shape[0])
  data, total = shards.data, len(ends) * shards.rows

  def body(values, rows, indices, W):
    own = shards.own(values, rows, indices, ends)
    sums = add_rows(
      own.values, own.segments, own.indices, W.astype(dtype), total
    )
    runs = sums.reshape(len(ends), shards.rows, W.shape[1])
    return mesh.psum(runs, shards.latent)

  specs = (P(data), P(data), P(data), P(shards.latent))
  return shards.run(body, specs, P(None, data))(values, rows, indices, W)


def _decode_forward(values, rows, indices, W, size, ends, dtype):
  out = _decode(values, rows, indices, W, size, ends, dtype)
  return out, (values, rows, indices, W)


def _decode_backward(size, ends, dtype, saved, g):
  values, rows, indices, W = saved
  shards = _Shards.build(size, W.shape[0])
  data, latent = shards.data, shards.latent

  def body(values, rows, indices, W, g):
    own = shards.own(values, rows, indices, ends)
    g = g.reshape(-1, g.shape[-1])
    d_values, d_W = gradients(*own, g, W, dtype)
    return mesh.psum(d_values, latent), mesh.psum(d_W, data)

  specs = (P(data), P(data), P(data), P(latent), P(None, data))
  run = shards.run(body, specs, (P(data), P(latent)))
  d_values, d_W = run(values, rows, indices, W, g)
  return d_values.astype(values.dtype), None, None, d_W.astype(W.dtype)


_decode.defvjp(_decode_forward, _decode_backward)


@jax.custom_vjp
def encoded(
  values: Float[Array, "e"],
  rows: Int[Array, "e"],
  indices: Int[Array, "e"],
  x: Float[Array, "b d"],
  b_pre: Float[Array, "d"],
  W: Float[Array, "n d"],
  b: Float[Array, "n"],
) -> Float[Array, "e"]:
  """The pre-activations of entries, already computed, with their gradients.

      values_e = <x[rows_e] - b_pre, W[indices_e]> + b[indices_e]

  The gradient touches the entries' rows alone, and is 0 in `values`.

  Args:
    values: the pre-activations.
    rows: row of each entry; on each shard of `data` one of its own.
    indices: latent of each entry.
    x: activations.
    b_pre: subtracted from each row of x.
    W: encoder, row i is latent i.
    b: added to the pre-activations.
  """
  del rows, indices, x, b_pre, W, b
  return values


def _encoded_forward(values, rows, indices, x, b_pre, W, b):
  out = encoded(values, rows, indices, x, b_pre, W, b)
  return out, (rows, indices, x, b_pre, W)


def _encoded_backward(saved, g):
  rows, indices, x, b_pre, W = saved
  shards = _Shards.build(x.shape[0], W.shape[0])
  data, latent, ends = shards.data, shards.latent, (W.shape[0],)

  def body(g, rows, indices, x, W):
    own = shards.own(g, rows, indices, ends)
    d_W = add_rows(own.values, own.indices, own.segments, x, shards.latents)
    d_b = sparse_xla.scatter_scalars(
      own.values[None], own.indices[None], shards.latents
    )
    d_x = add_rows(own.values, own.segments, own.indices, W, shards.rows)
    sums = (mesh.psum(d_W, data), mesh.psum(d_b, data))
    return *sums, mesh.psum(d_x, latent)

  specs = (P(data), P(data), P(data), P(data), P(latent))
  run = shards.run(body, specs, (P(latent), P(latent), P(data)))
  d_W, d_b, d_x = run(g, rows, indices, x - b_pre, W)
  d_b_pre = -(d_b @ W)
  return (
    jnp.zeros_like(g),
    None,
    None,
    d_x.astype(x.dtype),
    d_b_pre.astype(b_pre.dtype),
    d_W.astype(W.dtype),
    d_b,
  )


encoded.defvjp(_encoded_forward, _encoded_backward)


def row_sums(
  terms: Float[Array, "e"], rows: Int[Array, "e"], size: int
) -> Float[Array, "size"]:
  """The sum of the terms of each row.

  Args:
    terms: a term per entry.
    rows: row of each entry; on each shard of `data` one of its own.
    size: number of rows.
  """
  data = mesh.axis_or_none(mesh.DATA, size)
  local = size // mesh.size(mesh.DATA) if data else size

  def body(terms, rows):
    first = jax.lax.axis_index(data) * local if data else 0
    return jnp.zeros((local,), terms.dtype).at[rows - first].add(terms)

  if data:
    body = mesh.per_shard(body, (P(data), P(data)), P(data))
  return body(terms, rows)


# --- on one device -----------------------------------------------------------


def add_rows(values, to, source, y, size: int, implementation=None):
  """Row i: the sum of values[e] y[source[e]] over all e with to[e] = i.

  Args:
    values: factors [e]; 0 where absent.
    to: row of the result of each entry [e].
    source: row of y of each entry [e].
    y: rows [m, d].
    size: number of rows of the result.
    implementation: "ref" or "xla"; None lets the op choose.

  Returns:
    The sums [size, d], in float32.
  """
  if implementation == "ref":
    return ref.add_rows(values, to, source, y, size)
  small = values.size < 2**31 and implementation is None
  return dispatch.run(
    values,
    to,
    source,
    y,
    xla=partial(xla.add_rows, size=size),
    native=partial(native.add_rows, size=size) if small else None,
  )


def products(a, i, b, j, implementation: str = "xla"):
  """<a[i[e]], b[j[e]]> in float32.

  Args:
    a: rows [m, d].
    i: row of a of each entry [e].
    b: rows [n, d], in the dtype of a.
    j: row of b of each entry [e].
    implementation: "ref" or "xla".

  Returns:
    The products [e].
  """
  return IMPLEMENTATIONS[implementation].products(a, i, b, j)


def gradients(values, rows, indices, g, W, dtype: str):
  """The gradients of `decode` in values and in W, in float32.

  Args:
    values: entries [e]; 0 where absent, and so is its gradient.
    rows: row of g of each entry [e].
    indices: row of W of each entry [e].
    g: gradient in the decoded rows [m, d].
    W: dense matrix [n, d].
    dtype: dtype in which g and W's rows are multiplied.
  """

  def apart(values, rows, indices, g, W):
    found = products(g.astype(dtype), rows, W.astype(dtype), indices)
    d_W = add_rows(values, indices, rows, g, W.shape[0])
    return jnp.where(values != 0, found, 0), d_W

  float32 = g.dtype == W.dtype == jnp.dtype(dtype) == jnp.float32
  together = native.gradients if float32 and values.size < 2**31 else None
  return dispatch.run(values, rows, indices, g, W, xla=apart, native=together)


class _Own(NamedTuple):
  """The entries that concern one shard, by its own numbers.

  Attributes:
    values: entries; 0 where the latent is another shard's, or in no run.
    segments: number of the run times rows of this shard, plus the row.
    indices: latent.
  """

  values: Float[Array, "e"]
  segments: Int[Array, "e"]
  indices: Int[Array, "e"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Shards:
  """How rows and latents are split.

  Attributes:
    data, latent: mesh axes over which they are split, or None.
    rows, latents: numbers of them on each shard.
  """

  data: str | None
  latent: str | None
  rows: int
  latents: int

  @classmethod
  def build(cls, rows: int, n: int) -> "_Shards":
    data = mesh.axis_or_none(mesh.DATA, rows)
    latent = mesh.axis_or_none(mesh.LATENT, n)
    return cls(
      data=data,
      latent=latent,
      rows=rows // mesh.size(mesh.DATA) if data else rows,
      latents=n // mesh.size(mesh.LATENT) if latent else n,
    )

  def run(self, body: Callable, in_specs, out_specs) -> Callable:
    """Runs `body` on each shard, where there are several."""
    if not (self.data or self.latent):
      return body
    return mesh.per_shard(body, in_specs, out_specs)

  def own(self, values, rows, indices, ends: tuple[int, ...]) -> _Own:
    """This shard's entries; only inside `run`."""
    run = sum((indices >= end).astype(jnp.int32) for end in ends)
    index, mine = mesh.own(indices, self.latents, self.latent)
    here = mine & (run < len(ends))
    if self.data:
      rows = rows - jax.lax.axis_index(self.data) * self.rows
    segments = jnp.where(here, run, 0) * self.rows + rows
    return _Own(jnp.where(here, values, 0), segments, index)
