"""What a reader should know before the numbers: short runs, dead latents."""

from collections.abc import Mapping, Sequence
from typing import Any

from saejax.report import page

TOY_TOKENS = 10_000_000
DEAD_SHARE = 0.05


def toy(points: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  """Returns a note on a run of few tokens.

  Args:
    points: records of SAEs.
  """
  tokens = max((p.get("tokens") or 0 for p in points), default=0)
  if not 0 < tokens < TOY_TOKENS:
    return []
  return [
    page.Note(
      f"This is a toy run: each SAE saw {tokens:,} tokens, and published ones see"
      " hundreds of millions to tens of billions. It shows how loss depends on"
      " the settings at this size. Trained for longer, the same SAEs have a lower"
      " loss, more specific latents and other parameters of the law, so that no"
      " conclusion about the model should rest on it."
    )
  ]


def dead(points: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  """Returns a note on the SAE with most dead latents, where they are many.

  Args:
    points: records of SAEs.
  """
  many = [p for p in points if (p.get("dead") or 0) >= DEAD_SHARE]
  if not many:
    return []
  worst = max(many, key=lambda p: p["dead"])
  rows = f"all {worst['rows']:,}" if worst.get("rows") else "all"
  k = f", k = {worst['k']:,}" if worst.get("k") else ""
  others = len(many) - 1
  more = (
    f" {others} other SAE{'s have' if others > 1 else ' has'} more than"
    f" {100 * DEAD_SHARE:.0f} %; see the table."
    if others
    else ""
  )
  alive = round(worst["n"] * (1 - worst["dead"]))
  return [
    page.Note(
      f"{100 * worst['dead']:.0f} % of the latents of n = {worst['n']:,}{k} are"
      f" dead: they are 0 on {rows} held-out rows. They cost memory and time and"
      " reconstruct nothing, so that this SAE works as one of about"
      f" {alive:,} latents. Its loss is higher than that of an SAE of its n whose"
      " latents are all in use, and a law through such points underrates what"
      f" more latents give. More tokens or a larger k have fewer dead.{more}"
    )
  ]
