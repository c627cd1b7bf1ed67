"""Where models come from, and what is never loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from kvnet.codec.pack import pack
from kvnet.errors import ConfigError, UnknownModel, UnsupportedModel
from kvnet.model import checkpoint as checkpoint_module
from kvnet.model import random_weights
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec, load
from kvnet.model.random_weights import geometry_names, materialise
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.model.sampling import Sampling
from kvnet.types import DType

Checkpoint = Callable[..., Path]
REVISION = "0" * 40


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local hub cache and no network."""
    hub = tmp_path / "hub"
    hub.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return hub


@pytest.fixture
def small_geometry(tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`random:small`, a geometry that takes no time; returns a folder with a tokenizer."""
    folder = checkpoint("with-tokenizer")
    geometries = tmp_path / "geometries"
    geometries.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (geometries / "small.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    monkeypatch.setattr(random_weights, "_GEOMETRIES", geometries)
    return folder


def load_cpu(model: Any, cache_dir: Path, **choices: Any) -> Any:
    return load(ModelSpec(str(model), **{"device": "cpu", **choices}), cache_dir=cache_dir)


def test_folder_is_loaded_and_called_by_its_name(checkpoint: Checkpoint, cache_dir: Path) -> None:
    loaded = load_cpu(checkpoint("harbour"), cache_dir)
    assert loaded.name == "harbour"
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training


def test_reference_model_is_found_by_name(
    checkpoint: Checkpoint, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint()
    monkeypatch.setattr(checkpoint_module, "reference_path", {"ref-a": folder}.get)
    loaded = load_cpu("ref-a", cache_dir)
    assert (loaded.name, loaded.folder) == ("ref-a", folder)


def test_hub_id_is_found_in_the_local_cache(
    checkpoint: Checkpoint, cache_dir: Path, offline_hub: Path
) -> None:
    repo = offline_hub / "models--lab--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(REVISION)
    shutil.copytree(checkpoint(), repo / "snapshots" / REVISION)
    assert load_cpu("lab/tiny", cache_dir).name == "lab/tiny"


@pytest.mark.parametrize("model", ["lab/absent", "absent", "./no/such/folder", "a/b/c", "../up", "", "a b"])
def test_name_of_nothing_is_refused_with_what_would_work(
    model: str, cache_dir: Path, offline_hub: Path
) -> None:
    with pytest.raises(UnknownModel, match="folder"):
        load_cpu(model, cache_dir)


@pytest.mark.parametrize(
    "choices", [{"quantization": "int4"}, {"dtype": "float64"}, {"device": "tpu"}, {"dtype": None}]
)
def test_choice_that_does_not_exist_is_refused(choices: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        ModelSpec("ref-a", **choices)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_a_setting_to_change(checkpoint: Checkpoint, cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match="cuda"):
        load_cpu(checkpoint(), cache_dir, device="cuda")


def test_pickled_weights_are_refused_unread(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickled"):
        load_cpu(folder, cache_dir)


def test_folder_without_weights_is_refused(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="no weights"):
        load_cpu(folder, cache_dir)


def test_truncated_weights_are_refused(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnsupportedModel):
        load_cpu(folder, cache_dir)


def test_missing_weights_are_refused_instead_of_made_up(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(UnsupportedModel, match=r"missing.*layers\.3"):
        load_cpu(folder, cache_dir)


def test_misshapen_weights_are_refused(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(UnsupportedModel):
        load_cpu(folder, cache_dir)


def test_code_in_a_checkpoint_is_never_run(checkpoint: Checkpoint, cache_dir: Path, tmp_path: Path) -> None:
    folder = checkpoint()
    ran = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel):
        load_cpu(folder, cache_dir)
    assert not ran.exists()


def test_unsupported_model_is_refused_before_its_weights_are_read(
    checkpoint: Checkpoint, cache_dir: Path
) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"never looked at")
    with pytest.raises(UnsupportedModel, match="layer 0 of mistral"):
        load_cpu(folder, cache_dir)


@pytest.mark.parametrize(
    ("quantization", "linear", "dtype"),
    [
        ("none", "Linear", torch.float32),
        ("nf4", "Linear4bit", torch.float16),
        ("int8", "Linear8bitLt", torch.float16),
    ],
)
def test_quantization_replaces_the_linear_layers(
    checkpoint: Checkpoint, cache_dir: Path, quantization: str, linear: str, dtype: torch.dtype
) -> None:
    loaded = load_cpu(checkpoint(), cache_dir, quantization=quantization)
    assert type(loaded.model.model.layers[0].self_attn.k_proj).__name__ == linear
    assert loaded.model.dtype == dtype


def test_nf4_keeps_the_16_bit_dtype_of_the_checkpoint(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert load_cpu(folder, cache_dir, quantization="nf4").model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_nf4_leaves_whole_what_bitsandbytes_decodes_wrongly_on_a_cpu(cache_dir: Path, name: str) -> None:
    host = ModelHost.load(ModelSpec(name, quantization="nf4", device="cpu"), cache_dir)
    assert host._config.hidden_size % 64, "no reference model has such widths now: take one that has"
    layer = host._model.model.layers[0]
    assert type(layer.self_attn.q_proj).__name__ == "Linear"
    assert type(layer.self_attn.o_proj).__name__ == "Linear4bit"
    memory = host.capture("Mira's pet is fox. The city of Jonas is Lisbon. Petra's drink is tea.")
    *_, reply = host.generate("What is the city of Jonas?", memory=memory, sampling=Sampling(max_tokens=2))
    assert reply.text.strip() == "Lisbon."


@pytest.mark.parametrize("dtype", list(DType))
def test_chosen_dtype_is_the_dtype_of_the_cache(load_host: Callable[..., ModelHost], dtype: DType) -> None:
    assert load_host(dtype=str(dtype)).geometry.dtype is dtype


def test_loading_prints_nothing(
    checkpoint: Checkpoint, cache_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint()
    capfd.readouterr()
    load_cpu(folder, cache_dir)
    load_cpu(folder, cache_dir, quantization="nf4")
    assert capfd.readouterr() == ("", "")


def test_random_weights_load_like_any_checkpoint(
    small_geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "reference_path", {"ref-a": small_geometry}.get)
    loaded = load_cpu("random:small", tmp_path)
    assert loaded.name == "random:small"
    assert loaded.model.dtype == torch.bfloat16
    assert load_cpu("random:small", tmp_path).folder == loaded.folder


def test_random_weights_are_the_same_on_every_machine(small_geometry: Path, tmp_path: Path) -> None:
    folders = [
        materialise("small", tokenizer_folder=small_geometry, cache_dir=tmp_path / name) for name in "ab"
    ]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == other
    noise = random_weights._fill("model.embed_tokens.weight", torch.Size((1, 8, 8)))
    assert hashlib.sha256(pack(noise)).hexdigest()[:16] == "fa7dddf08a0aa747"


def test_interrupted_random_checkpoint_is_never_taken_for_complete(
    small_geometry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(random_weights, "save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        materialise("small", tokenizer_folder=small_geometry, cache_dir=tmp_path)
    assert list((tmp_path / "random").iterdir()) == []


def test_unknown_geometry_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"llama-3\.2-1b, tinyllama"):
        materialise("gpt-5", tokenizer_folder=tmp_path, cache_dir=tmp_path)


def test_random_weights_without_a_tokenizer_to_borrow_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="tokenizer"):
        materialise("tinyllama", tokenizer_folder=None, cache_dir=tmp_path)


def test_shipped_geometries_are_those_of_the_real_models() -> None:
    assert geometry_names() == ("llama-3.2-1b", "tinyllama")
    shapes = {
        name: json.loads((random_weights._GEOMETRIES / f"{name}.json").read_bytes())
        for name in geometry_names()
    }
    token_nbytes = {
        name: 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"] * 2
        for name, shape in shapes.items()
    }
    assert token_nbytes == {"tinyllama": 22_528, "llama-3.2-1b": 32_768}
