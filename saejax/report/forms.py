"""The training form of SAEs beside their inference form, on a page."""

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
  "of the training form, whose selection may depend on the batch, in held-out"
  " batches as large as those of training",
)


def notes(points: Sequence[Mapping[str, Any]]) -> list[page.Block]:
  """A note on the SAEs whose inference form differs from what was trained."""
  said = [
    f"n = {p['n']:,}, k = {p['k']:,}, seed {p.get('seed', 0)}: {warning}"
    for p in points
    if (warning := reconstruction.form_warning(p))
  ]
  if not said:
    return []
  return [
    page.Note(
      "The inference form differs by more than 5 % from the training form on"
      f" held-out rows. {'. '.join(said)}."
    )
  ]
