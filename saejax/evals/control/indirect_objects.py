"""Prompts of indirect object identification, with names given.

  When Mary and John arrived at the station, John handed a ticket to   -> Mary

Attributes: the indirect object (IO), the subject S, and the order of the two in
the first clause, "abb" (IO first, as above) or "bab" (S first). A counterfactual
differs in one of them; template, place and thing stay.

References:
  Wang et al., Interpretability in the Wild, 2022, arXiv:2211.00593.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from saejax.errors import InputError

ORDERS = ("abb", "bab")
ATTRIBUTES = ("io", "s", "order")
TEMPLATES = (
  "When {a} and {b} arrived at the {place}, {s} handed a {thing} to",
  "After {a} and {b} had met at the {place}, {s} gave a {thing} to",
  "Then {a} and {b} walked to the {place}, and {s} sent a {thing} to",
  "While {a} and {b} were at the {place}, {s} showed a {thing} to",
  "Once {a} and {b} had left the {place}, {s} offered a {thing} to",
)
PLACES = ("station", "market", "library", "garden", "office", "museum")
THINGS = ("ticket", "letter", "book", "basket", "picture", "key")


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """Prompts with their attributes.

  Attributes:
    names: the names.
    io, s: number of the name of indirect object and subject.
    order: 0 for "abb", 1 for "bab".
    frame: numbers of template, place and thing.
  """

  names: tuple[str, ...]
  io: Int[np.ndarray, "N"]
  s: Int[np.ndarray, "N"]
  order: Int[np.ndarray, "N"]
  frame: Int[np.ndarray, "N 3"]

  def __len__(self) -> int:
    return len(self.io)

  @property
  def texts(self) -> list[str]:
    """The prompts, which end before the answer."""
    found = []
    for io, s, order, (template, place, thing) in zip(
      self.io, self.s, self.order, self.frame, strict=True
    ):
      pair = self.names[io], self.names[s]
      a, b = pair[::-1] if order else pair
      found.append(
        TEMPLATES[template].format(
          a=a, b=b, s=pair[1], place=PLACES[place], thing=THINGS[thing]
        )
      )
    return found

  @property
  def answers(self) -> list[str]:
    """The right answers, with the space before them."""
    return [" " + self.names[io] for io in self.io]

  @property
  def wrong(self) -> list[str]:
    """The subjects, with the space before them."""
    return [" " + self.names[s] for s in self.s]

  def labels(self, *, coupled: bool = False) -> dict[str, np.ndarray]:
    """Returns the attributes of a supervised dictionary, numbered from 0.

    Args:
      coupled: whether each name is an attribute together with the order, "io" and
        "s" with twice as many values, in place of three independent attributes.
    """
    if not coupled:
      return {name: getattr(self, name) for name in ATTRIBUTES}
    return {k: 2 * getattr(self, k) + self.order for k in ("io", "s")}

  def values(self, *, coupled: bool = False) -> dict[str, int]:
    """Returns the number of values of each attribute of `labels`.

    Args:
      coupled: as for `labels`.
    """
    count = len(self.names)
    if coupled:
      return {"io": 2 * count, "s": 2 * count}
    return {"io": count, "s": count, "order": len(ORDERS)}


def prompts(names: Sequence[str], count: int, *, seed: int) -> Prompts:
  """Draws prompts.

  Args:
    names: different names; each should be one token of the model, with a space
      before it.
    count: number of prompts.
    seed: seed of the draw.

  Raises:
    InputError: there are fewer than 3 names, or two are equal.
  """
  names = tuple(names)
  if len(names) < 3 or len(set(names)) < len(names):
    rule = "must be at least 3 different names"
    raise InputError("names", list(names), rule, "add names")
  rng = np.random.default_rng(seed)
  io = rng.integers(len(names), size=count)
  s = (io + rng.integers(1, len(names), size=count)) % len(names)
  frame = [
    rng.integers(len(of), size=count) for of in (TEMPLATES, PLACES, THINGS)
  ]
  order = rng.integers(len(ORDERS), size=count)
  return Prompts(names, io, s, order, np.stack(frame, axis=1))


def counterfactual(base: Prompts, attribute: str, *, seed: int) -> Prompts:
  """Returns the prompts with another value of one attribute.

  Args:
    base: the prompts.
    attribute: "io", "s" or "order"; a new name is neither of the prompt's two.
    seed: seed of the draw.

  Raises:
    InputError: there is no such attribute.
  """
  if attribute not in ATTRIBUTES:
    rule = f"must be one of {', '.join(ATTRIBUTES)}"
    raise InputError("attribute", attribute, rule, f"use {ATTRIBUTES[0]}")
  if attribute == "order":
    return dataclasses.replace(base, order=1 - base.order)
  # Not the draws of `prompts` with this seed, nor those of another attribute.
  own = [seed, 1 + ATTRIBUTES.index(attribute)]
  rng, count = np.random.default_rng(own), len(base.names)
  low, high = np.minimum(base.io, base.s), np.maximum(base.io, base.s)
  new = rng.integers(count - 2, size=len(base))
  new = new + (new >= low)  # skips the two names of the prompt, in order
  new = new + (new >= high)
  return dataclasses.replace(base, **{attribute: new})
