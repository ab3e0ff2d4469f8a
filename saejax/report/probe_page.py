"""The page and the table of a study of probes; see `studies.probe`."""

from collections.abc import Mapping, Sequence
from typing import Any

from saejax.report import curves, page, study

Points = Sequence[Mapping[str, Any]]


def table(columns: Mapping[str, str], points: Points) -> str:
  """A line for each matrix of features.

  Args:
    columns: title of each column, and the number of a point that it shows.
    points: records of `results.json`.
  """
  lines = [("", "L0", *columns), *_rows(columns, points)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  pad = lambda line: [
    cell.ljust(w) if i == 0 else cell.rjust(w)
    for i, (cell, w) in enumerate(zip(line, widths, strict=True))
  ]
  return "\n".join("  ".join(pad(line)).rstrip() for line in lines)


def _rows(columns: Mapping[str, str], points: Points) -> list[list[str]]:
  return [
    [
      point["sae"],
      "" if point["l0"] is None else f"{point['l0']:.1f}",
      *(_cell(point, key) for key in columns.values()),
    ]
    for point in points
  ]


def _cell(point: Mapping[str, Any], key: str) -> str:
  text = f"{point[key]:.3f}"
  low, high = (point.get(key.replace("total_metric", end)) for end in _ENDS)
  if key.startswith("tpp") and low is not None:
    text += f" [{low:.3f}, {high:.3f}]"
  return text


_ENDS = ("low", "high")


def parts(
  columns: Mapping[str, str],
  points: Points,
  *,
  k: Sequence[int],
  ablate: Sequence[int],
) -> tuple[list[page.Section], dict[str, Any]]:
  """The sections of the page, and the plots.

  Args:
    columns, points: as for `table`.
    k: columns of sparse probes; none where there are no probes.
    ablate: columns that TPP sets to 0; none where it was not computed.
  """
  blocks: list[page.Block] = []
  figures = {}
  if k:
    figures["accuracy_against_k"] = made = _accuracy(points, k)
    blocks.append(
      study.figure(
        made,
        "Accuracy of sparse probes against the number of columns",
        "Accuracy of probes on k columns. Mean over classes against the rest, in "
        "balanced tasks; llm are mean activations, pca their components.",
      )
    )
  known = all(
    point[f"tpp_threshold_{count}_{_ENDS[0]}"] is not None
    for point in points
    for count in ablate
  )
  if ablate and known:  # of one run there is no interval
    figures["tpp"] = made = _tpp(points, ablate)
    blocks.append(
      study.figure(
        made,
        "Targeted probe perturbation with intervals over repeats",
        "Targeted probe perturbation. Bars: where one more run with other splits "
        "and probes falls with 95 %. A study of reliability (arXiv:2605.18229) "
        "finds that TPP does not rank SAEs: do not choose by it.",
      )
    )
  head = [page.Column("features", right=False), page.Column("L0")]
  head += [page.Column(title) for title in columns]
  caption = "Test accuracy of probes on k columns, and TPP with its interval"
  blocks.append(page.Table(head, _rows(columns, points), caption))
  return [page.Section("Probes", blocks)], figures


def _accuracy(points: Points, k: Sequence[int]) -> Any:
  drawn = {
    point["sae"]: curves.Curve(
      list(k), [point[f"sae_top_{count}_test_accuracy"] for count in k]
    )
    for point in points
  }
  x = curves.Axis("columns of a probe, k", log=True)
  y = curves.Axis("accuracy on test documents")
  return curves.panels({"": drawn}, x, y, legend="features")


def _tpp(points: Points, ablate: Sequence[int]) -> Any:
  rows = [
    (
      point["sae"],
      point[f"tpp_threshold_{count}_total_metric"],
      *(point[f"tpp_threshold_{count}_{end}"] for end in _ENDS),
      f"{count} ablated",
    )
    for point in points
    for count in ablate
  ]
  return curves.intervals(rows, "TPP", legend="columns")
