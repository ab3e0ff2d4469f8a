"""One member of a run: the settings in which its SAEs differ."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from saejax.sae import files
from saejax.training.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
  """Settings that distinguish the SAEs of a run.

  Attributes:
    seed: seed of its initial weights.
    learning_rate: peak.
    arguments: of the recipe, those in which members may differ: each a name
      and a hashable value.
    coefficient: multiplies the weight of the method's swept terms.
    site: name of the site whose rows it reads, where a run has several. The
      recipe is made with it as the argument `site`.
    label: what else its name says, such as a swept learning rate; fit for the
      name of a file.
  """

  seed: int
  learning_rate: float
  arguments: tuple[tuple[str, Any], ...] = ()
  coefficient: float = 1.0
  site: str = ""
  label: str = ""

  @property
  def given(self) -> tuple[tuple[str, Any], ...]:
    """The arguments of the recipe, with the site where there is one."""
    return (*((("site", self.site),) if self.site else ()), *self.arguments)

  @property
  def k(self) -> Any:
    """Active latents per row; 0 where the arguments have no k."""
    return dict(self.arguments).get("k", 0)

  @property
  def name(self) -> str:
    parts = [
      f"k{_text(value)}" if name == "k" else f"{name}={_text(value)}"
      for name, value in self.arguments
    ]
    if self.site:
      parts.insert(0, _text(self.site))
    if self.coefficient != 1:
      parts.append(f"c{self.coefficient:g}")
    if self.label:
      parts.append(self.label)
    return "-".join([*parts, f"seed{self.seed}"])


def _text(value: Any) -> str:
  """A value as a part of a file's name."""
  if isinstance(value, float) and float(short := f"{value:g}") == value:
    return short
  if isinstance(value, tuple):
    return ",".join(map(_text, value))
  return re.sub(r"[^\w.+-]+", "_", str(value))


def status(failed_step: int) -> str:
  """Says how the training of a member ended: "ok", or "diverged at step s".

  Args:
    failed_step: the step at which it was frozen; negative if it was not.
  """
  return "ok" if failed_step < 0 else f"{files.DIVERGED} {failed_step}"


Arguments = tuple[tuple[str, Any], ...]


def programs(
  make_recipe: Callable[..., Recipe], members: Sequence[Member]
) -> tuple[list[Arguments], list[float]]:
  """The arguments of each member's program, and its factor of swept terms.

  Members that differ in the coefficient of swept terms share the program of
  coefficient 1.

  Args:
    make_recipe: from arguments by name to the recipe.
    members: at least one.
  """
  swept = make_recipe(**dict(members[0].given)).swept
  values = {dict(member.arguments).get(swept) for member in members}
  if len(values) < 2 or None in values:
    return [m.given for m in members], [m.coefficient for m in members]
  given, factors = [], []
  for member in members:
    own = {**dict(member.given), swept: 1.0}
    given.append(tuple(own.items()))
    value = dict(member.arguments)[swept]
    factors.append(float(value) * member.coefficient)
  return given, factors


def own_programs(
  make_recipe: Callable[..., Recipe], members: Sequence[Member]
) -> str:
  """The argument that keeps members from sharing one program; "" for none.

  Args:
    make_recipe: from arguments by name to the recipe.
    members: at least one.
  """
  given = list(map(set, programs(make_recipe, members)[0]))
  differing = {
    name for own in given for name, _ in given[0].symmetric_difference(own)
  }
  if others := sorted(differing - {"k", "site"}):
    return others[0]
  if "k" not in differing:
    return ""
  largest = max(members, key=lambda m: m.k)
  whole = all(m.k == int(m.k) for m in members)
  limit = whole and not make_recipe(**dict(largest.given)).static_k
  return "" if limit else "k"
