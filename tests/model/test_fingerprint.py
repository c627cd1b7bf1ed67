"""A fingerprint names what a model is, not where it lies or who saved it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnet.errors import UnsupportedModel
from kvnet.model.fingerprint import HashCache, fingerprint_of, weight_files
from kvnet.types import Fingerprint

Checkpoint = Callable[..., Path]


@pytest.fixture
def folder(checkpoint: Checkpoint) -> Path:
    return checkpoint()


@pytest.fixture
def take(folder: Path, tmp_path: Path) -> Callable[..., Fingerprint]:
    """The folder's fingerprint as it is now."""

    def fingerprint(quantization: str = "none", model: str = "m") -> Fingerprint:
        return fingerprint_of(folder, model=model, quantization=quantization, cache_dir=tmp_path / "cache")

    return fingerprint


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_same_files_under_another_name_have_the_same_digest(take: Callable[..., Fingerprint]) -> None:
    assert take(model="a").digest == take(model="b").digest


def test_who_saved_it_is_not_part_of_the_config(folder: Path, take: Callable[..., Fingerprint]) -> None:
    before = take()
    edit_config(folder, transformers_version="9", _name_or_path="elsewhere", dtype="float16", torch_dtype="x")
    assert take() == before


def test_rope_theta_is_part_of_the_config(folder: Path, take: Callable[..., Fingerprint]) -> None:
    before = take()
    edit_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    after = take()
    assert after.config_digest != before.config_digest
    assert after.weights_digest == before.weights_digest


def test_infinity_in_a_config_is_no_obstacle(folder: Path, take: Callable[..., Fingerprint]) -> None:
    edit_config(folder, limit=[0.0, float("inf")])
    assert take().config_digest.startswith("sha256:")


def test_one_flipped_weight_byte_changes_the_digest(folder: Path, take: Callable[..., Fingerprint]) -> None:
    before = take()
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert take().weights_digest != before.weights_digest


def test_tokenizer_is_what_turns_text_into_ids(folder: Path, take: Callable[..., Fingerprint]) -> None:
    before = take()
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    assert take() == before
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("harbour", "harbor") + " ")
    assert take().tokenizer_digest != before.tokenizer_digest


def test_quantization_is_part_of_the_digest(take: Callable[..., Fingerprint]) -> None:
    assert len({take(quantization).digest for quantization in ("none", "int8", "nf4")}) == 3


def test_unchanged_weights_are_not_read_again(
    take: Callable[..., Fingerprint], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = take()
    monkeypatch.setattr(hashlib, "file_digest", None)  # any use would raise
    assert take() == before


def test_changed_file_of_the_same_size_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    digests = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, ns=(len(digests), len(digests)))
        hashes = HashCache(tmp_path / "cache.json")
        digests.append(hashes.sha256(file))
        hashes.save()
    assert digests == [hashlib.sha256(content).hexdigest() for content in (b"one", b"two")]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"%s": [1, 2, 3, "00"]}', b'{"%s": null}', b'{"%s": [3, 1, 1]}', b"\xff\xfe"],
)
def test_corrupt_hash_cache_is_computed_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    (tmp_path / "cache.json").write_bytes(content.replace(b"%s", str(file).encode()))
    assert HashCache(tmp_path / "cache.json").sha256(file) == hashlib.sha256(b"one").hexdigest()


def test_saving_leaves_nothing_but_the_cache_file(take: Callable[..., Fingerprint], tmp_path: Path) -> None:
    take()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["file_digests.json"]


def test_hash_cache_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    hashes = HashCache(tmp_path / "file" / "cache.json")  # a file where a folder should be
    assert hashes.sha256(tmp_path / "file") == hashlib.sha256(b"one").hexdigest()
    hashes.save()


def test_link_and_its_target_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"one")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    hashes = HashCache(tmp_path / "cache.json")
    assert hashes.sha256(tmp_path / "model.safetensors") == hashes.sha256(tmp_path / "blob")


def test_weights_in_shards_are_those_of_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    (folder / "a.safetensors").write_bytes(b"")
    (folder / "unused.safetensors").write_bytes(b"")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(folder)] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("name", ["../model.safetensors", "absent.safetensors", "config.json", 7])
def test_index_cannot_name_files_elsewhere(folder: Path, name: object) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    index = {"weight_map": {"x": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match="not there"):
        weight_files(folder)


def test_folder_without_tokenizer_is_refused(folder: Path, take: Callable[..., Fingerprint]) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match="no tokenizer"):
        take()


@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_broken_config_is_refused(folder: Path, take: Callable[..., Fingerprint], content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        take()
