"""Size of a page of latents, and seconds to make and to open it.

  python benchmarks/dashboard_size.py --work=DIR \\
    --write=benchmarks/results/dashboard-cpu-2core.json

A TopK SAE (n 2,048, k 16) is trained on MiniLM's layer 3, and pages of `--latents` of
its latents are made from the held-out rows, with the numbers of examples that
`saejax dashboard` has by default. The harvest and the SAE are kept in --work. Medians
over rounds:

  make       reading and encoding the store, and writing the file; the programs are
             compiled by a page made before
  compile    of that first page, what it took beyond `make`
  open       in headless Chromium, from its start of loading the file until a latent
             is drawn; the browser runs already
  next       from the key of the next latent until it is drawn
"""

import dataclasses
import datetime
import json
import pathlib
import statistics
import time

import saejax
from saejax import config as flags
from saejax import durable, machine
from saejax.data.harvest import HarvestConfig
from saejax.errors import InputError
from saejax.features import activity, cards
from saejax.report import feature_page
from saejax.runs import stores


@dataclasses.dataclass(frozen=True, kw_only=True)
class DashboardConfig:
  """Sizes, and where things are kept."""

  work: str = "runs/dashboard-size"  # folder for stores, SAE and pages
  latents: tuple[int, ...] = (100, 1_000)  # latents of a page
  rows: int = 100_000  # maximum number of training rows
  held_out_rows: int = 32_768  # maximum number of rows that a page is made from
  n: int = 2_048  # latents of the SAE
  k: int = 16  # active latents
  steps: int = 500  # training steps
  rounds: int = 3  # pages made and opened, of which medians are taken
  write: str = ""  # JSON file for the figures; empty: none

  def __post_init__(self):
    if not self.latents or min(self.latents) < 1 or self.rounds < 1:
      rule = "must be positive, as must rounds"
      raise InputError("latents", self.latents, rule, "such as 100,1000")


def prepared(config: DashboardConfig) -> tuple[saejax.SAE, saejax.Store]:
  """The SAE and the held-out rows, made where they are not there yet.

  Args:
    config: settings.
  """
  work = pathlib.Path(config.work)
  harvest = HarvestConfig(
    layer=3,
    document_tokens=1_008,
    rows=config.rows,
    held_out_rows=config.held_out_rows,
    dir=str(work / "stores"),
  )
  train, held_out = stores.harvested(harvest)
  folder = work / f"sae-n{config.n}-k{config.k}"
  if not folder.exists():
    sae, _ = saejax.fit(
      train, "topk", n=config.n, k=config.k, held_out=held_out,
      steps=config.steps,
    )  # fmt: skip
    saejax.save(sae, folder)
  return saejax.load(folder), held_out


def made(
  sae: saejax.SAE, store: saejax.Store, latents: int, path: pathlib.Path
) -> float:
  """Seconds to make a page.

  Args:
    sae: the SAE.
    store: the rows.
    latents: random latents that are active.
    path: of the file.
  """
  start = time.perf_counter()
  data = cards.make(sae, store, activity.Choice(random=latents))
  feature_page.write(path, data, "Latents")
  seconds = time.perf_counter() - start
  if (found := len(data["latents"])) != latents:
    rule = f"must be at most the {found} that are active"
    raise InputError("latents", latents, rule, "train longer, or give fewer")
  return seconds


def opened(path: pathlib.Path) -> tuple[float, float] | None:
  """Seconds to open a page and to go to the next latent; None without Chromium.

  Args:
    path: of the file.
  """
  from tests import chromium

  if not chromium.PATH:
    return None
  title = "document.querySelector('h2').textContent"
  with chromium.tab() as tab:
    tab.screen(1200, 800)
    start = time.perf_counter()
    tab.open(path)
    tab.settle()
    first = tab.value(title)
    opening = time.perf_counter() - start
    start = time.perf_counter()
    tab.press("j")
    going = time.perf_counter() - start
    if tab.errors or tab.value(title) == first:
      raise RuntimeError(f"{path} does not show a second latent: {tab.errors}")
  return opening, going


def measured(
  config: DashboardConfig, sae: saejax.SAE, store: saejax.Store, latents: int
) -> dict[str, float | int | None]:
  """The figures of one size of page.

  Args:
    config: settings.
    sae: the SAE.
    store: the rows.
    latents: of the page.
  """
  path = pathlib.Path(config.work, f"latents-{latents}.html").resolve()
  first = made(sae, store, latents, path)
  making = [made(sae, store, latents, path) for _ in range(config.rounds)]
  opening = [opened(path) for _ in range(config.rounds)]
  middle = statistics.median(making)
  seen = [pair for pair in opening if pair is not None]
  open_s, next_s = (
    (round(statistics.median(each), 3) for each in zip(*seen, strict=True))
    if seen
    else (None, None)
  )
  return {
    "latents": latents,
    "rows": store.rows,
    "MB": round(path.stat().st_size / 1e6, 2),
    "make, s": round(middle, 2),
    "compile, s": round(max(first - middle, 0.0), 2),
    "open, s": open_s,
    "next, s": next_s,
  }


def main(config: DashboardConfig) -> None:
  sae, held_out = prepared(config)
  points = []
  for latents in config.latents:
    points.append(measured(config, sae, held_out, latents))
    print(json.dumps(points[-1]))
  if config.write:
    result = {
      "environment": machine.environment(),
      "date": datetime.date.today().isoformat(),
      "rounds": config.rounds,
      "points": points,
    }
    text = json.dumps(result, indent=1) + "\n"
    durable.write_file(pathlib.Path(config.write), text.encode(), field="write")


if __name__ == "__main__":
  flags.run(main, DashboardConfig)
