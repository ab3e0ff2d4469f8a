"""Largest errors of published formats, both ways, against real clients.

    python benchmarks/interop.py --clients=.venv-clients/bin/python

For each golden case (tests/golden/interop, files that clients wrote): `read` is
saejax on the client's files against the client; `written` is the client on the
files that saejax writes from them against itself before. Errors are absolute,
over rows whose largest values are in the table too. The formats' definitions
alone stand for clients that PyPI does not have: see tests/interop/formats_test.py.
Results go to benchmarks/results/interop.json and into docs/published-weights.md.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import subprocess
import tempfile
from typing import Any

import numpy as np

from saejax import config, durable
from saejax.interop import conversion, formats
from tests.interop import cases

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "interop.json"
PAGE = ROOT / "docs" / "published-weights.md"
MARKED = re.compile(r"(<!-- errors -->\n).*?(<!-- end -->)", re.DOTALL)
VERSIONS = ("sae-lens", "dictionary-learning", "eai-sparsify", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Settings."""

  clients: str = ".venv-clients/bin/python"  # Python of the clients


def measure(settings: Config) -> list[dict[str, Any]]:
  """A record for each case.

  Args:
    settings: the clients' Python.
  """
  points, jobs, folders = [], [], {}
  with tempfile.TemporaryDirectory() as folder:
    for name in cases.every():
      case = cases.case(name)
      found = case.read()
      sae = found.record.to_sae()
      got = sae.encode(case.x), sae.reconstruct(case.x)
      points.append(
        {
          "case": name,
          "format": found.format,
          "client": case.client,
          "z": float(np.abs(case.z).max()),
          "x_hat": float(np.abs(case.x_hat).max()),
          "read_z": error(got[0], case.z),
          "read_x_hat": error(got[1], case.x_hat),
        }
      )
      place = pathlib.Path(folder, name)
      path = place / (cases.PLACES.get(name, ("", "sae"))[1])
      if not writes(found.format, name):
        continue
      out = path if path.suffix == "" else path.parent / "sae"
      out.parent.mkdir(parents=True, exist_ok=True)
      scale = case.hints.scale
      conversion.convert(str(cases.path(name)), out, found.format, scale=scale)
      np.save(place / "x.npy", case.x)
      inside = place if name in cases.PLACES else out
      folders[name] = place / "got.npz"
      jobs += [case.client, inside, place / "x.npy", folders[name]]
    script = ROOT / "tests" / "clients" / "client.py"
    subprocess.run([settings.clients, script, *map(str, jobs)], check=True)
    for point in points:
      if point["case"] in folders:
        case, got = cases.case(point["case"]), np.load(folders[point["case"]])
        point["written_z"] = error(got["z"], case.z)
        point["written_x_hat"] = error(got["x_hat"], case.x_hat)
  return points


def writes(format: str, name: str) -> bool:
  """Whether a case is written again in its own format, for its client."""
  # A file of Gemma Scope says by its repository alone that it is a transcoder,
  # and SAELens needs more of a file of mwhanna than the weights.
  left_out = name in ("gemma_scope_transcoder", "circuit_tracer")
  return hasattr(formats.get(format), "write") and not left_out


def error(got: Any, want: np.ndarray) -> float:
  """The largest absolute difference."""
  return float(np.abs(np.asarray(got, np.float64) - want).max())


def table(points: list[dict[str, Any]]) -> str:
  """The table of the page."""
  lines = [
    "| case | client | read: z | x_hat | written: z | x_hat |",
    "|---|---|---:|---:|---:|---:|",
  ]
  show = lambda value: "" if value is None else f"{value:.1e}"
  for p in points:
    errors = ("read_z", "read_x_hat", "written_z", "written_x_hat")
    cells = [p["case"], p["client"], *(show(p.get(key)) for key in errors)]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main(settings: Config) -> None:
  """Measures, and writes the results.

  Args:
    settings: the clients' Python.
  """
  points = measure(settings)
  code = (
    "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
  )
  found = subprocess.run(
    [settings.clients, "-c", code, *VERSIONS],
    check=True,
    capture_output=True,
    text=True,
  )
  versions = dict(zip(VERSIONS, found.stdout.split(), strict=True))
  versions["jax"] = importlib.metadata.version("jax")
  text = json.dumps({"versions": versions, "points": points}, indent=1) + "\n"
  durable.write_file(RESULTS, text.encode(), field="clients")
  page = MARKED.sub(lambda m: m[1] + table(points) + m[2], PAGE.read_text())
  durable.write_file(PAGE, page.encode(), field="clients")
  print(table(points))


if __name__ == "__main__":
  config.run(main, Config)
