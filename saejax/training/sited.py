"""Rows of several sites: which of them a member reads.

Batches and samples of such a run have a leading axis of sites.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
from jaxtyping import Array

from saejax.errors import InputError
from saejax.sae.context import Batch
from saejax.training.member import Member
from saejax.training.recipe import RowSource

Tree = TypeVar("Tree")


def numbers(members: Sequence[Member], sites: Sequence[str]) -> list[int]:
  """Returns the place of each member's site; 0 where the rows have no sites.

  Args:
    members: the members.
    sites: names of the sites in the order of the axis; none for plain rows.

  Raises:
    InputError: a member names no site of the rows, or rows without sites have
      a member that names one.
  """
  known = ", ".join(sites) or "none, as the rows have no sites"
  for member in members:
    if member.site not in (sites or [""]):
      raise InputError(
        "site",
        member.site,
        f"must be one of {known}",
        "name a site of the rows for every member",
      )
  return [sites.index(member.site) if sites else 0 for member in members]


def part(batch: Tree, number: int | Array) -> Tree:
  """Returns the rows of a site, or of several along a leading axis.

  Args:
    batch: arrays with a leading axis of sites; None is returned as it is.
    number: place of the site, or an array of places.
  """
  return jax.tree.map(lambda a: a[number], batch)


@dataclasses.dataclass(frozen=True)
class SiteRows:
  """The rows of one site of a source of several; a `RowSource`.

  Attributes:
    rows: the source.
    number: place of the site.
  """

  rows: RowSource
  number: int

  def sample(self, rows: int) -> Batch:
    """Samples the site.

    Args:
      rows: maximum number of rows.
    """
    return part(self.rows.sample(rows), self.number)
