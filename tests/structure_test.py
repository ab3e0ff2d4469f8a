"""The layout: BUILD covers every file, imports go backwards along the road."""

import ast
import configparser
import functools
import glob
import graphlib
import os
import pathlib
import re
import statistics
import sys

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROAD = [
  "lazy",
  "errors",
  "notebook",
  "terminal",
  "interrupt",
  "machine",
  "checks",
  "flagfiles",
  "durable",
  "processes",
  "compile_cache",
  "fields",
  "presets",
  "choices",
  "usage",
  "config",
  "launching",
  "kernels",
  "models",
  "data",
  "sae",
  "interop",
  "training",
  "recipes",
  "features",
  "interventions",
  "evals",
  "report",
  "runs",
  "plans",
  "studies",
  "command",
]
# Import name -> requirement, where they differ.
REQUIREMENTS = {"absl": "absl-py", "orbax": "orbax-checkpoint"}
EXTRAS_AT_TOP = {"report": {"jinja2", "matplotlib"}}


def python_files(folder: str = ".") -> list[str]:
  """Paths from the root, by their real place: links are not followed."""
  found = []
  for where, folders, files in os.walk(str(ROOT / folder).removesuffix("/.")):
    folders[:] = [
      f for f in folders if f[0] != "." and (where, f) not in SKIPPED
    ]
    for file in files:
      if file.endswith(".py"):
        found.append(str(pathlib.Path(where, file).relative_to(ROOT)))
  return sorted(found)


# What is not tracked, at the top.
SKIPPED = {(str(ROOT), f) for f in ("build", "dist", "node_modules", "runs")}


# --- BUILD -------------------------------------------------------------------


@functools.cache
def targets() -> dict[str, dict]:
  """Label -> rule, from the BUILD files, whose language is a part of Python."""
  found = {}
  for package in ("", "third_party"):
    rule = functools.partial(_rule, found, package)
    kinds = ("py_library", "py_binary", "py_test", "filegroup")
    space = {kind: functools.partial(rule, kind) for kind in kinds}
    space["glob"] = functools.partial(_glob, ROOT / package)
    for name in ("package", "licenses", "exports_files"):
      space[name] = lambda *_, **__: None
    text = (ROOT / package / "BUILD").read_text()
    exec(compile(text, f"{package}/BUILD", "exec"), space)
  return found


def _rule(found, package, kind, name, **attributes):
  label = f"//{package}:{name}"
  if label in found:
    raise ValueError(f"{label} is defined twice")
  found[label] = {"kind": kind, **attributes}


def _glob(folder, include, exclude=(), allow_empty=False):
  def match(patterns):
    return {
      path
      for pattern in patterns
      for path in glob.glob(pattern, root_dir=folder, recursive=True)
      if (folder / path).is_file()
    }

  found = sorted(match(include) - match(exclude))
  if not found and not allow_empty:
    raise ValueError(f"nothing matches {include}")
  return found


class BuildTest(absltest.TestCase):
  def test_no_function_is_called_of(self):
    for path in [*python_files("saejax"), *python_files("kernels")]:
      for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef):
          self.assertNotEqual(node.name, "of", path)

  def test_every_python_file_is_covered_by_a_target(self):
    covered = {
      str((ROOT / source).resolve().relative_to(ROOT))
      for rule in targets().values()
      if rule["kind"].startswith("py_")
      for source in rule.get("srcs", ())
    }
    self.assertEmpty(sorted(set(python_files()) - covered))
    self.assertContainsSubset(["saejax/config.py"], covered)

  def test_every_script_is_a_binary_and_every_test_a_test(self):
    for kind, wanted in {
      "py_binary": [*glob_py("experiments"), *glob_py("benchmarks")],
      "py_test": [f for f in python_files("tests") if f[-8:] == "_test.py"],
    }.items():
      rules = {
        label: rule for label, rule in targets().items() if rule["kind"] == kind
      }
      self.assertEqual(sorted(rules), sorted("//:" + f[:-3] for f in wanted))
      for label, rule in rules.items():
        self.assertEqual(rule["srcs"], [rule["main"]], label)

  def test_no_library_holds_a_file_of_another(self):
    owners = {}
    for label, rule in targets().items():
      if rule["kind"] == "py_library":
        for source in rule.get("srcs", ()):
          owners.setdefault((ROOT / source).resolve(), []).append(label)
    self.assertEmpty({f: o for f, o in owners.items() if len(o) > 1})

  def test_every_dependency_is_a_target(self):
    for label, rule in targets().items():
      for dep in rule.get("deps", ()):
        full = "//" + dep if dep.startswith(":") else dep
        self.assertIn(full, targets(), label)

  def test_dependencies_follow_the_road(self):
    order = [label for label in targets() if label[3:] in ROAD]
    self.assertEqual(order, ["//:" + part for part in ROAD])
    for i, label in enumerate(order):
      inside = [d for d in targets()[label].get("deps", ()) if d[0] == ":"]
      self.assertContainsSubset(["//" + dep for dep in inside], order[:i])

  def test_third_party_dependencies_are_named(self):
    tops = {top for f in python_files("saejax") for top in imports(f)}
    outside = {t.split(".")[0] for t in tops} - set(sys.stdlib_module_names)
    named = {label.split(":")[1] for label in targets() if "third" in label}
    self.assertEmpty(outside - {"saejax"} - named)


