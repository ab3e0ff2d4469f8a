"""Labels of the documents of a corpus, from another field of the same records."""

import numpy as np
from jaxtyping import Shaped

from saejax.data.text import corpus as text
from saejax.data.text import formats, records
from saejax.errors import InputError

FIELD = "labels"


def document_labels(
  corpus: str, documents: text.Corpus, *, field: str = "label"
) -> Shaped[np.ndarray, "documents"]:
  """Returns the label of each document, as a text.

  Where equal texts have several labels, it is that of the one that is kept.

  Args:
    corpus: name of the corpus: JSON lines, see `corpus.documents`.
    documents: the corpus that was read from it.
    field: name of the field with the label: a text, a whole number, true or false.

  Raises:
    InputError: the corpus is not JSON lines, a record has no such field, or
      all documents have one label.
  """
  files = formats.Files(formats.paths(corpus), records.Label(field))
  if not files.has_lines:
    raise InputError(
      "harvest.corpus",
      corpus,
      "must be JSON lines for labels",
      'give a .jsonl file of {"text": ..., "label": ...}',
    )
  known = dict(files.texts())  # by the place of the record
  found = np.asarray([str(known[place]) for place in documents.places.tolist()])
  if len(names := np.unique(found)) < 2:
    rule = f"must have at least two values among the documents ({names[0]!r})"
    raise InputError(
      FIELD, field, rule, "name a field that tells classes apart"
    )
  return found
