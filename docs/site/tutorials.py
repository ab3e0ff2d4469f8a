"""Pages of the site that are made from the percent scripts in docs/tutorials."""

import pathlib
import re


def made(root: pathlib.Path) -> dict[str, str]:
  """Returns the text of each page by its path in the site; none without scripts.

  Args:
    root: the checkout.
  """
  folder = root / "docs" / "tutorials"
  return {
    f"tutorials/{path.stem}.md": page_of(path.read_text(), path.name)
    for path in sorted(folder.glob("*.py"))
    if not path.stem.startswith("_")
  }


def page_of(script: str, name: str) -> str:
  """Converts a percent script to Markdown.

  Args:
    script: cells that begin with "# %%" or "# %% [markdown]".
    name: name of the file, named at the end.
  """
  head, *cells = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)
  # Before the first cell: the header of jupytext, or code.
  head = re.sub(r"\A# ---\n(?:#.*\n)*?# ---\n", "", head)
  parts = _cell_of("", head)
  for kind, body in zip(cells[::2], cells[1::2], strict=True):
    parts += _cell_of(kind, body)
  text = "\n\n".join(parts)
  if not text.lstrip().startswith("# "):
    text = f"# {pathlib.PurePath(name).stem.replace('_', ' ')}\n\n{text}"
  return f"{text}\n\nThe script is `docs/tutorials/{name}`.\n"


def _cell_of(kind: str, body: str) -> list[str]:
  body = body.strip("\n")
  if not body.strip():
    return []
  if "[markdown]" not in kind and "[md]" not in kind:
    return [f"```python\n{body}\n```"]
  quoted = re.fullmatch(r'\s*r?"""(.*)"""\s*', body, re.DOTALL)
  if quoted:
    return [quoted[1].strip("\n")]
  return [re.sub(r"^# ?", "", body, flags=re.MULTILINE)]
