"""What tells the SAEs of a run with equal n apart: k, or other arguments."""

from collections.abc import Mapping, Sequence
from typing import Any


def full(setting: Any) -> str:
  """Returns a setting as it reads alone.

  Args:
    setting: k, or the text of the arguments.

  >>> full(1024), full("a = 0.1")
  ('k = 1,024', 'a = 0.1')
  """
  return f"k = {setting:,}" if isinstance(setting, int) else setting


def short(setting: Any) -> str:
  """Returns a setting as it reads in a legend that says what k is.

  Args:
    setting: k, or the text of the arguments.
  """
  return f"{setting:,}" if isinstance(setting, int) else setting


def settings(points: Sequence[Mapping[str, Any]]) -> list[Any]:
  """Returns the setting of each point: k, or its arguments that vary.

  Args:
    points: records of SAEs.

  >>> settings([{"k": 0, "arguments": {"a": a, "b": 1}} for a in (0.1, 0.2)])
  ['a = 0.1', 'a = 0.2']
  """
  given = [p.get("arguments") or {} for p in points]
  varied = sorted(
    name
    for name in {name for one in given for name in one}
    if len({str(one.get(name)) for one in given}) > 1
  )
  if all(p["k"] >= 1 for p in points) and set(varied) <= {"k"}:
    return [int(p["k"]) for p in points]
  say = lambda one: ", ".join(f"{name} = {one.get(name)}" for name in varied)
  return [say(one) or "SAE" for one in given]
