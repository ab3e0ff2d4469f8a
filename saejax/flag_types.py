"""Flags of the fields of configs: how text on a command line becomes a value."""

from typing import Any

from absl import flags

from saejax import fields
from saejax.errors import InputError


def make(leaf: fields.Leaf, default: Any) -> flags.Flag:
  """Makes the flag of a field.

  Args:
    leaf: the field.
    default: its default, None where the flag must be given.
  """
  kind = _Bool if leaf.kind is bool else _Repeated if leaf.repeated else None
  cls = kind or flags.Flag
  parser = _Parser(leaf)
  return cls(parser, None, leaf.name, default, leaf.comment or leaf.name)


class _Parser(flags.ArgumentParser):
  """Text of a flag -> value, by the type of the field."""

  def __init__(self, leaf: fields.Leaf):
    super().__init__()
    self.leaf = leaf

  def parse(self, argument: Any) -> Any:
    if not isinstance(argument, str):  # absl parses the default too
      return argument
    if self.leaf.repeated:
      return (self._read(self.leaf.element, argument),)
    return self._read(self.leaf.kind, argument)

  def _read(self, kind: Any, argument: str) -> Any:
    try:
      return fields.read(kind, argument)
    except ValueError as error:
      remedy = "see --help"
      if self.leaf.default is not fields.MISSING:
        default = fields.show(self.leaf.kind, self.leaf.default)
        remedy = f"for example --{self.leaf.name}={default}"
      rule = str(error)
      raise InputError(self.leaf.name, argument, rule, remedy) from None

  def flag_type(self) -> str:
    return fields.describe(self.leaf.kind)


class _Bool(flags.Flag):
  """A flag that may stand without a value, and with `no` before its name."""

  def __init__(self, *args: Any):
    super().__init__(*args, boolean=True)


class _Repeated(flags.Flag):
  """A flag whose values are collected; a comma does not divide one."""

  def parse(self, argument: Any) -> None:
    before = self.value if self.present else None
    super().parse(argument)
    self.value = (*(before or ()), *(self.value or ()))
