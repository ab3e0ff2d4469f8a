"""Bad files are refused by name, and nothing in them runs."""

import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from safetensors import numpy as safetensors

import saejax
from saejax.errors import InputError
from saejax.interop import torch_writer
from saejax.models import torch_file
from tests.interop import cases

LENS = "saelens_jumprelu"
WEIGHTS = "sae_weights.safetensors"


class Bad(parameterized.TestCase):
  """A copy of a golden case that is damaged."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path) / "copy"

  def copy(self, name: str) -> pathlib.Path:
    shutil.copytree(cases.path(name), self.folder)
    return self.folder

  def arrays(self, name: str = WEIGHTS) -> dict[str, np.ndarray]:
    return dict(safetensors.load_file(self.folder / name))

  def save(self, arrays, name: str = WEIGHTS) -> None:
    arrays = {k: np.asarray(v, order="C") for k, v in arrays.items()}
    safetensors.save_file(arrays, self.folder / name)

  def assert_refused(self, *parts: str, path=None, **settings) -> None:
    with self.assertRaises(InputError) as caught:
      saejax.load(path or self.folder, **settings)
    message = str(caught.exception)
    self.assertNotIn("\n", message)
    for part in parts:
      self.assertIn(part, message)


class SafetensorsTest(Bad):
  def test_truncated(self):
    path = self.copy(LENS) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-5])
    self.assert_refused(WEIGHTS, "ends at byte")

  def test_header_longer_than_the_file(self):
    path = self.copy(LENS) / WEIGHTS
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    self.assert_refused(WEIGHTS, "header ends at byte")

  def test_declared_size_that_contradicts_the_shape(self):
    path = self.copy(LENS) / WEIGHTS
    entry = {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}
    header = json.dumps({"W_enc": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    self.assert_refused(WEIGHTS, "the size of 'W_enc' contradicts its shape")

  @parameterized.parameters(np.int32, np.int64)
  def test_integers_for_weights(self, dtype):
    self.copy(LENS)
    self.save({k: v.astype(dtype) for k, v in self.arrays().items()})
    self.assert_refused("must hold floats", np.dtype(dtype).name)

  def test_transposed(self):
    self.copy(LENS)
    arrays = self.arrays()
    self.save({**arrays, "W_dec": arrays["W_dec"].T})
    self.assert_refused("'W_dec' must be [n, o] = [16, 8]", "transposed")

  def test_missing_key(self):
    self.copy(LENS)
    arrays = self.arrays()
    del arrays["b_enc"]
    self.save(arrays)
    self.assert_refused("must have the tensor 'b_enc'", "W_dec")

  def test_config_that_contradicts_shapes(self):
    path = self.copy(LENS) / "cfg.json"
    path.write_text(path.read_text().replace('"d_sae": 16', '"d_sae": 17'))
    self.assert_refused("= [17] (n by cfg.json)", "is [16]")

  @parameterized.parameters(np.nan, np.inf)
  def test_not_finite(self, value):
    self.copy(LENS)
    arrays = self.arrays()
    arrays["W_enc"][2, 3] = value
    self.save(arrays)
    self.assert_refused("'W_enc' must be finite; [2, 3]")

  def test_float64_beyond_float32(self):
    self.copy(LENS)
    arrays = self.arrays()
    self.save({**arrays, "b_dec": np.full((8,), 1e300)})
    self.assert_refused("'b_dec' must be finite")

  def test_missing_threshold(self):
    self.copy(LENS)
    arrays = self.arrays()
    del arrays["threshold"]
    self.save(arrays)
    self.assert_refused("must have the tensor 'threshold'")

  def test_bfloat16_is_read_with_thresholds_in_float32(self):
    self.copy(LENS)
    arrays = self.arrays()
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in arrays.items()}
    half["threshold"] = arrays["threshold"]
    self.save(half)
    sae = saejax.load(self.folder)
    np.testing.assert_array_equal(sae.activation.theta, arrays["threshold"])
    np.testing.assert_array_equal(sae.b_enc, half["b_enc"].astype(np.float32))


class ConfigTest(Bad):
  @parameterized.parameters(
    ("architecture", "temporal", "is a temporal SAE"),
    ("architecture", "nonsense", "architecture must be one of"),
    ("architecture", 3, "architecture must be one of"),
    ("normalize_activations", "rms", "normalize_activations must be one of"),
    ("d_in", None, "d_in must be a positive integer"),
    ("d_in", "8", "d_in must be a positive integer"),
    ("metadata", 5, "must be complete files of the format saelens"),
  )
  def test_setting(self, key, value, part):
    path = self.copy(LENS) / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    self.assert_refused(part)

  @parameterized.parameters(0, 17, 2.5, None, "3")
  def test_k(self, k):
    path = self.copy("saelens_topk") / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "k": k}))
    self.assert_refused("k must be in [1, d_sae=16]")

  @parameterized.parameters(b"", b"{", b"[1]", b"[" * 100_000, b"\xff")
  def test_no_json(self, content):
    (self.copy(LENS) / "cfg.json").write_bytes(content)
    self.assert_refused("cfg.json")

  def test_transcoder_that_subtracts_b_dec(self):
    path = self.copy("saelens_transcoder") / "cfg.json"
    text = path.read_text()
    self.assertIn('"apply_b_dec_to_input": false', text)
    path.write_text(text.replace('_input": false', '_input": true'))
    self.assert_refused("must be false for a transcoder")

  def test_old_activation_that_saelens_reads_as_relu(self):
    path = self.copy("saelens_old") / "cfg.json"
    old = json.loads(path.read_text()) | {"activation_fn_str": "tanh-relu"}
    path.write_text(json.dumps(old))
    self.assert_refused("activation_fn must be relu or topk", "tanh-relu")


class NpzTest(Bad):
  def setUp(self):
    super().setUp()
    self.path = self.copy("gemma_scope") / "params.npz"
    self.arrays_ = dict(np.load(self.path))

  def test_truncated(self):
    self.path.write_bytes(self.path.read_bytes()[:-200])
    self.assert_refused("params.npz", "must be a complete .npz")

  def test_damaged(self):
    content = bytearray(self.path.read_bytes())
    content[300] ^= 1
    self.path.write_bytes(content)
    self.assert_refused("params.npz")

  def test_zip_bomb(self):
    np.savez_compressed(
      self.path, **(self.arrays_ | {"W_enc": np.zeros((4096, 4096))})
    )
    self.assertLess(self.path.stat().st_size, 200_000)
    self.assert_refused("must unpack to at most 64 times itself")

  def test_array_that_declares_more_than_it_has(self):
    with zipfile.ZipFile(self.path, "w") as archive:
      header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 40,), }"
      header = header.replace("1 << 40", str(1 << 40))
      header += " " * (117 - len(header)) + "\n"
      magic = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
      archive.writestr("W_enc.npy", magic + header.encode())
    self.assert_refused("its size contradicts its header")

  def test_pickled_objects_are_not_run(self):
    marker = self.folder / "ran"
    objects = np.array([_Runs(marker)], object)
    np.savez(self.path, **(self.arrays_ | {"W_enc": objects}))
    self.assert_refused("Python objects, which are pickles")
    self.assertFalse(marker.exists())

  def test_compressed_arrays_are_read(self):
    want = saejax.load(self.folder).W_enc
    np.savez_compressed(self.path, **self.arrays_)
    np.testing.assert_array_equal(saejax.load(self.folder).W_enc, want)


class TorchTest(Bad):
  def test_pickle_that_calls_code(self):
    path = self.copy("dictionary_learning_AutoEncoder") / "ae.pt"
    marker = self.folder / "ran"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", pickle.dumps(_Runs(marker), 2))
    self.assert_refused("ae.pt", "system")
    self.assertFalse(marker.exists())

  def test_truncated(self):
    path = self.copy("dictionary_learning_AutoEncoder") / "ae.pt"
    path.write_bytes(path.read_bytes()[:-64])
    self.assert_refused("ae.pt", "zip archive")

  def test_not_a_dict(self):
    path = self.copy("dictionary_learning_AutoEncoder") / "ae.pt"
    path.write_bytes(pickle.dumps([1], 2))
    self.assert_refused("ae.pt")

  def test_written_files_are_read(self):
    values = {
      "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
      "empty": np.zeros((0, 3), np.float32),
      "k": np.asarray(3, np.int32),
      "long": np.asarray([1 << 40], np.int64),
      "activation": "TopK",
      "state": {"k": 1 << 33, "f": "x"},
    }
    path = pathlib.Path(self.create_tempdir().full_path) / "a.pt"
    torch_writer.write(path, values)
    found = torch_file.read(path)
    self.assertEqual(list(found), list(values))
    self.assertEqual(found["state"], values["state"])
    for key in ("a.weight", "empty", "k", "long"):
      np.testing.assert_array_equal(found[key], values[key])
      self.assertEqual(found[key].dtype, values[key].dtype)


class _Runs:
  """An object whose pickle makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"mkdir {self.path}",)


