"""Activations of a site at the tokens of prompts, and their latents."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int

from saejax.errors import InputError
from saejax.features import reading
from saejax.models import taps
from saejax.models.model import Model

Encode = Callable[[Array | np.ndarray], Array | np.ndarray]  # [B, d] -> [B, n]
_PADDED = 16  # lengths are padded to a multiple, so that few are compiled


def read(
  model: Model,
  site: str,
  ids: Sequence[Int[np.ndarray, "T"]],
  position: Int[np.ndarray, "P"],
  *,
  batch_prompts: int = 32,
) -> Float[np.ndarray, "P d"]:
  """Computes the activation at one token of each prompt.

  Args:
    model: the model.
    site: name of the site, in any of the forms of `models.taps`.
    ids: tokens of each prompt, which may have different lengths.
    position: number of the token in each prompt, from 0.
    batch_prompts: prompts in a forward pass.

  Raises:
    InputError: there is no such site, there are no prompts, or a position is
      outside its prompt.
  """
  lengths = np.array([len(own) for own in ids])
  position = np.asarray(position)
  if not len(ids) or position.shape != lengths.shape:
    raise InputError(
      "position",
      f"shape {position.shape}",
      f"must be one number for each of {len(ids)} prompts, at least one",
      "give the prompts of the words",
    )
  outside = np.flatnonzero((position < 0) | (position >= lengths))
  if len(outside):
    raise InputError(
      "position",
      position[outside[0]],
      f"must be a token of prompt {outside[0]}, which has "
      f"{lengths[outside[0]]}",
      "count from the start of the prompt",
    )
  found = None
  order = np.argsort(lengths, kind="stable")  # few lengths in a batch
  for start in range(0, len(order), batch_prompts):
    which = order[start : start + batch_prompts]
    tokens, mask = _padded([ids[i] for i in which], batch_prompts)
    h = np.asarray(taps.read(model, tokens, mask, [site])[site], np.float32)
    x = h[np.arange(len(which)), position[which]].reshape(len(which), -1)
    if found is None:
      found = np.empty((len(ids), x.shape[-1]), np.float32)
    found[which] = x
  assert found is not None
  return found


def texts(
  model: Model,
  site: str,
  ids: Sequence[Int[np.ndarray, "T"]],
  *,
  first: int = 0,
) -> Iterator[Float[np.ndarray, "T d"]]:
  """Yields the activations at the tokens of each text, one text at a time.

  Args:
    model, site, ids: as for `read`.
    first: tokens at the start of each text that are left out, such as BOS.

  Raises:
    InputError: there is no such site, or a text has no further token.
  """
  for number, own in enumerate(ids):
    if len(own) <= first:
      raise InputError(
        "ids",
        f"text {number}",
        f"must have more than {first} tokens, and has {len(own)}",
        "leave the text out",
      )
    tokens, mask = _padded([own], 1)
    h = np.asarray(taps.read(model, tokens, mask, [site])[site], np.float32)
    yield h[0, first : len(own)].reshape(len(own) - first, -1)


def _padded(
  ids: list[Int[np.ndarray, "T"]], rows: int
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and mask [rows, T]; rows beyond the prompts repeat the first."""
  T = -(-max(len(own) for own in ids) // _PADDED) * _PADDED
  tokens, mask = np.zeros((rows, T), np.int32), np.zeros((rows, T), bool)
  for i in range(rows):
    own = ids[i] if i < len(ids) else ids[0]
    tokens[i, : len(own)], mask[i, : len(own)] = own, True
  return tokens, mask


def latents(
  encode: Encode, x: Float[np.ndarray, "P d"], *, batch_rows: int = 1024
) -> scipy.sparse.csr_array:
  """Computes the latents of rows, sparse [P, n].

  Args:
    encode: the latents of rows, such as `sae.encode` or `jax.jit(sae.encode)`.
    x: rows.
    batch_rows: rows that are encoded at once.
  """
  found = []
  for start in range(0, len(x), batch_rows):
    part = np.asarray(x[start : start + batch_rows])
    padded, _ = reading.pad(part, batch_rows)
    z = np.asarray(encode(padded), np.float32)[: len(part)]
    found.append(scipy.sparse.csr_array(z))
  return scipy.sparse.csr_array(scipy.sparse.vstack(found))
