"""Harvests a model's activations on a corpus into two stores.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order. `data.fill` writes them, `data.text.rows` makes
the rows. `online` gives the rows of the first without writing them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

from saejax.data import fill, joined, spec
from saejax.data import online as online_rows
from saejax.data.fill import Progress
from saejax.data.online import OnlineRows
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import OnlineConfig as OnlineConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import manifest, reader
from saejax.data.store import place as places
from saejax.data.store.place import Local, Place
from saejax.data.store.share import Share
from saejax.data.text import corpus as text
from saejax.data.text import feasibility, rows, subject
from saejax.errors import InputError

_REMEMBERED = 1024  # documents whose tokens are kept for the next site


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
  _check_one_site(config)
  site = Site(config, source, target)
  train, held_out = _harvest([site], Share(), False, progress)
  return reader.open(train[0].place), reader.open(held_out[0].place)


def _check_one_site(config: HarvestConfig) -> None:
  if config.sites:
    raise InputError(
      "harvest.sites",
      config.sites,
      "must be empty where the rows of one site are wanted",
      "use harvest.layer and harvest.point, or saejax harvest or train",
    )


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


def online(
  config: OnlineConfig,
  *,
  source: subject.Subject | None = None,
  target: subject.Subject | None = None,
  progress: Progress | None = None,
) -> tuple[OnlineRows, reader.Store]:
  """Returns rows to train on as the model computes them, with no store on disk.

  The held-out store is that of a harvest of the same settings, and is harvested
  here if it is not there. So are the rows, but for their order.

  Args:
    config: model, site, corpus and buffer.
    source, target, progress: as for `harvest`.

  Returns:
    (training rows, held-out store).

  Raises:
    InputError: as `harvest`, or the buffer does not fit in memory.
  """
  _check_one_site(config)
  return _online([Site(config, source, target)], config, progress)[0]


def online_sites(
  config: OnlineConfig, *, progress: Progress | None = None
) -> list[tuple[OnlineRows, reader.Store]]:
  """Returns rows of each site, all computed in one forward pass.

  A token that is an outlier at one of the sites is a row of none of them.

  Args:
    config, progress: as for `online`.

  Returns:
    (training rows, held-out store) of each site; one site without config.sites.

  Raises:
    InputError: as `online`.
  """
  sites = [Site(one, None, None) for one in spec.sites(config)]
  return _online(sites, config, progress)


def _online(
  sites: Sequence[Site], config: OnlineConfig, progress: Progress | None
) -> list[tuple[OnlineRows, reader.Store]]:
  train, held_out = _parts(sites)
  sizes = {
    "most_rows": config.rows,
    "buffer_rows": config.buffer_rows,
    "statistics_rows": config.statistics_rows,
  }
  try:
    if len(train) == 1:
      found = [online_rows.rows(train[0], **sizes)]
    else:
      found = joined.sites(train, **sizes)
  except InputError as error:
    raise error.renamed(f"harvest.{error.field}") from error
  for each in held_out:
    _check(each, path(each.config, each.about), stores=len(sites))
  for own, other in zip(train, held_out, strict=True):
    _ = own.documents  # refuses a corpus without rows
    own.calibration = other.calibration = own.prepare(None)
  written = _fill(held_out, Share(), False, progress)
  stores = [reader.open(each.place) for each in written]
  return list(zip(found, stores, strict=True))


def _harvest(
  sites: Sequence[Site],
  share: Share,
  repair: bool,
  progress: Progress | None,
) -> tuple[list[Written], list[Written]]:
  """Harvests the training and the held-out stores of sites."""
  train, held_out = _parts(sites)
  for each in (*train, *held_out):
    _check(each, path(each.config, each.about), stores=len(sites))
  of_train = _fill(train, share, repair, progress)
  for each, written in zip(held_out, of_train, strict=True):
    # One threshold for both: the median norm is that of the training part.
    each.calibration = manifest.calibration(written.place)
  return of_train, _fill(held_out, share, repair, progress)


def _fill(
  sources: Sequence[rows.TextRows],
  share: Share,
  repair: bool,
  progress: Progress | None,
) -> list[Written]:
  """Writes the store of each source."""
  jobs = [
    fill.Job(each, path(each.config, each.about), each.about)
    for each in sources
  ]
  done = fill.fill_shares(jobs, share=share, repair=repair, progress=progress)
  return [
    Written(places.at(job.path), complete)
    for job, complete in zip(jobs, done, strict=True)
  ]


def _parts(
  sites: Sequence[Site],
) -> tuple[list[rows.TextRows], list[rows.TextRows]]:
  """The rows of the training and the held-out part of each site."""
  chosen = [
    Site(
      config,
      source or spec.subject_of(config),
      target or spec.target(config),
    )
    for config, source, target in sites
  ]
  pairs = [(site.source, site.target) for site in chosen]
  ends = [end for pair in pairs for end in pair if end is not None]
  shared = iter(subject.shared(ends))
  corpus = spec.corpus_of(chosen[0].config)
  # Sites are read side by side: the second needs the tokens of the first again.
  encode = functools.lru_cache(_REMEMBERED)(ends[0].encode)
  parts: tuple[list[rows.TextRows], list[rows.TextRows]] = [], []
  for config, _, target in chosen:
    source = next(shared)
    if len(chosen) > 1:
      source = dataclasses.replace(source, encode=encode)
    target = None if target is None else next(shared)
    feasibility.check_context(config, source)
    feasibility.check_memory(config, source, target, stores=len(chosen))
    feasibility.check_ids(config, source, corpus)
    for name, of_part in zip((text.TRAIN, text.HELD_OUT), parts, strict=True):
      about = meta(config, name, source=source, corpus=corpus, target=target)
      found = rows.TextRows(config, source, corpus, name, about, target)
      of_part.append(found)
  return parts


def _check(source: rows.TextRows, place: Place, *, stores: int) -> None:
  """Refuses a store that cannot be filled, one of several, unless it is there."""
  there = place.read([manifest.META, manifest.NAME])
  if manifest.NAME not in there:
    _ = source.documents
  if not there and isinstance(place, Local):
    wanted = stores * source.about["rows"]
    fill.check_space(place.folder, source.columns, wanted, field="harvest.dir")
