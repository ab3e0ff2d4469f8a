"""The text of --help: what a program does, and its flags."""

import os
import textwrap

from saejax import choices, fields, presets


def text(config_cls: type, doc: str | None, program: str) -> str:
  """Returns the text of --help: the program's docstring and all flags.

  Args:
    config_cls, doc, program: config class, docstring and path of the program.
  """
  program = os.path.basename(program)
  lines = [
    (doc or "").strip(),
    "",
    f"{program} [--preset=NAME] [--flagfile=FILE] [--NAME=VALUE]",
  ]
  for leaf in fields.leaves(config_cls):
    value = "VALUE"
    if leaf.default is not fields.MISSING:
      value = fields.show(leaf.kind, leaf.default)
    kind = (
      f"{fields.describe(leaf.element)}, may be given several times"
      if leaf.repeated
      else fields.describe(leaf.kind)
    )
    lines.append(f"  --{leaf.name}={value}  ({kind})")
    lines += textwrap.wrap(
      leaf.comment, 72, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
  lines += choices.listing(config_cls)
  lines += ["", "A flagfile has one flag per line; the last equal flag wins."]
  lines += [
    f"A preset is one that comes with saejax: {', '.join(presets.names())}."
  ]
  return "\n".join(lines).strip()
