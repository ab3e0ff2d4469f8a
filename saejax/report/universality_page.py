"""The page of a study of matched latents; see `studies.universality`."""

from collections.abc import Mapping, Sequence
from typing import Any

from saejax.report import curves, page, study

KINDS = {"svcca": "SVCCA", "rsa": "RSA"}
NULLS = {"shuffled": "shuffled", "subsets": "other pairs"}
EXAMPLES = {
  "a": ("Latent of a", "d"),
  "b": ("Latent of b", "d"),
  "correlation": ("Correlation", ".3f"),
  "tokens_a": ("Top tokens of a", ""),
  "tokens_b": ("Top tokens of b", ""),
}


def sections(
  points: Sequence[Mapping[str, Any]], examples: Sequence[Mapping[str, Any]]
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and its plots by name.

  Args:
    points: similarities of sets of pairs.
    examples: pairs of latents with their top tokens.
  """
  known = [p for p in points if "svcca" in p]
  blocks: list[page.Block] = [
    page.Prose(
      "Latents are matched by the correlation of their activations; the decoder "
      "rows of the pairs are then compared. SVCCA is the mean canonical "
      "correlation after a reduction to principal directions, RSA the rank "
      "correlation of the similarities of all pairs of rows.\n\n"
      "A score means something only beside its null: the same score of shuffled "
      "pairs, and for a meaning also of other pairs, equally many. p is "
      "(1 + nulls that reach the score) / (1 + nulls)."
    )
  ]
  drawn = {}
  if known:
    drawn["scores"] = _scores(known)
    blocks.append(
      study.figure(
        drawn["scores"],
        "SVCCA and RSA of each set of pairs, with shuffled pairs.",
        "Scores of matched and of shuffled pairs; bars are standard deviations.",
      )
    )
  blocks += [_table(points, kind) for kind in KINDS]
  found = [page.Section("Similarity of the geometry", blocks)]
  table = study.table(examples, EXAMPLES, "Pairs of the largest correlation.")
  found.append(page.Section("Matched latents", [table]))
  return found, drawn


def _table(points: Sequence[Mapping[str, Any]], kind: str) -> page.Table:
  columns = {
    "set": ("Pairs", ""),
    "pairs": ("Number", "d"),
    "correlation": ("Correlation", ".3f"),
    "score": (KINDS[kind], ".3f"),
  }
  rows = []
  for point in points:
    row = {name: point[name] for name in ("set", "pairs", "correlation")}
    row |= {"score": point.get(kind, {}).get("score")}
    for null in NULLS:
      values = point.get(kind, {}).get(null, {})
      row |= {
        f"{null}_{name}": values.get(name) for name in ("mean", "sd", "p")
      }
    rows.append(row)
  for null, title in NULLS.items():
    columns |= {
      f"{null}_mean": (f"{title}: mean", ".3f"),
      f"{null}_sd": ("sd", ".3f"),
      f"{null}_p": ("p", ".3f"),
    }
  return study.table(rows, columns, f"{KINDS[kind]}, and its nulls.")


def _scores(points: Sequence[Mapping[str, Any]]) -> Any:
  places = list(range(1, len(points) + 1))
  curve = lambda kind, value, spread=None: curves.Curve(
    places,
    [value(p[kind]) for p in points],
    y_spread=spread and [spread(p[kind]) for p in points],
    line=False,
  )
  return curves.panels(
    {
      title: {
        "matched": curve(kind, lambda of: of["score"]),
        "shuffled": curve(
          kind,
          lambda of: of["shuffled"]["mean"],
          lambda of: of["shuffled"]["sd"],
        ),
      }
      for kind, title in KINDS.items()
    },
    curves.Axis("set of pairs, in the order of the table"),
    curves.Axis("score"),
    legend="pairs",
  )
