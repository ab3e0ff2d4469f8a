"""The files in launch/: manifest by its schema, scripts on stand-ins of clusters."""

import configparser
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import yaml
from absl import flags
from absl.testing import absltest, parameterized

from saejax import config, launching
from saejax.studies import train
from tests import clusters, shared

LAUNCH = shared.ROOT / "launch"
SCHEMA = shared.ROOT / "third_party" / "jobset" / "jobset-v1alpha2.json"
SCRIPTS = ("process.sh", "restart.sh", "slurm.sbatch", "tpu_vm.sh")
# How JAX's runtime says which process was lost, and then aborts.
UNHEALTHY = """\
E1201 coordination_service.cc:1549] UNAVAILABLE: The following tasks are unhealthy \
(stopped sending heartbeats):
3
12
The tasks have crashed. Check the task logs for an earlier error, or scheduler events.
99
"""
LEADER = (
  "F1201 client.h:80] UNAVAILABLE: Failed to send RPC to coordination service."
  " Either the leader task was preempted/died/restarted unexpectedly or"
)


# --- the manifest ------------------------------------------------------------


def manifest() -> dict[str, Any]:
  return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def problems(schema: Any, value: Any, at: str = "") -> Iterator[str]:
  """What of a value a Kubernetes schema refuses; unknown fields are refused."""
  if schema.get("x-kubernetes-int-or-string"):
    if not isinstance(value, int | str):
      yield f"{at} must be an integer or a string"
    return
  kinds = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": int | float,
  }
  kind = kinds[schema["type"]]
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    yield f"{at} must be of type {schema['type']}"
    return
  if value not in schema.get("enum", [value]):
    yield f"{at} must be among {schema['enum']}"
  if isinstance(value, int) and value < schema.get("minimum", value):
    yield f"{at} must be at least {schema['minimum']}"
  if isinstance(value, list):
    for i, each in enumerate(value):
      yield from problems(schema["items"], each, f"{at}[{i}]")
  elif isinstance(value, dict):
    known, others = schema.get("properties", {}), None
    if isinstance(schema.get("additionalProperties"), dict):
      others = schema["additionalProperties"]
    for name in schema.get("required", ()):
      if name not in value:
        yield f"{at}.{name} is missing"
    for name, each in value.items():
      if (inner := known.get(name, others)) is not None:
        yield from problems(inner, each, f"{at}.{name}")
      elif known:
        yield f"{at}.{name} is unknown"


