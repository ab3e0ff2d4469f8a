"""A score of each row for methods that need one, where texts have no labels."""

import dataclasses

import numpy as np

from saejax.studies import arms


def with_scores(rows: arms.Rows) -> arms.Rows:
  """The rows with a score in [0, 10] each.

  The score is the rank of the row's distance from the mean row: a stand-in for
  labels of complexity, which activations of plain text do not have.

  Args:
    rows: rows of a study; ranks are among its training rows.
  """
  x = np.asarray(rows.train.x)
  distance = lambda x: np.linalg.norm(x - np.asarray(rows.mean), axis=-1)
  known = np.sort(distance(x))
  score = lambda b: (
    10 * np.searchsorted(known, distance(np.asarray(b.x))) / len(known)
  ).astype(np.float32)
  return dataclasses.replace(
    rows,
    train=rows.train.replace(score=score(rows.train)),
    held_out=rows.held_out.replace(score=score(rows.held_out)),
  )
