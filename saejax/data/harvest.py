"""Harvests a model's activations on a corpus into two stores.

The training store is shuffled inside buckets; the held-out store keeps
documents whole and in order. `data.fill` writes them, `data.text.rows` makes
the rows.
"""

import pathlib

from saejax.data import fill, spec
from saejax.data.fill import Progress
from saejax.data.spec import HarvestConfig as HarvestConfig
from saejax.data.spec import meta as meta
from saejax.data.spec import path as path
from saejax.data.store import manifest, reader
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
  rows than wanted gives a smaller store.

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
  found: list[reader.Store] = []
  for of_part in both:
    # One threshold for both: the median norm is that of the training part.
    of_part.calibration = found[0].stats["calibration"] if found else None
    where = path(config, of_part.about)
    found.append(fill.fill(of_part, where, of_part.about, progress=progress))
  return found[0], found[1]


def _check(source: rows.TextRows, path: pathlib.Path) -> None:
  """Refuses a store that cannot be filled, unless it is there."""
  if not (path / manifest.NAME).exists():
    _ = source.documents
  if not path.exists():
    wanted = source.about["rows"]
    fill.check_space(path, source.columns, wanted, field="harvest.dir")
