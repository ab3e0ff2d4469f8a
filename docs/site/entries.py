"""Splits docstring entries of several arguments, which mkdocstrings does not know.

`d, n: width, and number of latents.` becomes an entry for d and one for n, so that
each has the type in the signature.
"""

import re

# Two names or more, at the indent of an entry, and the text behind them.
ENTRY = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): ")
SECTIONS = ("Args:", "Attributes:")


def split(text: str) -> str:
  """Returns a docstring with one entry per argument.

  Args:
    text: the docstring, without its indent.
  """
  found, inside = [], False
  lines = text.splitlines()
  for i, line in enumerate(lines):
    if line and not line.startswith(" "):
      inside = line in SECTIONS
    entry = ENTRY.match(line) if inside else None
    if entry is None:
      found.append(line)
      continue
    said = [line[entry.end() :]]
    for more in lines[i + 1 :]:
      if not more.startswith(entry["indent"] + " "):
        break
      said.append(more)
    names = entry["names"].split(", ")
    for name in names[:-1]:
      found += [f"{entry['indent']}{name}: {said[0]}", *said[1:]]
    found.append(f"{entry['indent']}{names[-1]}: {said[0]}")
  return "\n".join(found)
