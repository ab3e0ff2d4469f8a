"""What a harvest of text is refused for before the model runs.

A training store may take hours: that the held-out one cannot be made is said
before it, not after it.
"""

import math
from collections.abc import Callable

import numpy as np

from saejax import durable
from saejax.data import memory, spec
from saejax.data.text import corpus as text
from saejax.data.text import subject, windows
from saejax.errors import InputError


def documents(
  config: spec.HarvestConfig,
  corpus: text.Corpus,
  part: str,
  plan: windows.Plan,
  encode: Callable[[int], np.ndarray],
) -> np.ndarray:
  """The documents of a part; of the held-out, whole ones that fit its store.

  They are taken in order as long as the next one fits; one that alone is
  larger than the store is passed over.

  Args:
    config: sizes of the stores, share of the held-out documents.
    corpus: the documents.
    part: "train" or "held_out".
    plan: which of their tokens are rows.
    encode: the tokens of a document, by its number.

  Raises:
    InputError: no document is in this part, none fits, or none gives a row.
  """
  found = corpus.part(part, config.held_out_fraction)
  if not len(found):
    raise InputError(
      "harvest.corpus",
      config.corpus,
      f"must have a document for the {part} store, and with held_out_fraction "
      f"{config.held_out_fraction} none of its {len(corpus)} is in that part",
      "use more documents or change harvest.held_out_fraction",
    )
  if part == text.TRAIN:
    if not any(plan.rows(encode(document)) for document in found):
      raise no_rows(config, part)
    return found
  left, kept, shortest = config.held_out_rows, [], math.inf
  for document in found:
    rows = plan.rows(encode(document))
    shortest = min(shortest, rows)
    if left < rows <= config.held_out_rows:
      break
    if rows <= left:
      kept.append(document)
      left -= rows
  if not kept:
    raise InputError(
      "harvest.held_out_rows",
      config.held_out_rows,
      f"must hold a whole document, and the shortest of {len(found)} held out "
      f"has {shortest} rows",
      "raise it, or take less of each document: harvest.document_tokens",
    )
  if left == config.held_out_rows:
    raise no_rows(config, part)
  return np.asarray(kept, np.int64)


def no_rows(config: spec.HarvestConfig, part: str) -> InputError:
  """The error for a part of which no token is a row."""
  return InputError(
    "harvest.corpus",
    config.corpus,
    f"must give rows, and every token of its {part} part is dropped",
    "use other documents or lower harvest.outlier_multiple and drop_ids",
  )


def check_context(config: spec.HarvestConfig, source: subject.Subject) -> None:
  """Refuses windows without room for a token, or longer than the model takes.

  Raises:
    InputError: naming harvest.context and both ends.
  """
  frame = len(source.prefix) + len(source.suffix)
  most = source.max_positions or math.inf
  if not frame < config.context <= most:
    raise InputError(
      "harvest.context",
      config.context,
      f"must be above {frame}, the special tokens of a window, and at most "
      f"{most}, the positions of the model",
      "set harvest.context between them",
    )


def check_ids(
  config: spec.HarvestConfig, source: subject.Subject, corpus: text.Corpus
) -> None:
  """Refuses ids that the model does not have, in a corpus of ids or in a rule.

  Raises:
    InputError: naming harvest.corpus or harvest.drop_ids and the id.
  """
  for field, value, highest in (
    ("corpus", config.corpus, corpus.highest or 0),
    ("drop_ids", config.drop_ids, max(config.drop_ids, default=0)),
    ("drop_ids", config.drop_ids, min(config.drop_ids, default=0)),
  ):
    if highest < 0 or 0 < source.vocabulary <= highest:
      raise InputError(
        f"harvest.{field}",
        value,
        f"holds the id {highest}, and those of the model are in "
        f"[0, {source.vocabulary})",
        "use ids of the tokenizer of this model",
      )


def check_memory(
  config: spec.HarvestConfig,
  source: subject.Subject,
  target: subject.Subject | None = None,
) -> None:
  """Refuses batches, windows and buckets that cannot fit in memory.

  Estimates leave out the weights and whatever the compiler adds.

  Raises:
    InputError: naming the setting, what it takes and what there is.
  """
  window = source.bytes_of(config.context)
  there = memory.device()
  need = window * config.forward_batch
  if need > there:
    most = there // window
    raise InputError(
      "harvest.forward_batch" if most else "harvest.context",
      config.forward_batch if most else config.context,
      f"a forward of {config.forward_batch} windows of {config.context} tokens "
      f"takes {durable.size(need)} or more, and there are {durable.size(there)}",
      f"lower it; {most} windows would fit" if most else "lower it",
    )
  columns = spec.columns(config, source, target).values()
  row = sum(column.row_bytes for column in columns)
  # One is filled, one is shuffled into a copy and written.
  need = (
    3 * row * min(config.bucket_rows, max(config.rows, config.held_out_rows))
  )
  there = memory.host()
  if need > there:
    raise InputError(
      "harvest.bucket_rows",
      config.bucket_rows,
      f"buckets of so many rows take {durable.size(need)}, and there are "
      f"{durable.size(there)}",
      f"lower it; {there // (3 * row)} rows would fit",
    )
