"""Two processes load halves of a model, and neither holds more than its half."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

from absl.testing import absltest

from tests import shared
from tests.models import drawn

SIZES = {
  "vocab_size": 4096,
  "hidden_size": 1024,
  "num_hidden_layers": 4,
  "num_attention_heads": 16,
  "num_key_value_heads": 8,
  "intermediate_size": 4096,
}
CODE = """
import json, sys, threading, time
import jax
index, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)
import numpy as np
from saejax.models import mesh, model
from jax.sharding import AxisType

where = jax.make_mesh((1, 2), mesh.AXES, axis_types=(AxisType.Auto,) * 2)

def anonymous():  # bytes; pages of the files are not among them
  lines = open("/proc/self/status").read().splitlines()
  return 1024 * next(int(l.split()[1]) for l in lines if "RssAnon" in l)

jax.block_until_ready(jax.device_put(np.ones(8)))
before = most = anonymous()
done = False

def watch():
  global most
  while not done:
    most = max(most, anonymous())
    time.sleep(0.001)

thread = threading.Thread(target=watch)
thread.start()
loaded = model.load(path, mesh=where)
done = True
thread.join()
leaves = jax.tree.leaves(loaded.params)
parts = [x.addressable_shards[0].data for x in leaves]
print(json.dumps({
  "most": most - before,
  "held": sum(x.nbytes for x in parts),
  "largest": max(x.nbytes for x in parts),
  "whole": sum(x.nbytes for x in leaves),
  "sum": float(sum(np.asarray(x, np.float64).sum() for x in parts)),
}))
"""


class MemoryTest(absltest.TestCase):
  def test_a_process_holds_its_part_and_little_more(self):
    path = pathlib.Path(self.create_tempdir().full_path)
    drawn.folder(path, drawn.settings("llama") | SIZES, files=2)
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      port = probe.getsockname()[1]
    started = [
      subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CODE), str(i), str(port), path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=shared.ROOT,
        env={
          **os.environ,
          "JAX_PLATFORMS": "cpu",
          "XLA_FLAGS": "",
          "MALLOC_TRIM_THRESHOLD_": "65536",  # freed memory is given back
          "MALLOC_MMAP_THRESHOLD_": "65536",
          "MALLOC_TOP_PAD_": "0",
        },
      )
      for i in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    found = []
    for process, (out, err) in zip(started, ended, strict=True):
      self.assertEqual(process.returncode, 0, err)
      found.append(json.loads(out.splitlines()[-1]))
    for one in found:
      # Norms and biases of outputs are on both.
      self.assertLess(one["held"], 0.51 * one["whole"])
      # The part that is read, until the devices have it.
      self.assertLess(one["most"], one["held"] + 1.5 * one["largest"])
      self.assertLess(one["most"], 0.8 * one["whole"])


if __name__ == "__main__":
  absltest.main()
