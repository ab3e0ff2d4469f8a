"""Writes a page to compare two SAEs: latents matched, split, absorbed, unmatched.

    saejax compare runs/a/saes/n512-k16-seed0 runs/a/saes/n1024-k16-seed0 \\
      --store=runs/stores/store-0123456789abcdef
    python experiments/compare.py --a=SAE --b=SAE --store=STORE --write=compare.html

One HTML file that needs no network. A stopped pass over the store is resumed by the
same command, and --process, --processes divide its rows, as of the dashboard. Both SAEs must be of one site, with any numbers
of latents, and --store is a store of that site with text, of training or held-out
rows. See `evals.families` for the definitions and docs/compare.md for the page.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from saejax import checks, durable, terminal
from saejax.data.store import reader
from saejax.data.store.share import Share
from saejax.errors import InputError
from saejax.evals import compared, families, matching, pairs
from saejax.features import parts, reading
from saejax.interop import names
from saejax.report import compare_page, extras
from saejax.runs import stores
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.studies import dashboard_sources
from saejax.studies.meter import Meter

SIDES = compared.SIDES
POSITIONAL = SIDES  # flags that may be given without their names, in order
METHODS = (families.AUTO, *matching.METHODS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  a: str  # a saved or published SAE, as for saejax.load
  b: str  # another one of the same site
  store: str  # folder or URL of a store with text
  tau: float = matching.TAU  # cosine above which a pair is matched
  part_cosine: float = 0.4  # least cosine of the parts of a split latent
  match: str = families.AUTO  # exact, mnn, or auto: exact up to 16384 latents
  near: int = pairs.NEAR  # latents of the other SAE looked at for each latent
  show: int = 60  # latents of each kind on the page, drawn at random
  top: int = 5  # examples of a latent
  before: int = 14  # tokens before that of an example
  after: int = 10  # tokens after it
  seed: int = 0  # of the draw, and of the shuffled decoder
  write: str = "compare.html"  # the file
  json: str = ""  # file for the data of the page; none where empty
  dir: str = "runs/comparisons"  # folder of sums, from which a pass is resumed
  process: int = 0  # number of this process, from 0
  processes: int = 1  # processes that share the rows of the store
  save_seconds: float = 20.0  # time between saves of the sums

  def __post_init__(self):
    for field in (*SIDES, "store", "write"):
      if not getattr(self, field):
        raise InputError(field, "", "must not be empty", "give its path")
    checks.at_least(self, 1, "show", "top", "near")
    checks.at_most(self, pairs.MOST_NEAR, "near")
    checks.at_least(self, 0, "seed", "before", "after")
    checks.fraction(self, "tau", "part_cosine")
    checks.at_least(self, 0, "save_seconds")
    Share(self.process, self.processes)
    if self.match not in METHODS:
      rule = f"must be one of {', '.join(METHODS)}"
      raise InputError("match", self.match, rule, "choose one")


def main(config: Config) -> None:
  """Writes the page.

  Args:
    config: settings of the command.
  """
  extras.require("jinja2")
  (a, about_a), (b, about_b) = (_loaded(config, side) for side in SIDES)
  check_sites(about_a, about_b)
  store = reader.open(os.path.expanduser(config.store))
  for about in (about_a, about_b):
    dashboard_sources.check_site(about, store.meta)
  screen = terminal.Screen(sys.stderr)
  labels = _labels(config.a, config.b)
  meter = Meter(screen, "compare")
  kept = reading.kept(
    *(config.dir, "comparison", a, store),
    *(Share(config.process, config.processes), config.save_seconds),
    b=files.checksum(b),
    near=config.near,
    top=config.top,
  )
  try:
    data = compared.make(
      *(a, b, store),
      names=labels,
      rules=families.Rules(tau=config.tau, cosine=config.part_cosine),
      method=config.match,
      seed=config.seed,
      sizes=compared.Sizes(**{f.name: getattr(config, f.name) for f in _SIZES}),
      progress=lambda done: meter("rows", done, store.rows),
      say=screen.line,
      kept=kept,
    )
  except parts.Unfinished as pass_:
    print(f"{pass_} (other processes are not done)")
    return
  title = f"{labels[0]} and {labels[1]}"
  compare_page.write(config.write, data, title)
  if config.json:
    content = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")
    durable.write_file(config.json, content + b"\n", field="json")
  kept.remove()
  print(f"{data['match']['shared']} matched pairs: {config.write}")


_SIZES = dataclasses.fields(compared.Sizes)


def _loaded(config: Config, side: str) -> tuple[SAE, dict[str, Any]]:
  """The SAE of a side, with what saejax saved about it."""
  given = getattr(config, side)
  try:
    sae = names.load(given)
    folder = pathlib.Path(os.path.expanduser(given))
    saved = (folder / files.STRUCTURE).exists()
    return sae, files.about(folder) if saved else {}
  except InputError as error:
    raise error.renamed(side) from error


def _labels(a: str, b: str) -> tuple[str, str]:
  """Short names: the last parts of the paths, as many as tell them apart."""
  ours, theirs = pathlib.PurePath(a).parts, pathlib.PurePath(b).parts
  for count in range(1, max(len(ours), len(theirs)) + 1):
    pair = "/".join(ours[-count:]), "/".join(theirs[-count:])
    if pair[0] != pair[1]:
      return pair
  return a, b


def check_sites(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
  """Refuses SAEs of different models or sites, where both say which.

  Args:
    a, b: what was saved with the SAEs.

  Raises:
    InputError: the weights of the model, the layer or the point differ.
  """
  for ours, theirs in stores.different_sites(a, b):
    raise InputError(
      "b",
      theirs,
      f"must be of the site of a, {ours}",
      "give two SAEs of one site",
    )
