"""Makes tests/golden/core_saebench.json: SAEBench's numbers of small SAEs.

Needs the environment of `make clients`, and the shared model:
  python -m tests.clients.make_core_golden [--write]

Exports the SAEs of tests/evals/core_cases.py to SAELens, runs SAEBench on them
in the clients' environment, and prints for each metric what saejax differs by.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import saejax
from saejax.interop import conversion
from tests import shared
from tests.clients import clients_test
from tests.evals import core_cases, core_compat_test


def saebench(folder: pathlib.Path) -> dict[str, Any]:
  """SAEBench's results, see core_client.py."""
  exported = {}
  for name, sae in core_cases.saes().items():
    saejax.save(sae, folder / f"{name}-saejax")
    out = folder / f"{name}-saelens"
    conversion.convert(str(folder / f"{name}-saejax"), out, "saelens")
    exported[name] = str(out)
  job = {
    "model": str(shared.path(core_cases.MODEL)),
    "saes": exported,
    "hook": core_cases.HOOK,
    "documents": core_cases.DOCUMENTS,
    "context": core_cases.CONTEXT,
    "prompts": core_cases.PROMPTS,
    "reconstruction": core_cases.RECONSTRUCTION,
    "variance": core_cases.VARIANCE,
  }
  (folder / "job.json").write_text(json.dumps(job))
  script = pathlib.Path(__file__).parent / "core_client.py"
  subprocess.run(
    [clients_test.python(), script, folder / "job.json", folder / "out.json"],
    check=True,
  )
  return json.loads((folder / "out.json").read_text())


def shown(name: str, found: dict[str, Any], golden: dict[str, Any]) -> None:
  """Prints the metrics of both, and the largest differences of details."""
  reference = core_compat_test.computed(name, golden)
  for category, values in found["metrics"].items():
    for key, value in values.items():
      ours = reference.metrics[category][key]
      print(f"{name:9} {key:36} {value:14.7g} {ours:14.7g} {ours - value:9.1e}")
  for key in found["details"][0]:
    worst = max(
      abs(one[key] - other[key])
      for one, other in zip(reference.details, found["details"], strict=True)
    )
    print(f"{name:9} {'each ' + key:36} {'':29} {worst:9.1e}")


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    golden = saebench(pathlib.Path(folder))
  for name, found in golden["saes"].items():
    shown(name, found, golden)
  if "--write" in sys.argv[1:]:
    content = json.dumps(
      core_compat_test.rounded(golden), separators=(",", ":")
    )
    core_cases.GOLDEN.write_text(content + "\n")


if __name__ == "__main__":
  main()