def glob_py(folder: str) -> list[str]:
  found = glob.glob(f"{folder}/*.py", root_dir=ROOT)
  return [f for f in found if not f.endswith("__init__.py")]


# --- imports -----------------------------------------------------------------


@functools.cache
def imports(path: str, *, top_only: bool = False) -> frozenset[str]:
  """Full names of the modules that a file imports, lazily too."""
  tree = ast.parse((ROOT / path).read_text(), path)
  package = module_name(path).split(".")
  if not path.endswith("__init__.py"):
    package = package[:-1]
  found = set()
  for node in _at_top(tree) if top_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      base = ".".join([*base, *filter(None, [node.module])])
      found |= {f"{base}.{alias.name}" for alias in node.names}
  return frozenset(found)


def _at_top(tree):
  """Statements that run on import: not those in functions."""
  for node in ast.iter_child_nodes(tree):
    if not isinstance(
      node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    ):
      yield node
      yield from _at_top(node)


def module_name(path: str) -> str:
  """saejax.kernels.topk.op for kernels/topk/op.py."""
  if path.startswith("kernels/"):
    path = "saejax/" + path
  return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def part(module: str) -> str:
  """The part of the road a module is in; "" for saejax itself."""
  pieces = module.split(".")
  return pieces[1] if len(pieces) > 1 else ""


def library() -> list[str]:
  return [*python_files("saejax"), *python_files("kernels")]


class ImportsTest(parameterized.TestCase):
  def test_every_module_is_on_the_road(self):
    for path in library():
      if path != "saejax/__init__.py":
        self.assertIn(part(module_name(path)), ROAD, path)

  def test_imports_go_backwards_along_the_road(self):
    for path in library():
      here = part(module_name(path))
      if not here:
        continue  # saejax/__init__.py gives the names of all
      for name in imports(path):
        if name.split(".")[0] == "saejax":
          self.assertIn(part(name), ROAD, f"{path} imports {name}")
          self.assertLessEqual(
            ROAD.index(part(name)),
            ROAD.index(here),
            f"{path} imports {name}, which is later on the road",
          )

  def test_modules_do_not_import_in_circles(self):
    modules = {module_name(path) for path in library()}
    graph = {}
    for path in library():
      graph[module_name(path)] = {
        found
        for name in imports(path)
        for found in (name, name.rpartition(".")[0])
        if found in modules and found != module_name(path)
      } - {"saejax"}
    for name in graph:  # a package's names come from its own files
      graph[name] -= {name.rpartition(".")[0]}
    list(graphlib.TopologicalSorter(graph).static_order())

  @parameterized.parameters(
    "torch", "kernels", "experiments", "benchmarks", "tests"
  )
  def test_library_never_imports(self, name):
    for path in library():
      tops = {module.split(".")[0] for module in imports(path)}
      self.assertNotIn(name, tops, path)

  def test_only_config_knows_flags(self):
    for path in library():
      if path != "saejax/config.py":
        found = [m for m in imports(path) if re.match(r"absl\.(flags|app)", m)]
        self.assertEmpty(found, path)

  def test_core_imports_only_what_it_requires(self):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"].split()
    names = {re.split(r"[<>=\[]", line)[0] for line in required}
    for path in library():
      extras = EXTRAS_AT_TOP.get(part(module_name(path)), set())
      for module in imports(path, top_only=True):
        top = module.split(".")[0]
        if top not in sys.stdlib_module_names and top != "saejax":
          known = REQUIREMENTS.get(top, top)
          self.assertIn(known, names | extras, f"{path} imports {module}")


# --- recipes -----------------------------------------------------------------


class RecipesTest(absltest.TestCase):
  def test_the_median_recipe_has_at_most_15_lines(self):
    lengths = {}
    for path in (ROOT / "saejax/recipes").glob("*.py"):
      for made in ast.parse(path.read_text()).body:
        if (
          isinstance(made, ast.FunctionDef)
          and not made.name.startswith("_")
          and made.returns is not None
          and ast.unparse(made.returns) == "Recipe"
          and path.stem not in ("common", "catalogue", "arguments")
        ):
          body = made.body[1:]  # without the docstring
          lengths[made.name] = body[-1].end_lineno - body[0].lineno + 1
    self.assertGreater(len(lengths), 30)
    self.assertLessEqual(statistics.median(lengths.values()), 15, lengths)

  def test_no_branch_is_on_a_methods_name(self):
    for path in library():
      for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Compare):
          for side in (node.left, *node.comparators):
            self.assertNotEndsWith(ast.unparse(side), "recipe.name", path)


# --- the name kernels --------------------------------------------------------


class KernelsTest(absltest.TestCase):
  def test_kernels_is_no_package_and_reached_by_a_relative_link(self):
    self.assertFalse((ROOT / "kernels/__init__.py").exists())
    self.assertEqual(os.readlink(ROOT / "saejax/kernels"), "../kernels")

  def test_distribution_holds_no_package_but_saejax(self):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    find = config["options.packages.find"]
    self.assertEqual(find["include"].split(), ["saejax*"])
    self.assertNotIn("package_dir", config["options"])
    self.assertNotIn("py_modules", config["options"])


if __name__ == "__main__":
  absltest.main()