class DetectionTest(Bad):
  def test_nothing_there(self):
    self.folder.mkdir()
    (self.folder / "notes.txt").write_text("x")
    self.assert_refused("must be the files of one SAE", "there is notes.txt")

  def test_no_such_path(self):
    self.assert_refused("must be the folder of a saved SAE", path="/no/such")

  def test_two_formats(self):
    self.copy(LENS)
    shutil.copy(cases.path("gemma_scope") / "params.npz", self.folder)
    self.assert_refused("could be saelens or gemma_scope", "format=")
    sae = saejax.load(self.folder, format="gemma_scope")
    self.assertEqual(sae.n, 16)

  def test_unknown_format(self):
    self.copy(LENS)
    self.assert_refused("format=nonsense: must be one of", format="nonsense")

  def test_wrong_format(self):
    self.copy(LENS)
    self.assert_refused("must have one .pt file", format="openai")

  @parameterized.parameters(
    ("conf.yaml", "latest_ckpt.safetensors", "is a temporal SAE"),
    (
      "W_enc_0.safetensors",
      "W_dec_0.safetensors",
      "is a cross-layer transcoder",
    ),
    ("config.json", "model.safetensors", "is a crosscoder"),
  )
  def test_known_and_refused(self, first, second, part):
    self.folder.mkdir()
    arrays = {"encoder.weight": np.zeros((2, 3, 4), np.float32)}
    arrays["decoder.bias"] = np.zeros((2, 3), np.float32)
    for name in (first, second):
      if name.endswith("safetensors"):
        self.save(arrays, name)
      else:
        (self.folder / name).write_text("{}")
    self.assert_refused(part)

  def test_saex(self):
    self.copy(LENS)
    self.save({**self.arrays(), "s_gate": np.zeros((16,), np.float32)})
    self.assert_refused("is a file of saex")


if __name__ == "__main__":
  absltest.main()
