"""Checks of a harvest of text before the model runs.

Writing a training store may take hours, so that a held-out store that cannot be
written must be refused before it.
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
  """Returns the numbers of the documents to harvest for a part.

  For the training part these are all its documents. For the held-out part they
  are whole documents, in order, until the next one does not fit into the store;
  documents larger than the store are skipped.

  Args:
    config: settings of the harvest.
    corpus: the documents.
    part: "train" or "held_out".
    plan: windows and rules that drop tokens.
    encode: returns the tokens of a document by its number.

  Raises:
    InputError: no document is in this part, none fits, or none gives a row.
  """
  candidates = corpus.part(part, config.held_out_fraction)
  if not len(candidates):
    raise InputError(
      "harvest.corpus",
      config.corpus,
      f"must have a document for the {part} store, but with held_out_fraction "
      f"{config.held_out_fraction} none of {len(corpus)} is in that part",
      "use more documents or change harvest.held_out_fraction",
    )
  if part == text.TRAIN:
    if not any(plan.rows(encode(document)) for document in candidates):
      raise no_rows(config, part)
    return candidates
  left, chosen, shortest = config.held_out_rows, [], math.inf
  for document in candidates:
    rows = plan.rows(encode(document))
    shortest = min(shortest, rows)
    if left < rows <= config.held_out_rows:
      break
    if rows <= left:
      chosen.append(document)
      left -= rows
  if not chosen:
    raise InputError(
      "harvest.held_out_rows",
      config.held_out_rows,
      f"must fit a whole document; the shortest of {len(candidates)} held-out "
      f"documents has {shortest} rows",
      f"raise it to {shortest}, or truncate documents: harvest.document_tokens",
    )
  if left == config.held_out_rows:
    raise no_rows(config, part)
  return np.asarray(chosen, np.int64)


def no_rows(config: spec.HarvestConfig, part: str) -> InputError:
  """Returns the error for a part all of whose tokens are dropped.

  Args:
    config: settings of the harvest.
    part: "train" or "held_out".
  """
  return InputError(
    "harvest.corpus",
    config.corpus,
    f"must give rows, but every token of its {part} part is dropped",
    "use other documents, or drop less: harvest.outlier_multiple, drop_ids, "
    "drop_first",
  )


def check_context(config: spec.HarvestConfig, source: subject.Subject) -> None:
  """Checks that a window has room for a token and fits the model.

  Args:
    config: settings of the harvest.
    source: the model.

  Raises:
    InputError: harvest.context is out of range; states the range.
  """
  before = max(len(source.prefix), spec.drop_first(config, source))
  never = before + len(source.suffix)
  most = source.max_positions or math.inf
  if not never < config.context <= most:
    raise InputError(
      "harvest.context",
      config.context,
      f"must be above {never}, the number of tokens of a window that are never "
      f"rows, and at most {most}, the number of positions of the model",
      "set harvest.context in this range",
    )


def check_ids(
  config: spec.HarvestConfig, source: subject.Subject, corpus: text.Corpus
) -> None:
  """Checks that the ids of a corpus and of drop_ids are in the vocabulary.

  Args:
    config: settings of the harvest.
    source: the model.
    corpus: the documents.

  Raises:
    InputError: an id is out of range; names harvest.corpus or harvest.drop_ids.
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
        f"has the id {highest}, and ids of the model are in "
        f"[0, {source.vocabulary})",
        "use ids of the tokenizer of this model",
      )


def check_memory(
  config: spec.HarvestConfig,
  source: subject.Subject,
  target: subject.Subject | None = None,
  *,
  stores: int = 1,
) -> None:
  """Checks that forward batches and buckets fit in memory.

  Estimates leave out the weights and the buffers that the compiler adds.

  Args:
    config: settings of the harvest.
    source: the model.
    target: the model and site of the reconstruction target, if any.
    stores: stores that are filled at the same time.

  Raises:
    InputError: a batch or bucket does not fit; states the bytes.
  """
  window = source.bytes_of(config.context)
  available = memory.device()
  need = window * (config.forward_batch // config.mesh[0])  # per device
  if need > available:
    most = available // window * config.mesh[0]
    raise InputError(
      "harvest.forward_batch" if most else "harvest.context",
      config.forward_batch if most else config.context,
      f"a forward pass of {config.forward_batch} windows of {config.context} "
      f"tokens takes at least {durable.size(need)} per device, and memory is "
      f"{durable.size(available)}",
      f"lower it; {most} windows would fit" if most else "lower it",
    )
  columns = spec.columns(config, source, target).values()
  row = stores * sum(column.row_bytes for column in columns)
  # One bucket is filled while another is shuffled into a copy and written.
  need = (
    3 * row * min(config.bucket_rows, max(config.rows, config.held_out_rows))
  )
  available = memory.host()
  if need > available:
    raise InputError(
      "harvest.bucket_rows",
      config.bucket_rows,
      f"three buckets take {durable.size(need)}, and memory is "
      f"{durable.size(available)}",
      f"lower it; {available // (3 * row)} rows would fit",
    )
