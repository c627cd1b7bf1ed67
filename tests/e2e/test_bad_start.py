"""A daemon that cannot start, for its model, its port or its settings: it says why and ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kvnetd.main import main as kvnetd_main

from kvnet.model.reference.catalog import reference_path
from tests.e2e.daemons import Kvnet, MakeHome, Pair, kvnet
from tests.e2e.outcomes import assert_refused, daemon_refuses

pytestmark = pytest.mark.usefixtures("pair_goes_on")


def test_an_unknown_model_is_refused(home: MakeHome) -> None:
    said = kvnet(home("nobody"), "up", "--no-mdns", "--model", "no/such/folder", "--json")
    assert_refused(said, "unknown_model", 4, as_json=True)
    assert "no/such/folder" in said.json["error"]["message"]


def test_a_model_that_is_not_cached_is_unknown_offline(
    home: MakeHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused = daemon_refuses(home("nobody"), capsys, "--model", "nobody/nosuch")
    assert (refused["code"], refused["status"]) == ("unknown_model", 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64},
        {"num_hidden_layers": 5},
        {"model_type": "nosuch"},
    ],
    ids=["sliding window", "missing weights", "unknown architecture"],
)
def test_a_model_this_node_cannot_host_is_refused(
    home: MakeHome, capsys: pytest.CaptureFixture[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    source = reference_path("ref-a")
    assert source is not None
    folder = tmp_path / "odd"
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | changes), encoding="utf-8")
    refused = daemon_refuses(home("nobody"), capsys, "--model", str(folder))
    assert (refused["code"], refused["status"]) == ("unsupported_model", 4)
    assert str(tmp_path) not in refused["message"]


def test_a_port_in_use_is_refused(pair: Pair, home: MakeHome, capsys: pytest.CaptureFixture[str]) -> None:
    refused = daemon_refuses(home("nobody"), capsys, "--listen", pair.alice.grpc)
    assert (refused["code"], refused["status"]) == ("port_in_use", 3)
    assert pair.alice.grpc in refused["message"]


def test_up_again_changes_nothing(pair: Pair, run: Kvnet, capsys: pytest.CaptureFixture[str]) -> None:
    with pair.alice.node() as node:
        before = node.status()
    said = kvnet(pair.alice.home.root, "up", "--model", "ref-a", "--json")
    assert (said.status, said.json["pid"], said.json["grpc"]) == (0, before.pid, before.grpc)


def test_a_second_daemon_on_the_same_home_is_refused(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair.alice.process is not None
    refused = daemon_refuses(pair.alice.home.root, capsys)
    assert (refused["code"], refused["status"]) == ("already_running", 3)
    assert str(pair.alice.process.pid) in refused["message"]


BAD_SETTINGS = [
    ("nosuch = 1", "nosuch"),
    ("model = 7", "model"),
    ("mdns = 'perhaps'", "mdns"),
    ("quantization = 'int3'", "quantization"),
    ("listen = 'everywhere'", "listen"),
    ("listen = '0.0.0.0:99999'", "listen"),
    ("[limits]\nmax_inbound_transfers = -1", "limits.max_inbound_transfers"),
    ("name = ''", "name"),
    ("= nonsense", "config.toml"),
]


@pytest.mark.parametrize(("settings", "named"), BAD_SETTINGS, ids=[row[0] for row in BAD_SETTINGS])
def test_a_bad_setting_is_refused_by_name(
    home: MakeHome, capsys: pytest.CaptureFixture[str], settings: str, named: str
) -> None:
    folder = home("nobody")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(settings, encoding="utf-8")
    assert kvnetd_main(["--home", str(folder)]) == 3
    said = json.loads(capsys.readouterr().err)
    assert said["code"] == "config_invalid"
    assert named in said["message"]


def test_a_bad_setting_reaches_whoever_says_up(home: MakeHome) -> None:
    folder = home("nobody")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("nosuch = 1", encoding="utf-8")
    assert_refused(kvnet(folder, "up"), "config_invalid", 3, as_json=False)
