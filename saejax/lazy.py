"""Lazy imports: a package's names are imported on first use (PEP 562)."""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


def attach(
  package: str, modules: Collection[str], names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
  """`__getattr__` and `__dir__` of a package.

  Args:
    package: its `__name__`.
    modules: names of its modules and subpackages.
    names: other names, each with "module" or "module:name" that it stands for;
      without a colon the name is the same there.

  Returns:
    The two functions. What was looked up once is an ordinary attribute.
  """

  def lookup(name: str) -> Any:
    if name in modules:
      return importlib.import_module(f"{package}.{name}")
    if name not in names:
      raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, _, inner = names[name].partition(":")
    value = getattr(importlib.import_module(module), inner or name)
    setattr(sys.modules[package], name, value)
    return value

  def listed() -> list[str]:
    own = [n for n in vars(sys.modules[package]) if n[:1] != "_"]
    return sorted({*own, *modules, *names})

  return lookup, listed


def modules(path: Iterable[str]) -> list[str]:
  """Returns the names of the modules and subpackages of a package.

  Args:
    path: the package's `__path__`.
  """
  return [module.name for module in pkgutil.iter_modules(path)]
