"""The strongest latents on each token of given texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from saejax.data.text import neighbours, rules
from saejax.data.text.subject import Subject
from saejax.errors import InputError
from saejax.features import cards, lens, summary
from saejax.models import taps, tokenizer
from saejax.models.model import Model
from saejax.sae.sae import SAE

_PADDED = 32  # lengths are padded to a multiple, so that few are compiled


def read(
  sae: SAE,
  model: Model,
  subject: Subject,
  words: tokenizer.Tokenizer,
  texts: Sequence[str],
  *,
  strongest: int = 8,
  limit: float = np.inf,
) -> list[dict[str, Any]]:
  """Encodes the tokens of texts.

  A text is one window, between the special tokens of a harvest. Tokens that a
  harvest drops (special ones, those of the first positions, outliers) are no rows
  and have no latents.

  Args:
    sae: the SAE of the site, in the inference form.
    model: the model.
    subject: the model at the site, see `subject.at_site`.
    words: the tokenizer.
    texts: the texts.
    strongest: number of latents of a token that are shown.
    limit: largest norm of a row.

  Returns:
    For each text its tokens, which of them are rows, and for each token the
    latents and values, the largest first. A latent that is among the `strongest`
    of one token is listed at every token where it is active.

  Raises:
    InputError: the site has another width than the SAE, or a text has no token
      or more than the model has positions.
  """
  if subject.d != sae.d:
    raise InputError(
      "model",
      model.name,
      f"must have a site of the width of the SAE, {sae.d}, not {subject.d}",
      "give the model and the site of the SAE",
    )
  site = subject.meta["site"]["name"]
  chosen = rules.RowRules(special=subject.special, first=subject.drop_first)
  found = []
  for text in texts:
    own = subject.encode(text)
    _check_length(text, own, subject)
    ids = np.concatenate([subject.prefix, own, subject.suffix]).astype(np.int32)
    T = -(-len(ids) // _PADDED) * _PADDED
    T = min(T, subject.max_positions) if subject.max_positions else T
    mask = (np.arange(T) < len(ids))[None]
    padded = np.pad(ids, (0, T - len(ids)))[None]
    h = np.asarray(taps.read(model, padded, mask, [site])[site], np.float32)
    start = len(subject.prefix)
    real = (np.arange(T) >= start) & (np.arange(T) < start + len(own))
    dropped = chosen.dropped(padded, real[None], np.arange(T)[None])
    rows = real & ~np.any(list(dropped.values()), axis=0)[0]
    x = h.reshape(T, -1)
    rows &= np.linalg.norm(x, axis=-1) <= limit
    here = slice(start, start + len(own))
    found.append(
      {
        "text": text,
        "tokens": neighbours.pieces(words, own),
        "rows": rows[here].tolist(),
        "latents": _latents(
          sae, np.where(rows[:, None], x, 0), rows, strongest
        )[here],
      }
    )
  return found


def _check_length(text: str, ids: np.ndarray, subject: Subject) -> None:
  shown = text if len(text) <= 40 else text[:40] + "..."
  if not len(ids):
    raise InputError("prompt", shown, "must have a token", "give some text")
  most = subject.max_positions - len(subject.prefix) - len(subject.suffix)
  if subject.max_positions and len(ids) > most:
    raise InputError(
      "prompt",
      shown,
      f"must have at most {most} tokens, as the model has positions; it has "
      f"{len(ids)}",
      "give a shorter text, or divide it into several prompts",
    )


def _latents(
  sae: SAE, x: np.ndarray, rows: np.ndarray, strongest: int
) -> list[list[dict[str, Any]]]:
  """Latents of each token that are among the strongest of any."""
  listed: list[list[tuple[int, float]]] = [[] for _ in x]
  for part in summary.active(sae, np.arange(len(x)), x, 4096):
    for row, latent, value in zip(
      part.row.tolist(), part.latent.tolist(), part.value.tolist(), strict=True
    ):
      if rows[row]:
        listed[row].append((latent, value))
  for mine in listed:
    mine.sort(key=lambda pair: (-abs(pair[1]), pair[0]))
  shown = {latent for mine in listed for latent, _ in mine[:strongest]}
  return [
    [
      {"latent": latent, "value": float(f"{value:.4g}")}
      for latent, value in mine
      if latent in shown
    ]
    for mine in listed
  ]


def latents(prompts: Sequence[dict[str, Any]]) -> list[int]:
  """The numbers of the latents that prompts show, ascending.

  Args:
    prompts: those of `read`.
  """
  return sorted(
    {one["latent"] for p in prompts for mine in p["latents"] for one in mine}
  )


def bare_cards(
  sae: SAE,
  latents: Sequence[int],
  *,
  model: Model | None = None,
  words: tokenizer.Tokenizer | None = None,
  sizes: cards.Sizes = cards.Sizes(),
) -> dict[str, Any]:
  """Makes cards without a store: neighbours in the decoder, and tokens.

  Args:
    sae: the SAE.
    latents: numbers of the latents.
    model: causal model of the rows, for the tokens that latents favour.
    words: its tokenizer.
    sizes: numbers of what a card shows.

  Raises:
    InputError: the model has no language head or another width.
  """
  which = np.unique(np.asarray(latents, int))
  near = cards.nearest(np.asarray(sae.W_dec, np.float32), which, sizes.near)
  found = [
    {"latent": int(i), "examples": [], "nearest": n}
    for i, n in zip(which, near, strict=True)
  ]
  if model is not None and words is not None:
    lens.check(model, sae.d)
    favoured = lens.favoured(sae, model, which, words, sizes.tokens)
    found = [a | b for a, b in zip(found, favoured, strict=True)]
  return {
    "format": cards.FORMAT,
    "sae": {"n": sae.n, "d": sae.d},
    "latents": found,
  }
