"""Differences of the training form and the inference form, on a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from saejax.evals import reconstruction
from saejax.report import page

COLUMNS = {
  "training_l0": (page.Column("L0 in training", "per row"), "{:.2f}"),
  "training_fvu": (page.Column("FVU in training"), "{:.4f}"),
}
DEFINITION = (
  "in training",
  "for the training form, whose selection may depend on the batch, on held-out"
  " batches of the size of training batches",
)


def notes(points: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  """Returns a note on SAEs whose inference form differs from the training form.

  Args:
    points: records of SAEs.
  """
  warnings = [
    f"n = {p['n']:,}, k = {p['k']:,}, seed {p.get('seed', 0)}: {warning}"
    for p in points
    if (warning := reconstruction.form_warning(p))
  ]
  if not warnings:
    return []
  return [
    page.Note(
      "The inference form differs by more than 5 % from the training form on"
      f" held-out rows. {'. '.join(warnings)}."
    )
  ]