class JobSetTest(parameterized.TestCase):
  def test_the_manifest_fits_the_schema(self):
    schema = json.loads(SCHEMA.read_text())
    self.assertEmpty(list(problems(schema, manifest())))
    self.assertEqual(manifest()["apiVersion"], "jobset.x-k8s.io/v1alpha2")
    self.assertEqual(manifest()["kind"], "JobSet")

  @parameterized.parameters(
    ("failurePolicy:", "failurePolicies:", ".spec.failurePolicies is unknown"),
    (
      "maxRestarts: 20",
      "maxRestarts: often",
      "maxRestarts must be of type int",
    ),
    ("FailJobSet", "Fail", "action must be among"),
    (
      "              - action: FailJob\n",
      "              -\n",
      "action is miss",
    ),
    ("name: runs # SET", "title: runs # SET", "volumes.0..title is unknown"),
    (
      "values: [1, 2]",
      "values: [1, two]",
      r"values.1. must be of type integer",
    ),
  )
  def test_a_wrong_manifest_does_not(self, right, wrong, text):
    changed = (LAUNCH / "jobset.yaml").read_text()
    self.assertEqual(changed.count(right), 1)
    changed = yaml.safe_load(changed.replace(right, wrong))
    schema = json.loads(SCHEMA.read_text())
    self.assertRegex("\n".join(problems(schema, changed)), text)

  def test_what_the_schema_cannot_say(self):
    (replicated,) = manifest()["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    # Kubernetes wants this for a policy of exit codes.
    self.assertEqual(pod["restartPolicy"], "Never")
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    self.assertEqual(codes["containerName"], container["name"])
    # Errors and refused settings fail it; lost and stopped processes do not.
    self.assertEqual(codes["values"], [1, 2])
    self.assertNoCommonElements(
      codes["values"], [launching.LOST, launching.STOPPED]
    )
    self.assertEqual(job["backoffLimit"], 0)
    (rule,) = manifest()["spec"]["failurePolicy"]["rules"]
    self.assertEqual(rule["onJobFailureReasons"], ["PodFailurePolicy"])
    # The image's entry point stays.
    self.assertNotIn("command", container)
    (mount,) = container["volumeMounts"]
    self.assertEqual(mount["name"], pod["volumes"][0]["name"])
    self.assertIn(f"WORKDIR {mount['mountPath']}\n", dockerfile())

  def test_its_command_fits_the_slice(self):
    (replicated,) = manifest()["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    program, what, *given = pod["containers"][0]["args"]
    self.assertEqual((program, what), ("saejax", "train"))
    values = flags.FlagValues()
    config.define(train.Stored, values)
    config.parse([program, *given], values)
    settings = config.from_flags(train.Stored, values)
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = 1
    for side in topology.split("x"):
      chips *= int(side)
    limits = pod["containers"][0]["resources"]["limits"]
    self.assertEqual(job["parallelism"] * limits["google.com/tpu"], chips)
    self.assertEqual(job["completions"], job["parallelism"])
    ensemble, data, latent = settings.train.mesh
    self.assertEqual(ensemble * data * latent, chips)


# --- scripts -----------------------------------------------------------------


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    clusters.write(self.folder / "bin")

  def start(self, script: str, *words: str, **more: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.Popen(
      ["bash", str(LAUNCH / script), *words],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      cwd=self.folder,
      start_new_session=True,
      env={
        **kept,
        "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        "RESTART_SECONDS": "0",
        "SAEJAX_LAUNCH": str(LAUNCH),
        "SLURM_JOB_ID": "7",
        **more,
      },
    )

  def run_script(self, *words: str, **more: str) -> tuple[int, str]:
    """The exit code and what was said."""
    with self.start(*words, **more) as started:
      said = started.communicate(timeout=60)[0]
    return started.returncode, said

  @parameterized.parameters(*SCRIPTS)
  def test_they_are_correct_bash(self, script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shellcheck := shutil.which("shellcheck"):
      subprocess.run([shellcheck, "-s", "bash", LAUNCH / script], check=True)

  @parameterized.parameters(
    ("exit 0", 0, "exit code 0"),
    ("exit 2", 2, "exit code 2"),
    ("exit 75", 75, "exit code 75"),
    ("exit 143", 143, "exit code 143"),
    ("kill -ABRT $$", 75, "exit code 75, for 134"),
    ("kill -KILL $$", 75, "exit code 75, for 137"),
  )
  def test_a_process_returns_what_a_scheduler_understands(
    self, command, wanted, text
  ):
    code, said = self.run_script(
      "process.sh", "logs", "bash", "-c", f"echo said; {command}"
    )
    self.assertEqual(code, wanted, said)
    (log,) = (self.folder / "logs").glob("*.log")
    for found in (said, log.read_text()):
      self.assertStartsWith(found, "said\n")
      self.assertRegex(found, f"\nprocess on .*: {text}\n$")

  @parameterized.parameters((UNHEALTHY, "3,12"), (LEADER, "0"))
  def test_a_process_says_which_other_was_lost(self, text, lost):
    command = 'echo "$SAID" >&2; kill -ABRT $$'
    words = ("process.sh", "logs", "bash", "-c", command)
    code, said = self.run_script(*words, SAID=text, SLURM_PROCID="1")
    self.assertEqual(code, 75)
    self.assertRegex(said, f"process 1 on .*: lost process {lost}\n")
    # What the log had before is of another attempt.
    _, said = self.run_script(*words, SAID="other", SLURM_PROCID="1")
    self.assertNotIn("lost process", said)

  def test_a_process_says_that_not_all_came(self):
    text = "RPC: /xla.coordination.CoordinationService/RegisterTask"
    command = f"echo {text}; kill -ABRT $$"
    code, said = self.run_script("process.sh", "logs", "bash", "-c", command)
    self.assertEqual(code, 75)
    self.assertIn(": not all processes came; start each of them once", said)

  def test_a_signal_is_left_to_the_process(self):
    command = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    with self.start("process.sh", "logs", "bash", "-c", command) as started:
      self.assertEqual(started.stdout.readline(), "ready\n")
      # Nobody else writes its log meanwhile.
      code, said = self.run_script("process.sh", "logs", "bash", "-c", "exit 0")
      self.assertEqual(code, 2)
      self.assertIn("exit code 2, since another process writes", said)
      os.killpg(started.pid, signal.SIGTERM)
      said = started.communicate(timeout=60)[0]
    self.assertEqual(started.returncode, 143)
    self.assertRegex(said, "saved\nprocess on .*: exit code 143\n$")

  @parameterized.parameters(
    # Codes of the processes 0 and 1 in each attempt.
    (("75 137", "0 0"), 0, 2),  # lost, started again
    (("1 75",), 1, 1),  # an error, which the other noticed
    (("2 2",), 2, 1),  # refused
    (("143 143",), 143, 1),  # stopped by a signal
    (("75 75", "75 75", "75 75"), 75, 3),  # RESTARTS is 2
  )
  def test_slurm_starts_again_where_a_process_was_lost(
    self, codes, wanted, attempts
  ):
    every = " ".join(codes)
    command = (
      f"codes=({every}); exit ${{codes[2 * (ATTEMPT - 1) + SLURM_PROCID]}}"
    )
    code, said = self.run_script(
      "slurm.sbatch", "bash", "-c", command, RESTARTS="2"
    )
    self.assertEqual(code, wanted, said)
    self.assertEqual((self.folder / "attempt").read_text(), f"{attempts}\n")
    self.assertLen(list((self.folder / "logs" / "7").glob("*-[01].log")), 2)
    # Only what was stopped before its time is over is queued again.
    queued = (self.folder / "scontrol.txt").exists()
    self.assertEqual(queued, wanted == 143)

  def test_a_cancelled_job_is_not_queued_again(self):
    command = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    with self.start("slurm.sbatch", "bash", "-c", command) as started:
      for _ in range(2):
        self.assertEqual(started.stdout.readline(), "ready\n")
      os.killpg(started.pid, signal.SIGTERM)
      said = started.communicate(timeout=60)[0]
    self.assertEqual(started.returncode, 143, said)
    self.assertFalse((self.folder / "scontrol.txt").exists())

  def test_hosts_of_a_slice_get_one_command(self):
    command = """
      echo "$0 of $TPU_WORKER_ID"
      codes=(75 134 0 0); exit ${codes[2 * (ATTEMPT - 1) + TPU_WORKER_ID]}"""
    words = ("tpu_vm.sh", "first", "zone-a", "bash", "-c", command, "it's one")
    code, said = self.run_script(*words)
    self.assertEqual(code, 0, said)
    self.assertIn("it's one of 0\n", said)
    self.assertNotIn("it's one of 1\n", said)
    for host in range(2):
      here = (self.folder / "logs" / "first" / f"{host}.log").read_text()
      self.assertRegex(here, f"^it's one of {host}\nprocess {host} on .*: exit")
      (there,) = (self.folder / f"host-{host}" / "saejax-logs").glob("*.log")
      self.assertEqual(there.read_text().count(f"it's one of {host}"), 2)
    calls = (self.folder / "gcloud.txt").read_text().splitlines()
    where = r"first:? --zone=zone-a --worker=all"
    self.assertLen([call for call in calls if re.search(where, call)], 3)

  def test_a_command_that_starts_no_process_is_not_repeated(self):
    code, _ = self.run_script("restart.sh", "logs", "bash", "-c", "exit 255")
    self.assertEqual(code, 255)


# --- the image ---------------------------------------------------------------


def dockerfile() -> str:
  return (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")


class DockerfileTest(absltest.TestCase):
  """Docker is not run: what the file names is compared with the checkout."""

  def test_what_is_copied_exists_and_is_not_ignored(self):
    ignore = (LAUNCH / "Dockerfile.dockerignore").read_text().split("\n")
    copied = [
      source
      for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(), re.M)
      for source in line.split()[:-1]
    ]
    self.assertContainsSubset(["setup.py", "saejax", "kernels"], copied)
    for source in copied:
      self.assertTrue((shared.ROOT / source).exists(), source)
      self.assertIn(f"!{source}", ignore)
    # What the package's metadata are read from.
    setup = (shared.ROOT / "setup.py").read_text()
    for name in re.findall(r'ROOT / "([^"]+)"', setup):
      self.assertIn(name, copied)
    parser = configparser.ConfigParser()
    parser.read(shared.ROOT / "setup.cfg")
    self.assertIn(parser["metadata"]["license_files"], copied)

  def test_it_installs_extras_of_setup_cfg_and_pins_nothing(self):
    parser = configparser.ConfigParser()
    parser.read(shared.ROOT / "setup.cfg")
    extras = parser["options.extras_require"]
    chosen = dict(re.findall(r"(\w+)\) extras=(\S+) ;;", dockerfile()))
    self.assertEqual(list(chosen), ["cpu", "gpu", "tpu"])
    for names in chosen.values():
      self.assertContainsSubset(names.split(","), extras)
    self.assertEndsWith(chosen["gpu"], ",cuda")
    self.assertEndsWith(chosen["tpu"], ",tpu")
    self.assertNotRegex(dockerfile(), r"[=<>~]=|@\d|==")
    (python,) = re.findall(r"^ARG PYTHON=3\.(\d+)$", dockerfile(), re.M)
    least = parser["options"]["python_requires"].removeprefix(">=3.")
    self.assertGreaterEqual(int(python), int(least))

  def test_its_entry_point_is_there(self):
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile(), re.M)
    first, *_, script, logs = json.loads(line)
    self.assertIn(f"COPY launch/process.sh {script}\n", dockerfile())
    self.assertEqual((first, logs), ("tini", "logs"))
    self.assertRegex(dockerfile(), r"apt-get install -y .* tini\b")


if __name__ == "__main__":
  absltest.main()
