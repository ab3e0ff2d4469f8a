"""Requests over stdin and answers over stdout, one line of JSON each.

`step.py` starts a process per contender, so that none shares memory, threads or
a library with another:

  {"do": "build", "name": .., "method": "topk",
   "sizes": {"B": .., "d": .., "n": .., "k": ..}, "dtype": "float32", "seed": 0,
   "steps": 100, "threads": 2, "device": "cpu"}   -> {"versions": {..}}
  {"do": "run", "steps": 3}   -> {"ms": .., "processor_ms": .., "peak_bytes": ..}
  {"do": "quit"}

An error is answered as {"error": ..}.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

Step = Callable[[], Any]  # takes one step and waits for it


def serve(build: Callable[..., tuple[Step, dict[str, str]]]) -> None:
  """Answers requests until told to quit.

  Args:
    build: from the fields of a request to a step and the versions in use.
  """
  # What libraries print must not get between our lines.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  step: Step | None = None
  for line in sys.stdin:
    request = json.loads(line)
    answer: dict[str, Any]
    try:
      match request.pop("do"):
        case "quit":
          break
        case "build":
          step, versions = build(**request)
          answer = {"versions": versions}
        case _:
          assert step is not None
          answer = _run(step, request["steps"])
    except Exception as e:
      answer = {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
    print(json.dumps(answer), file=answers, flush=True)


def _run(step: Step, steps: int) -> dict[str, Any]:
  start, spent = time.perf_counter(), time.process_time()
  for _ in range(steps):
    step()
  taken = time.perf_counter() - start
  scale = 1 if sys.platform == "darwin" else 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
  return {
    "ms": 1e3 * taken / steps,
    "processor_ms": 1e3 * (time.process_time() - spent),
    "peak_bytes": peak,
  }
