"""Harvests a model's activations on a corpus into two stores.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order. `data.fill` writes them, `data.text.rows` makes
the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

from saejax.data import fill, spec
from saejax.data.fill import Progress
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import manifest, reader
from saejax.data.store import place as places
from saejax.data.store.place import Local, Place
from saejax.data.store.share import Share
from saejax.data.text import corpus as text
from saejax.data.text import feasibility, rows, subject
from saejax.errors import InputError


def harvest(
  config: HarvestConfig,
  *,
  source: subject.Subject | None = None,
  target: subject.Subject | None = None,
  progress: Progress | None = None,
) -> tuple[reader.Store, reader.Store]:
  """Harvests the training and the held-out store, or opens them if complete.

  Repeating the call resumes after a kill at any moment. A corpus with fewer
  rows than wanted gives a smaller store, as do outliers, which are dropped
  after the rows are counted.

  Args:
    config: model, site, corpus and layout of the stores.
    source: the model; that of config.model by default.
    target: the model at the site of the target column; by default that of
      config.target_point, where it is given.
    progress: called about once a second, see `fill.fill`.

  Returns:
    (training store, held-out store).

  Raises:
    InputError: settings, model or corpus are invalid, or the disk is full or
      not writable, raised before the model runs where possible; activations
      are not finite; or several sites are wanted. Finished buckets are kept.
  """
  if config.sites:
    raise InputError(
      "harvest.sites",
      config.sites,
      "must be empty where one training store is wanted",
      "use harvest.layer and harvest.point, or saejax harvest",
    )
  site = Site(config, source, target)
  train, held_out = _harvest([site], Share(), False, progress)
  return reader.open(train[0].place), reader.open(held_out[0].place)


class Written(NamedTuple):
  """A store that a harvest writes.

  Attributes:
    place: where it is.
    complete: whether all processes have written their buckets.
  """

  place: Place
  complete: bool


def harvest_share(
  config: HarvestConfig,
  *,
  share: Share = Share(),
  repair: bool = False,
  source: subject.Subject | None = None,
  target: subject.Subject | None = None,
  progress: Progress | None = None,
) -> list[tuple[Written, Written]]:
  """Harvests one process's buckets of the stores of each site.

  Processes need not start together, nor know of each other. The stores are
  those of a single process, byte for byte. Several sites are read in one
  forward pass; the stores of each are those of a harvest of that site alone, up
  to the rounding of another compiled program.

  Args:
    config, source, target, progress: as for `harvest`.
    share: which process this is, of how many.
    repair: whether to read what is there, and to harvest what is damaged again.

  Returns:
    (training store, held-out store) of each site; one site without
    config.sites.

  Raises:
    InputError: as `harvest`, or as `fill.fill_shares`.
  """
  configs = spec.sites(config)
  if config.sites and (source or target):
    raise ValueError(
      "source and target are of one site, config.sites of several"
    )
  sites = [Site(one, source, target) for one in configs]
  train, held_out = _harvest(sites, share, repair, progress)
  return list(zip(train, held_out, strict=True))


class Site(NamedTuple):
  """What is harvested into a training and a held-out store.

  Attributes:
    config: settings of one site.
    source, target: as for `harvest`.
  """

  config: HarvestConfig
  source: subject.Subject | None
  target: subject.Subject | None


def _harvest(
  sites: Sequence[Site],
  share: Share,
  repair: bool,
  progress: Progress | None,
) -> tuple[list[Written], list[Written]]:
  """Harvests the training and the held-out stores of sites."""
  chosen = [
    Site(
      config,
      source or spec.subject_of(config),
      target or spec.target(config),
    )
    for config, source, target in sites
  ]
  ends = [end for site in chosen for end in (site.source, site.target)]
  shared = iter(subject.shared([end for end in ends if end is not None]))
  corpus = spec.corpus_of(chosen[0].config)
  parts: tuple[list[rows.TextRows], list[rows.TextRows]] = [], []
  for config, _, target in chosen:
    source = next(shared)
    target = None if target is None else next(shared)
    feasibility.check_context(config, source)
    feasibility.check_memory(config, source, target, stores=len(chosen))
    feasibility.check_ids(config, source, corpus)
    for name, of_part in zip((text.TRAIN, text.HELD_OUT), parts, strict=True):
      about = meta(config, name, source=source, corpus=corpus, target=target)
      found = rows.TextRows(config, source, corpus, name, about, target)
      _check(found, path(config, about), stores=len(chosen))
      of_part.append(found)
  written: list[list[Written]] = []
  for of_part in parts:
    jobs = []
    for number, found in enumerate(of_part):
      if written:
        # One threshold for both: the median norm is that of the training part.
        of_train = written[0][number].place
        found.calibration = manifest.calibration(of_train)
      jobs.append(fill.Job(found, path(found.config, found.about), found.about))
    done = fill.fill_shares(jobs, share=share, repair=repair, progress=progress)
    written.append(
      [
        Written(places.at(job.path), complete)
        for job, complete in zip(jobs, done, strict=True)
      ]
    )
  return written[0], written[1]


def _check(source: rows.TextRows, place: Place, *, stores: int) -> None:
  """Refuses a store that cannot be filled, one of several, unless it is there."""
  there = place.read([manifest.META, manifest.NAME])
  if manifest.NAME not in there:
    _ = source.documents
  if not there and isinstance(place, Local):
    wanted = stores * source.about["rows"]
    fill.check_space(place.folder, source.columns, wanted, field="harvest.dir")
