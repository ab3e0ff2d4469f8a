"""The fields of config dataclasses: names, types, defaults, and their text.

A leaf is a field that is not itself a config. Types: int, float, bool, str,
Literal, tuples and unions of those; in text, the elements of a tuple are
separated by commas, a tuple inside a tuple stands in parentheses, and `none` is
None. A tuple with `metadata={"repeated": True}` has one flag per element, which may
hold commas.
"""

import ast
import contextlib
import dataclasses
import decimal
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

MISSING = dataclasses.MISSING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """A field that holds a value, not another config."""

  name: str  # dotted, as the flag is called
  kind: Any  # the type
  default: Any  # MISSING where the flag must be given
  comment: str  # the one-line comment of the field
  repeated: bool = False  # a tuple with one flag per element

  @property
  def element(self) -> Any:
    """The type of an element of a tuple."""
    return typing.get_args(self.kind)[0]


def leaves(config_cls: type, prefix: str = "") -> Iterator[Leaf]:
  """Lists the leaf fields of a config and of its nested configs, in order.

  The default of a leaf is taken from the config around it, so that
  `train: Train = Train(epochs=2)` makes 2 the default of `train.epochs`.

  Args:
    config_cls: the config class.
    prefix: prefix of the dotted names.
  """
  yield from _leaves(config_cls, prefix, MISSING)


def leaves_of(config: Any) -> Iterator[Leaf]:
  """Lists the leaf fields of a config, with its values as their defaults.

  Where a config in it is of a subclass, the fields of that are among them.

  Args:
    config: the config; fields of its nested configs' subclasses are included.
  """
  yield from _leaves(type(config), "", config, as_given=True)


def _leaves(
  config_cls: type, prefix: str, default: Any, as_given: bool = False
) -> Iterator[Leaf]:
  comments = _comments(config_cls)
  for field, kind in typed(config_cls):
    if default is not MISSING:
      value = getattr(default, field.name)
    elif field.default_factory is not MISSING:
      value = field.default_factory()
    else:
      value = field.default
    name = prefix + field.name
    if is_config(kind):
      kind = type(value) if as_given else kind
      yield from _leaves(kind, name + ".", value, as_given)
    else:
      describe(kind)  # a type that no flag can hold is refused here
      yield Leaf(
        name=name,
        kind=kind,
        default=value,
        comment=field.metadata.get("comment", comments.get(field.name, "")),
        repeated=field.metadata.get("repeated", False),
      )


def typed(config_cls: type) -> list[tuple[dataclasses.Field, Any]]:
  """Returns the fields of a config class with their types.

  Args:
    config_cls: the config class.
  """
  hints = typing.get_type_hints(config_cls)
  return [(f, hints[f.name]) for f in dataclasses.fields(config_cls) if f.init]


def is_config(kind: Any) -> typing.TypeGuard[type]:
  """Returns whether a type is a config class.

  Args:
    kind: the type.
  """
  return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _comments(config_cls: type) -> dict[str, str]:
  """Field name -> its comment, on the same line or on the lines above.

  Empty where the source is not at hand (frozen programs, interactive use).
  """
  comments = {}
  for cls in reversed(config_cls.__mro__):
    try:
      source = textwrap.dedent(inspect.getsource(cls))
      tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):
      continue
    lines = source.splitlines()
    for node in ast.walk(tree):
      if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        comments[node.target.id] = _comment(lines, node)
  return comments


def _comment(lines: list[str], node: ast.AnnAssign) -> str:
  end = (node.end_lineno or node.lineno) - 1
  last = lines[end].encode()[node.end_col_offset or 0 :].decode()
  if last.strip().startswith("#"):
    return last.strip(" #")
  above = []
  for line in reversed(lines[: node.lineno - 1]):
    if not line.strip().startswith("#"):
      break
    above.insert(0, line.strip(" #"))
  return " ".join(above)


def read(kind: Any, text: str) -> Any:
  """Parses text to a value of a type.

  Args:
    kind: the type.
    text: the text.

  Raises:
    ValueError: the text is not valid; the message is the rule.

  >>> read(tuple[int, ...], "4,8")
  (4, 8)
  """
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  if _is_union(kind):
    if text == "none" and type(None) in args:
      return None
    for choice in _choices(kind):
      with contextlib.suppress(ValueError):
        return read(choice, text)
  elif origin is typing.Literal:
    for choice in args:
      if text == str(choice):
        return choice
  elif origin is tuple:
    parts = _parts(text) if text else []
    repeated = args[-1] is Ellipsis
    if repeated or len(parts) == len(args):
      kinds = [args[0]] * len(parts) if repeated else args
      return tuple(_element(k, p) for k, p in zip(kinds, parts, strict=True))
  elif kind is bool:
    if text.lower() in ("true", "t", "1", "yes"):
      return True
    if text.lower() in ("false", "f", "0", "no"):
      return False
  elif kind is str:
    return text
  else:
    with contextlib.suppress(ValueError, ArithmeticError):
      value = _whole(text) if kind is int else float(text)
      if not math.isnan(value):
        return value
  raise ValueError("must be " + describe(kind))


