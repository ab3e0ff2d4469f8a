"""Adds the effects of latents on the model to their cards, see `latent_effects`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals import latent_effects
from saejax.models.model import Model
from saejax.sae.sae import SAE

ABLATED = 5  # windows of a latent
Card = dict[str, Any]


def spread(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Up to five examples from all parts of the range: one group after another.

  Args:
    examples: those of a card, groups in the order of values.
  """
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for example in examples:
    groups.setdefault(example["group"], []).append(example)
  rounds = itertools.zip_longest(*groups.values())
  return [e for e in itertools.chain(*rounds) if e is not None][:ABLATED]


def cost(
  cards: Sequence[Card], *, ablation: bool, attribution: bool
) -> tuple[int, int]:
  """The numbers of windows that are ablated, and that have a gradient taken.

  Args:
    cards: the cards, with examples.
    ablation, attribution: what is asked for.
  """
  ablated = sum(len(spread(card["examples"])) for card in cards)
  rows = {e["row"] for card in cards for e in card["examples"]}
  return ablated * ablation, len(rows) * attribution


def add(
  cards: Sequence[Card],
  sae: SAE,
  store: Store,
  model: Model,
  *,
  ablation: bool = True,
  attribution: bool = True,
  before: int = 14,
  after: int = 10,
  batch_windows: int = 16,
  progress: Mapping[str, latent_effects.Progress] | None = None,
) -> list[Card]:
  """Returns the cards with the effects of their latents.

  Examples get `attribution`, a number for each of their tokens, and cards with
  examples `ablation`: windows with the change and, with attribution, what it is
  to first order, `linear`. `mean` is over the windows where the latent is active
  without the text before them; in others its value and the change are 0.

  Args:
    cards: cards of `features.cards`, from this SAE and store.
    sae: the SAE, in the inference form.
    store: the store of the examples.
    model: the model that the store was harvested from.
    ablation: whether to ablate, two passes on each of five windows of a latent.
    attribution: whether to attribute, a forward and a backward pass on the
      window of each example.
    before, after: tokens around that of an example, as for the cards.
    batch_windows: windows in a forward pass.
    progress: by "ablation" and "attribution", called after each batch.

  Raises:
    InputError: the store has several sites or no rules for its rows, or as
      `latent_effects.ablate` and `attribute`.
  """
  site = (store.meta.get("site") or {}).get("name")
  if not isinstance(site, str):
    raise InputError(
      "store",
      str(store.place),
      "must be of one named site of a model",
      "harvest one site",
    )
  shown = [
    (card["latent"], e)
    for card in cards
    for e in (card["examples"] if attribution else spread(card["examples"]))
  ]
  rows = sorted({e["row"] for _, e in shown})
  number = {row: i for i, row in enumerate(rows)}
  found = latent_effects.windows(store, rows, before=before, after=after)
  around = (model, sae, site, found)
  progress = progress or {}
  linear: dict[tuple[int, int], float] = {}
  if attribution:
    shown.sort(key=lambda pair: number[pair[1]["row"]])
    a = latent_effects.attribute(
      *around,
      *_pairs(shown, number),
      batch_windows=batch_windows,
      progress=progress.get("attribution"),
    )
    linear = {
      (latent, e["row"]): -float(mine.sum())
      for (latent, e), mine in zip(shown, a, strict=True)
    }
    cards = _with_attribution(cards, shown, a, found.row, number)
  if not ablation:
    return list(cards)
  picked = [(c["latent"], e) for c in cards for e in spread(c["examples"])]
  effect = latent_effects.ablate(
    *around,
    *_pairs(picked, number),
    batch_windows=batch_windows,
    progress=progress.get("ablation"),
  )
  windows: dict[int, list[dict[str, Any]]] = {}
  for (latent, e), change, value in zip(
    picked, effect.change, effect.value, strict=True
  ):
    one = {"row": e["row"], "group": e["group"]}
    numbers = {"value": value, "change": change}
    if attribution:
      numbers["linear"] = linear[latent, e["row"]]
    one |= {name: _short([v])[0] for name, v in numbers.items()}
    windows.setdefault(latent, []).append(one)
  return [
    card | {"ablation": _ablation(windows[card["latent"]])}
    if card["latent"] in windows
    else card
    for card in cards
  ]


def _with_attribution(
  cards: Sequence[Card],
  shown: Sequence[tuple[int, Mapping[str, Any]]],
  a: np.ndarray,
  rows: np.ndarray,
  number: Mapping[int, int],
) -> list[Card]:
  """The cards with the attribution of each token of their examples."""
  parts: dict[tuple[int, int], list[float]] = {}
  for (latent, e), mine in zip(shown, a, strict=True):
    at = int(np.flatnonzero(rows[number[e["row"]]] == e["row"])[0])
    start = at - e["at"]
    parts[latent, e["row"]] = _short(mine[start : start + len(e["tokens"])])
  return [
    card
    | {
      "examples": [
        e | {"attribution": parts[card["latent"], e["row"]]}
        for e in card["examples"]
      ]
    }
    for card in cards
  ]


def _pairs(
  shown: Sequence[tuple[int, Mapping[str, Any]]], number: Mapping[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Latents and numbers of windows."""
  latents = np.array([latent for latent, _ in shown], np.int32)
  return latents, np.array([number[e["row"]] for _, e in shown], np.int32)


def _ablation(windows: list[dict[str, Any]]) -> dict[str, Any]:
  active = [w["change"] for w in windows if w["value"]]
  mean = np.mean(active) if active else 0.0
  return {"mean": _short([mean])[0], "windows": windows}


def _short(values: Any) -> list[float]:
  """Three digits; a page does not need more of them."""
  return [float(f"{v:.3g}") for v in values]
