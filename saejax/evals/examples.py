"""Top-activating rows of latents, with their text."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from saejax import errors, notebook
from saejax.data.store.reader import Store
from saejax.data.text import neighbours
from saejax.features import summary
from saejax.sae.sae import SAE


@dataclasses.dataclass(frozen=True)
class Example:
  """One row on which a latent is active.

  Attributes:
    activation: value of the latent, z_i.
    row: row number in the store.
    doc: document of the row.
    pos: position of the row's token in the document, in tokens.
    token: text of the token.
    context: text around the token, which is between the marks.
  """

  activation: float
  row: int
  doc: int
  pos: int
  token: str
  context: str


class Examples(list[Example]):
  """Examples of one latent, the largest first; a table in notebooks.

  Args:
    latent: its index.
    found: the examples.
    mark: texts around the token in their contexts.
  """

  def __init__(
    self, latent: int, found: Iterable[Example], mark: tuple[str, str]
  ):
    super().__init__(found)
    self.latent, self.mark = latent, mark

  def __reduce__(self):
    return Examples, (self.latent, list(self), self.mark)

  def _repr_html_(self) -> str:
    """The examples with their tokens marked."""
    rows = [
      (e.activation, e.row, e.doc, e.pos, _marked(e, *self.mark)) for e in self
    ]
    head = ("activation", "row", "doc", "pos", "context")
    return notebook.table(f"Latent {self.latent}", head, rows)


def _marked(example: Example, before: str, after: str) -> Any:
  """The context, divided at the marks; the text itself may hold marks too."""
  left, found, right = example.context.partition(before + example.token + after)
  if before and found:
    return notebook.Marked(left, example.token, right)
  left, found, rest = example.context.partition(before or "\0")
  token, end, right = rest.partition(after or "\0")
  if found and end:
    return notebook.Marked(left, token, right)
  return example.context


def top_examples(
  sae: SAE,
  store: Store,
  latent: int,
  *,
  count: int = 5,
  before: int = 8,
  after: int = 4,
  mark: tuple[str, str] = ("[[", "]]"),
  batch_rows: int = 4096,
) -> Examples:
  """Finds the top-activating rows of a latent in a store, largest first.

  `top_examples_of` reads the store once for several latents.

  Args:
    sae: the SAE.
    store: store with provenance and a tokenizer.
    latent: index of the latent, in [0, n).
    count: maximum number of examples; rows where the latent is 0 are not
      examples, so that a dead latent has none.
    before: maximum number of tokens of context before the row's token.
    after: maximum number of tokens of context after it.
    mark: texts inserted before and after the row's token in the context.
    batch_rows: rows per batch on the device.

  Raises:
    InputError: there is no such latent, count is below 1, or the store has no
      text.
  """
  around: dict[str, Any] = {"before": before, "after": after, "mark": mark}
  found = top_examples_of(
    sae, store, [latent], count=count, batch_rows=batch_rows, **around
  )
  return found[latent]


def top_examples_of(
  sae: SAE,
  store: Store,
  latents: Sequence[int] | np.ndarray,
  *,
  count: int = 5,
  before: int = 8,
  after: int = 4,
  mark: tuple[str, str] = ("[[", "]]"),
  batch_rows: int = 4096,
) -> dict[int, Examples]:
  """Finds the top-activating rows of several latents in one pass over a store.

  Args:
    latents: indices of the latents, in [0, n).
    sae, store, count, before, after, mark, batch_rows: as for `top_examples`.

  Raises:
    InputError: as `top_examples`.
  """
  if count < 1:
    raise errors.InputError(
      "count", count, "must be at least 1", "use 1 or more"
    )
  found = summary.summarise(
    sae, store, latents, top=count, batch_rows=batch_rows
  )
  return {
    int(latent): Examples(
      int(latent),
      (
        _example(store, value, row, before, after, mark)
        for value, row in zip(*found.top(int(latent)), strict=True)
      ),
      mark,
    )
    for latent in latents
  }


def _example(
  store: Store,
  value: float,
  row: int,
  before: int,
  after: int,
  mark: tuple[str, str],
) -> Example:
  row = int(row)
  where = store.provenance([row])
  return Example(
    activation=float(value),
    row=row,
    doc=int(where["doc"][0]),
    pos=int(where["pos"][0]),
    token=neighbours.text(store, row, 0, 0),
    context=neighbours.text(store, row, before, after, mark),
  )
