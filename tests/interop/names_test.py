"""Names of published SAEs, with a hub that is a cache on the disk."""

import importlib.machinery
import json
import os
import pathlib
import shutil
import sys
import types
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import saejax
from saejax.errors import InputError
from saejax.interop import conversion, hub, names, publish
from saejax.sae import activations
from tests import toy
from tests.interop import cases

REPO, SHA = "google/gemma-scope-2b-pt-res", "0" * 40
REGISTRY = """
gemma-scope-2b-pt-res:
  conversion_func: gemma_2
  repo_id: google/gemma-scope-2b-pt-res
  model: gemma-2-2b
  saes:
  - id: layer_3/width_16k/average_l0_59
    path: layer_3/width_16k/average_l0_59
gpt2-old:
  conversion_func: null
  config_overrides: {model_name: gpt2, dataset_path: mine}
  repo_id: someone/gpt2
  saes:
  - id: blocks.3.hook_resid_post
    path: old
    norm_scaling_factor: 1.7
temporal-sae:
  conversion_func: temporal
  repo_id: canrager/temporalSAEs
  saes:
  - {id: a, path: a}
"""


class Names(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    from huggingface_hub import constants

    cache = str(self.folder / "hub")
    self.enter_context(mock.patch.object(constants, "HF_HUB_CACHE", cache))
    self.enter_context(mock.patch.object(constants, "HF_HUB_OFFLINE", True))

  def cached(self, repo: str, case: str, path: str = "") -> None:
    """Puts a case into the cache as a repository."""
    root = self.folder / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(SHA)
    place = root / "snapshots" / SHA / path
    shutil.copytree(cases.FOLDER / case, place)

  def assert_is(self, sae, case: str) -> None:
    found = cases.case(case)
    got = sae.encode(found.x), sae.reconstruct(found.x)
    cases.assert_same(self, (found.z, found.x_hat), got)


class HubTest(Names):
  def test_a_folder_of_a_repository(self):
    self.cached(REPO, "gemma_scope")
    name = f"hf:{REPO}/layer_3/width_16k/average_l0_59"
    self.assert_is(saejax.load(name), "gemma_scope")
    site = names.read(name).record.site
    self.assertEqual(site.model, "google/gemma-2-2b")
    self.assertEqual(site.hook, "blocks.3.hook_resid_post")

  def test_a_file_of_a_repository(self):
    repo = "mwhanna/qwen3-4b-transcoders"
    self.cached(repo, "circuit_tracer")
    name = f"hf:{repo}/layer_3.safetensors"
    self.assert_is(saejax.load(name), "circuit_tracer")
    self.assertEqual(names.read(name).record.site.model, "toy")

  def test_our_own_folder(self):
    # In training form: there is no record of it.
    sae = toy.sae(activation=activations.BatchTopK(4))
    self.cached("me/mine", "saelens_topk")
    saejax.save(sae, next((self.folder / "hub").rglob(SHA)) / "sae")
    got = saejax.load("hf:me/mine/sae")
    np.testing.assert_array_equal(got.W_enc, sae.W_enc)
    self.assertEqual(got.activation, sae.activation)

  def test_offline_says_what_to_do(self):
    with self.assertRaises(InputError) as caught:
      saejax.load("hf:me/none/layer_3")
    message = str(caught.exception)
    self.assertNotIn("\n", message)
    for part in (
      "input=hf:me/none/layer_3: could not be downloaded",
      "go online",
      "hf download me/none --include 'layer_3*' --local-dir DIR",
    ):
      self.assertIn(part, message)

  def test_a_path_that_the_repository_has_not(self):
    self.cached(REPO, "gemma_scope")
    with self.assertRaisesRegex(InputError, "must be in the repository"):
      saejax.load(f"hf:{REPO}/layer_4")

  @parameterized.parameters("hf:", "hf:alone", "hf:a/b/../../c", "hf:a b/c")
  def test_no_name_of_a_repository(self, name):
    with self.assertRaisesRegex(InputError, "must be hf:ORG/REPO"):
      saejax.load(name)

  def test_a_revision(self):
    self.assertEqual(hub.split("a/b@v1.2/c/d"), ("a/b", "v1.2", "c/d"))
    self.assertEqual(hub.split("a/b"), ("a/b", None, ""))

  def test_without_huggingface_hub(self):
    with (
      mock.patch.dict(sys.modules, {"huggingface_hub": None}),
      self.assertRaisesRegex(InputError, "pip install 'saejax"),
    ):
      saejax.load("hf:a/b")


class RegistryTest(Names):
  def setUp(self):
    super().setUp()
    package = self.folder / "sae_lens"
    package.mkdir()
    (package / "pretrained_saes.yaml").write_text(REGISTRY)
    (package / "__init__.py").write_text("raise SystemError('was imported')")
    spec = importlib.machinery.ModuleSpec("sae_lens", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    find = lambda name, *rest: spec if name == "sae_lens" else None
    self.enter_context(
      mock.patch.object(names.importlib.util, "find_spec", find)
    )
    names._registry.cache_clear()
    self.addCleanup(names._registry.cache_clear)

  def test_release_and_id(self):
    self.cached(REPO, "gemma_scope")
    sae_id = "layer_3/width_16k/average_l0_59"
    name = f"sae-lens:gemma-scope-2b-pt-res/{sae_id}"
    self.assert_is(saejax.load(name), "gemma_scope")
    sae = saejax.SAE.from_pretrained("gemma-scope-2b-pt-res", sae_id)
    self.assert_is(sae, "gemma_scope")

  def test_the_registry_gives_the_factor_and_the_site(self):
    self.cached("someone/gpt2", "saelens_batchtopk_scaled", "old")
    name = "sae-lens:gpt2-old/blocks.3.hook_resid_post"
    found = names.read(name)
    self.assertEqual(found.hints.scale, 1.7)
    self.assertEqual(found.record.site.model, "gpt2")
    self.assertEqual(found.record.site.dataset, "mine")
    self.assert_is(saejax.load(name), "saelens_batchtopk_scaled")

  @parameterized.parameters(
    ("sae-lens:gemma-scope-9b/x", "must be a release", "gemma-scope-2b"),
    ("sae-lens:gpt2-old/x", "must be an id of", "blocks.3.hook_resid_post"),
    ("sae-lens:temporal-sae/a", "loader temporal", "saejax has no form"),
  )
  def test_refused(self, name, *parts):
    with self.assertRaises(InputError) as caught:
      saejax.load(name)
    for part in parts:
      self.assertIn(part, str(caught.exception))

  def test_not_installed(self):
    with (
      mock.patch.object(names.importlib.util, "find_spec", lambda name: None),
      self.assertRaisesRegex(InputError, "pip install --no-deps sae-lens"),
    ):
      saejax.load("sae-lens:a/b")


class PathTest(Names):
  @parameterized.parameters("saelens_topk", "sparsify_topk", "gemma_scope")
  def test_a_path(self, name):
    for load in (saejax.load, saejax.SAE.from_pretrained):
      self.assert_is(load(str(cases.path(name))), name)
    self.assert_is(saejax.load(os.fspath(cases.path(name))), name)

  def test_our_own_comes_first(self):
    sae = toy.sae()
    shutil.copytree(cases.path("saelens_topk"), self.folder / "both")
    shutil.rmtree(self.folder / "both")
    saejax.save(sae, self.folder / "both")
    for file in cases.path("saelens_topk").iterdir():
      shutil.copy(file, self.folder / "both")
    self.assertEqual(saejax.load(self.folder / "both").n, 24)
    self.assertEqual(saejax.load(self.folder / "both", format="saelens").n, 16)


class PushTest(Names):
  def setUp(self):
    super().setUp()
    self.calls = []
    note = lambda name: lambda *a, **k: self.calls.append((name, a, k))
    api = types.SimpleNamespace(
      create_repo=note("create"),
      upload_folder=note("folder"),
      upload_file=note("file"),
    )
    fake = types.SimpleNamespace(HfApi=lambda: api)
    modules = {"huggingface_hub": fake}
    self.enter_context(mock.patch.dict(sys.modules, modules))
    self.api = api

  def test_a_conversion_with_its_card(self):
    out = self.folder / "out"
    conversion.convert(str(cases.path("saelens_topk")), out, "saelens")
    address = saejax.push_to_hub(out, "me/saes/layer_3")
    self.assertEqual(
      address, "https://huggingface.co/me/saes/tree/main/layer_3"
    )
    create, folder, file = self.calls
    self.assertEqual(
      create[1:], (("me/saes",), {"private": False, "exist_ok": True})
    )
    self.assertEqual(folder[2]["path_in_repo"], "layer_3")
    self.assertEqual(file[2]["path_in_repo"], "layer_3/README.md")
    card = file[2]["path_or_fileobj"].decode()
    for part in (
      "library_name: saejax",
      "| widths | 8 -> 16 -> 8 |",
      "| activation | TopK |",
      "| hook | blocks.3.hook_resid_post |",
      'saejax.load("hf:me/saes/layer_3")',
      '"x_hat_error"',
    ):
      self.assertIn(part, card)

  def test_an_sae_of_a_run_with_its_metrics(self):
    saejax.save(toy.sae(), self.folder / "sae", about={"nmse": 0.123, "k": 4})
    publish.push_to_hub(self.folder / "sae", "hf:me/saes")
    card = self.calls[2][2]["path_or_fileobj"].decode()
    self.assertIn("| nmse | 0.123 |", card)
    self.assertEqual(self.calls[1][2]["path_in_repo"], None)

  def test_what_cannot_be_read_is_not_uploaded(self):
    (self.folder / "empty").mkdir()
    with self.assertRaises(InputError):
      publish.push_to_hub(self.folder / "empty", "me/saes")
    self.assertEmpty(self.calls)

  def test_a_failed_upload_says_what_to_do(self):
    saejax.save(toy.sae(), self.folder / "sae")

    def fail(*_, **__):
      raise ConnectionError("offline\nnow")

    self.api.upload_folder = fail
    with self.assertRaisesRegex(
      InputError, "push=me/saes: .*offline now.*log in"
    ):
      publish.push_to_hub(self.folder / "sae", "me/saes")


class AboutTest(Names):
  def test_a_conversion_to_saejax_keeps_the_source(self):
    out = self.folder / "out"
    conversion.convert(str(cases.path("saelens_topk")), out, "saejax")
    about = saejax.about(out)["interop"]
    self.assertEqual(about["source"]["format"], "saelens")
    self.assertEqual(about["site"]["hook"], "blocks.3.hook_resid_post")
    self.assertEqual(names.read(out).record.site.model, "toy")
    json.dumps(about)


if __name__ == "__main__":
  absltest.main()
