"""Harvests a model's activations on a corpus into two stores.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order. `data.fill` writes them, `data.text.rows` makes
the rows.
"""

from saejax.data import fill, spec
from saejax.data.fill import Progress
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import manifest, reader
from saejax.data.store.place import Local, Place
from saejax.data.store.share import Share
from saejax.data.text import corpus as text
from saejax.data.text import feasibility, rows, subject


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
      not writable, raised before the model runs where possible; or
      activations are not finite. Finished buckets are kept.
  """
  found = harvest_share(config, source=source, target=target, progress=progress)
  train, held_out = (reader.open(place) for place, _ in found)
  return train, held_out


def harvest_share(
  config: HarvestConfig,
  *,
  share: Share = Share(),
  repair: bool = False,
  source: subject.Subject | None = None,
  target: subject.Subject | None = None,
  progress: Progress | None = None,
) -> list[tuple[Place, bool]]:
  """Harvests one process's buckets of both stores.

  Processes need not start together, nor know of each other. The stores are
  those of a single process, byte for byte.

  Args:
    config, source, target, progress: as for `harvest`.
    share: which process this is, of how many.
    repair: whether to read what is there, and to harvest what is damaged again.

  Returns:
    Where the training and the held-out store are, and whether each is complete.

  Raises:
    InputError: as `harvest`, or as `fill.fill_share`.
  """
  source = source or spec.subject_of(config)
  source, target = subject.shared(source, target or spec.target(config))
  feasibility.check_context(config, source)
  feasibility.check_memory(config, source, target)
  corpus = spec.corpus_of(config)
  feasibility.check_ids(config, source, corpus)
  both = []
  for part in (text.TRAIN, text.HELD_OUT):
    about = meta(config, part, source=source, corpus=corpus, target=target)
    both.append(rows.TextRows(config, source, corpus, part, about, target))
    _check(both[-1], path(config, about))
  found: list[tuple[Place, bool]] = []
  for of_part in both:
    # One threshold for both: the median norm is that of the training part.
    of_part.calibration = manifest.calibration(found[0][0]) if found else None
    place = path(config, of_part.about)
    complete = fill.fill_share(
      of_part,
      place,
      of_part.about,
      share=share,
      repair=repair,
      progress=progress,
    )
    found.append((place, complete))
  return found


def _check(source: rows.TextRows, place: Place) -> None:
  """Refuses a store that cannot be filled, unless it is there."""
  there = place.read([manifest.META, manifest.NAME])
  if manifest.NAME not in there:
    _ = source.documents
  if not there and isinstance(place, Local):
    wanted = source.about["rows"]
    fill.check_space(place.folder, source.columns, wanted, field="harvest.dir")
