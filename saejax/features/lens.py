"""Tokens that a latent's decoder row favours, read off the language head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.models.model import Model
from saejax.models.tokenizer import Tokenizer
from saejax.sae.sae import SAE

_LOGITS = 2**24  # logits in memory at once


def check(model: Model, d: int) -> None:
  """Refuses a model whose head cannot read rows of this width.

  Args:
    model: the model.
    d: width of the rows.

  Raises:
    InputError: the model is an encoder, has no head, or has another width.
  """
  _ = model.head
  if model.d != d:
    raise InputError(
      "model",
      model.name,
      f"must have a residual stream of the width of the SAE, {d}, not {model.d}",
      "give the model of the SAE, or none",
    )


def logits(
  model: Model, directions: Float[np.ndarray, "L d"]
) -> Float[np.ndarray, "L V"]:
  """Computes W_head (norm(v) - norm(0)), the logit lens of directions.

  norm is the model's last one, and v the direction scaled to a root mean square
  of 1, as the norm undoes its length. They are logits up to a factor.

  Args:
    model: a causal model.
    directions: directions in its residual stream.

  References:
    nostalgebraist, interpreting GPT: the logit lens, 2020.
  """
  size = np.sqrt(np.mean(np.square(directions), axis=-1, keepdims=True))
  v = directions / np.where(size > 0, size, 1)
  h = jnp.asarray(np.concatenate([v, np.zeros_like(v[:1])]))
  return np.asarray(_normed(model, h), np.float32)


@jax.jit  # the layers before, whose outputs are replaced, are not computed
def _normed(model: Model, h: Float[Array, "L+1 d"]) -> Float[Array, "L V"]:
  """Logits of rows after the last layer, less those of the last row."""
  last = f"layers.{model.layers - 1}.resid_post"
  point = lambda name, old: (
    h[:, None].astype(old.dtype) if name == last else old
  )
  ids = jnp.zeros((len(h), 1), jnp.int32)
  out = model.hidden(ids, jnp.ones_like(ids, bool), tap=point)[:, 0]
  h, W = out[:-1] - out[-1], model.head
  return h.astype(jnp.float32) @ W.astype(jnp.float32).T


def tokens(
  model: Model, directions: Float[np.ndarray, "L d"], count: int = 10
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Finds the tokens of the largest and the smallest logits.

  Args:
    model: a causal model.
    directions: directions in its residual stream.
    count: number of tokens.

  Returns:
    Ids and logits of the largest, then of the smallest, all [L, count].
  """
  found = []
  block = max(1, _LOGITS // model.vocabulary)
  for start in range(0, len(directions), block):
    values = logits(model, directions[start : start + block])
    order = np.argsort(-values, axis=1, kind="stable")
    ends = order[:, :count], order[:, ::-1][:, :count]
    found.append(
      [a for ids in ends for a in (ids, np.take_along_axis(values, ids, 1))]
    )
  empty = np.zeros((0, count))
  parts = zip(*found, strict=True) if found else [[empty]] * 4
  top, high, bottom, low = (np.concatenate(part) for part in parts)
  return top, high, bottom, low


def directions(
  sae: SAE, latents: Int[np.ndarray, "L"]
) -> Float[np.ndarray, "L d"]:
  """Directions of latents in the residual stream, for the logit lens.

  Args:
    sae: the SAE.
    latents: numbers of the latents.

  Raises:
    InputError: they depend on the row.
  """
  try:
    return np.asarray(sae.direction(latents), np.float32)
  except NotImplementedError as error:
    raise InputError(
      "model",
      "given",
      f"the latents must each have one direction ({error})",
      "leave the model out",
    ) from error


def favoured(
  sae: SAE,
  model: Model,
  latents: Int[np.ndarray, "L"],
  words: Tokenizer,
  count: int,
) -> list[dict[str, Any]]:
  """The tokens with the largest and the smallest logits of each latent.

  Args:
    sae: the SAE.
    model: a causal model.
    latents: numbers of the latents.
    words: its tokenizer.
    count: number of tokens.
  """
  rows = directions(sae, latents)
  top, high, bottom, low = tokens(model, rows, count)

  def named(ids: np.ndarray, values: np.ndarray) -> list[dict[str, Any]]:
    return [
      {"token": words.decode([i]), "logit": float(f"{v:.4g}")}
      for i, v in zip(ids.tolist(), values.tolist(), strict=True)
    ]

  return [
    {"promoted": named(a, b), "suppressed": named(c, d)}
    for a, b, c, d in zip(top, high, bottom, low, strict=True)
  ]
