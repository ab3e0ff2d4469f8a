"""Cards of latents on the page of a run: examples with the latent on each token."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from saejax.features import overview
from saejax.report import page

_FAMILY = 6  # latents of a family that are named


class Token(NamedTuple):
  """Text of one token, or of several on which the latent is 0.

  Attributes:
    text: the text.
    share: value over the largest one, in [0, 1]; None where it is 0.
    kind: "at" for the token of the example, "cold" for a negative value.
    reading: the value, as text.
  """

  text: str
  share: float | None = None
  kind: str = ""
  reading: str = ""


class Example(NamedTuple):
  """A line of a card."""

  value: str
  tokens: Sequence[Token]


class Card(NamedTuple):
  """A latent: why it is shown, numbers, examples."""

  title: str
  why: str
  facts: Sequence[tuple[str, str]]
  examples: Sequence[Example]


def blocks(
  found: Mapping[str, Any],
  *,
  sae: str,
  command: str,
  smaller: int | None = None,
) -> list[page.Block]:
  """Returns the blocks about some latents of an SAE.

  Args:
    found: what `features.overview.make` returns.
    sae: which SAE it is, such as "n = 4,096, k = 32".
    command: arguments of `saejax dashboard` that show more of them.
    smaller: n of the smaller SAE that latents are compared with, if any.
  """
  latents = found["latents"]
  if not latents:
    return [page.Note(f"No latent of the SAE with {sae} fires on these rows.")]
  cards = [_card(card, found["rows"], smaller) for card in latents]
  split = any(c["pick"].why == overview.SPLIT for c in latents)
  lacking = "" if split else " No direction is shared by several latents."
  text = f"""{len(cards)} of the {found["n"]:,} latents of the SAE with the
    lowest held-out loss, {sae}: the most and the least dense,
    {"one of those that share a direction, " if split else ""}and others drawn at
    random (seed 0) from those that fire.{lacking} The examples are the tokens of
    the {found["rows"]:,} held-out rows on which a latent is largest, with the
    tokens around them. The stronger the shading, the larger the latent on that
    token, relative to its largest value; the outlined token is the example's.
    Nearest are the latents with the largest cosines of decoder rows.

    A latent is worth a name where its examples have something in common that
    other text lacks. That its largest values look alike does not show what the
    smaller ones are: `saejax dashboard {command}` shows those too, with histograms
    and a search."""
  return [page.Prose(text), page.Cards(cards)]


def _card(card: Mapping[str, Any], rows: int, smaller: int | None) -> Card:
  near = ", ".join(f"{o['latent']} ({o['value']:.2f})" for o in card["nearest"])
  share = 100 * card["density"]
  count = f"{card['count']:,} row{'s' * (card['count'] != 1)}"
  facts = [
    (
      "fires on",
      f"{share:.2g} % ({count})" if share < 10 else f"{share:.0f} % ({count})",
    ),
    ("mean", f"{card['mean']:.3g}"),
    ("largest", f"{card['max']:.3g}"),
    ("nearest", near or "none"),
  ]
  return Card(
    f"Latent {card['latent']}",
    _why(card["pick"], smaller),
    facts,
    [_example(e, card["max"]) for e in card["examples"]],
  )


def _why(pick: overview.Pick, smaller: int | None) -> str:
  """Says why a latent is shown."""
  if pick.why == overview.MOST_DENSE:
    return "The most dense: no other latent fires on as many rows."
  if pick.why == overview.LEAST_DENSE:
    return "The least dense of those that fire at all."
  if pick.why == overview.RANDOM:
    return "Drawn at random."
  others = [str(i) for i in pick.family if i != pick.latent]
  named = ", ".join(others[:_FAMILY]) + " and others" * (len(others) > _FAMILY)
  if pick.parent is None:
    return (
      f"The most split direction: {len(pick.family)} latents have decoder rows"
      f" with a cosine of at least {overview.LEAST_COSINE:g} with this one"
      f" ({named})."
    )
  return (
    f"The most split: latent {pick.parent} of the SAE with n = {smaller:,} is"
    f" nearest to {len(pick.family)} latents here, this one and {named} (cosine of"
    f" decoder rows at least {overview.LEAST_COSINE:g})."
  )


def _example(example: Mapping[str, Any], most: float) -> Example:
  tokens: list[Token] = []
  for i, (text, value) in enumerate(
    zip(example["tokens"], example["values"], strict=True)
  ):
    text = _visible(text)
    at = i == example["at"]
    if (value or at) and text[:1] == " " and text.strip():
      tokens.append(Token(" "))  # a line may end there, before the shading
      text = text[1:]
    if value or at:
      kind = " ".join(["at"] * at + ["cold"] * (value < 0))
      share = round(min(abs(value) / (most or 1), 1), 3)
      tokens.append(Token(text, share, kind, page.signed(f"{value:.3g}")))
    elif tokens and tokens[-1].share is None:
      tokens[-1] = Token(tokens[-1].text + text)
    else:
      tokens.append(Token(text))
  return Example(page.signed(f"{example['value']:.3g}"), tokens)


def _visible(text: str) -> str:
  """Text on one line that can be encoded."""
  text = text.encode("utf-8", "replace").decode()
  return text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