def _parts(text: str) -> list[str]:
  """The text cut at the commas that are not in parentheses."""
  parts, depth = [""], 0
  for letter in text:
    depth += (letter == "(") - (letter == ")")
    if letter == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  return parts


def _element(kind: Any, text: str) -> Any:
  """An element of a tuple; one that is a tuple is in parentheses."""
  bare = text.strip()
  if bare.startswith("(") and bare.endswith(")"):
    inner = [k for k in _choices(kind) if typing.get_origin(k) is tuple]
    for choice in inner:
      with contextlib.suppress(ValueError):
        return read(choice, bare[1:-1].removesuffix(","))
    if inner:
      raise ValueError("must be " + _described(kind))
  outside = [k for k in _choices(kind) if typing.get_origin(k) is not tuple]
  if bare == "none" and is_optional(kind):
    return None
  for choice in outside:
    with contextlib.suppress(ValueError):
      return read(choice, text)
  raise ValueError("must be " + _described(kind))


def _whole(text: str) -> int:
  try:
    return int(text)
  except ValueError:
    number = decimal.Decimal(text)  # "3e5" is exact, as it is not by float
    if not number.is_finite() or number.adjusted() > 30 or number % 1:
      raise
    return int(number)


def show(kind: Any, value: Any) -> str:
  """Formats a value so that `read` gives it back.

  Args:
    kind: the type.
    value: the value.

  >>> show(tuple[int, ...], (4, 8))
  '4,8'
  """
  if value is None:
    return "none"
  if _is_union(kind):
    for choice in _choices(kind):
      with contextlib.suppress(TypeError, ValueError):
        text = show(choice, value)
        if read(choice, text) == value:
          return text
    return str(value)
  if typing.get_origin(kind) is tuple:
    return ",".join(_shown(k, v) for k, v in _elements(kind, value))
  if isinstance(value, bool):
    return "true" if value else "false"
  if kind is float:
    return repr(float(value))
  return str(value)


def _elements(kind: Any, value: Any) -> list[tuple[Any, Any]]:
  """Pairs each element of a tuple with its type."""
  args = typing.get_args(kind)
  kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
  return list(zip(kinds, value, strict=True))


def _shown(kind: Any, value: Any) -> str:
  text = show(kind, value)
  return f"({text})" if isinstance(value, tuple) else text


def describe(kind: Any) -> str:
  """Describes the values of a type in words.

  Args:
    kind: the type.

  Raises:
    TypeError: no flag can have this type.
  """
  origin, args = typing.get_origin(kind), typing.get_args(kind)
  simple = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
  }
  if kind in simple:
    return simple[kind]
  if _is_union(kind):
    words = [describe(choice) for choice in _choices(kind)]
    return ", or ".join([*words, *["none"] * (type(None) in args)])
  if origin is typing.Literal:
    return "one of " + ", ".join(map(str, args))
  if origin is tuple:
    each = _described(args[0])
    if args[-1] is Ellipsis:
      return "values separated by commas, each " + each
    if len(set(args)) == 1:
      return f"{len(args)} values separated by commas, each {each}"
  raise TypeError(f"no flag can hold a field of type {kind}")


def _described(kind: Any) -> str:
  """An element of a tuple in words."""
  words = describe(kind)
  tuples = [k for k in _choices(kind) if typing.get_origin(k) is tuple]
  return f"{words}, in parentheses" if tuples else words


def flaggable(kind: Any) -> Any:
  """The alternatives of a type that a flag can hold.

  Args:
    kind: the type.

  Raises:
    TypeError: there is none.
  """
  if not _is_union(kind):
    describe(kind)
    return kind
  held = []
  for choice in typing.get_args(kind):
    with contextlib.suppress(TypeError):
      if choice is not type(None):
        describe(choice)
      held.append(choice)
  if not set(held) - {type(None)}:
    raise TypeError(f"no flag can hold a field of type {kind}")
  return typing.Union[tuple(held)]  # noqa: UP007


def is_optional(kind: Any) -> bool:
  """Returns whether None is a value of a type.

  Args:
    kind: the type.

  >>> is_optional(int | None), is_optional(int)
  (True, False)
  """
  return _is_union(kind) and type(None) in typing.get_args(kind)


def _is_union(kind: Any) -> bool:
  return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _choices(kind: Any) -> list[Any]:
  """The types that a value may have, None left out."""
  if not _is_union(kind):
    return [kind]
  return [k for k in typing.get_args(kind) if k is not type(None)]
