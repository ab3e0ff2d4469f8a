"""Checks the installed wheel; run in an empty folder, with the checkout given.

Every module of the checkout is in it and imports without extras, except those
that say which extra they need; no top-level `kernels`, no PyTorch.
"""

import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import sys

EXTRAS = {"datasets", "huggingface_hub", "jinja2", "matplotlib", "transformers"}


def main(checkout: pathlib.Path) -> None:
  files = [str(f) for f in importlib.metadata.files("saejax") or ()]
  tops = {file.split("/")[0] for file in files if not file.startswith("..")}
  tops = {top for top in tops if not top.endswith(".dist-info")}
  assert tops == {"saejax"}, f"top-level names in the wheel: {sorted(tops)}"
  assert "saejax/py.typed" in files
  assert "saejax/kernels/native.cc" in files

  wanted = {
    f"saejax/{path.relative_to(checkout / folder)}"
    if folder == "saejax"
    else f"saejax/kernels/{path.relative_to(checkout / folder)}"
    for folder in ("saejax", "kernels")
    for path in (checkout / folder).rglob("*.py")
    if "saejax/kernels" not in str(path)
  }
  modules = {file for file in files if file.endswith(".py")}
  assert modules == wanted, f"differ: {sorted(modules ^ wanted)}"

  saejax = importlib.import_module("saejax")
  place = pathlib.Path(saejax.__file__).parent
  assert checkout / ".venv-wheel" in place.parents, place
  assert saejax.__version__ == importlib.metadata.version("saejax")
  assert "torch" not in sys.modules
  described = str(importlib.metadata.metadata("saejax").get_payload())
  assert described.startswith("# saejax"), described[:80]
  assert not re.search(r"\]\((?!https?:|#)", described), "a relative link"

  without = []
  for file in sorted(modules):
    name = re.sub(r"(/__init__)?\.py$", "", file).replace("/", ".")
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as error:
      assert error.name and error.name.split(".")[0] in EXTRAS, (name, error)
      without.append(f"{name} ({error.name})")
  assert importlib.util.find_spec("kernels") is None
  assert "torch" not in sys.modules
  print(f"saejax {saejax.__version__}: {len(modules)} modules in the wheel")
  if without:
    print("need an extra: " + ", ".join(without))


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
