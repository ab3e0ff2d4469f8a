"""Compares the settings of two runs and names the differences."""

import json
from collections.abc import Mapping
from typing import Any


def differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
  """Lines `a.b=1 (now 2)` for every entry in which two trees differ.

  Args:
    theirs: nested mappings, such as recorded settings.
    ours: nested mappings to compare with.
    name: prefix of the names.

  >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
  ['a.b=1 (now 2)']
  """
  if isinstance(theirs, Mapping) and ours is None:
    ours = {}
  if isinstance(ours, Mapping) and theirs is None:
    theirs = {}
  both_lists = isinstance(theirs, list) and isinstance(ours, list)
  if both_lists and len(theirs) == len(ours):
    theirs, ours = dict(enumerate(theirs)), dict(enumerate(ours))
  if not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
    # As text: NaN must equal itself, and 1 must differ from 1.0.
    same = json.dumps(theirs) == json.dumps(ours)
    return [] if same else [f"{name}={_shown(theirs)} (now {_shown(ours)})"]
  lines = []
  for key in [*theirs, *(k for k in ours if k not in theirs)]:
    inner = f"{name}.{key}" if name else str(key)
    lines += differences(theirs.get(key), ours.get(key), inner)
  return lines


def _shown(value: Any) -> str:
  text = "absent" if value is None else str(value)
  return text if len(text) <= 60 else text[:57] + "..."
