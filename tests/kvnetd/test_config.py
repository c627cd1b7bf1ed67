"""Flag over environment over file over default, and nothing unknown or out of range."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from kvnetd.config import DEFAULT_MODEL, Config, keep_name, load_config

from kvnet.errors import ConfigError
from kvnet.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def load(home: Home, toml: str | None = None, environ: dict[str, str] | None = None, **flags: Any) -> Config:
    """Settings from these sources."""
    if toml is not None:
        home.config.write_text(toml)
    return load_config(home, flags, environ or {})


def test_defaults_need_no_file(home: Home) -> None:
    config = load(home)
    assert (config.model, config.mdns, config.compression) == (DEFAULT_MODEL, True, "split")
    assert (config.listen_host, config.listen_port) == ("0.0.0.0", 0)  # noqa: S104
    assert 1 <= len(config.name) <= 40


def test_flag_beats_environment_beats_file_beats_default(home: Home) -> None:
    toml, environ = 'model = "from-file"\nname = "file"', {"KVNET_MODEL": "from-environ"}
    assert load(home).model == DEFAULT_MODEL
    assert load(home, toml).model == "from-file"
    assert load(home, toml, environ).model == "from-environ"
    assert load(home, toml, environ, model="from-flag").model == "from-flag"
    assert load(home, toml, environ, model=None).model == "from-environ"
    assert load(home, toml, environ).name == "file"


TYPED = {
    "mdns": ("mdns = false", "0", False),
    "unfinished_life_s": ("unfinished_life_s = 3", "3", 3),
    "interfaces": ('interfaces = ["eth0", "eth1"]', "eth0,eth1", ("eth0", "eth1")),
    "quantization": ('quantization = "int8"', "int8", "int8"),
    "keep_text": ("keep_text = true", "1", True),
    "align": ('align = "text"', "text", "text"),
    "compression": ('compression = "lz4"', "lz4", "lz4"),
    "listen": ('listen = "[::]:7447"', "[::]:7447", "[::]:7447"),
}


@pytest.mark.parametrize("key", TYPED)
def test_file_and_environment_say_the_same_in_their_own_types(home: Home, key: str) -> None:
    toml, text, wanted = TYPED[key]
    assert getattr(load(home, None, {f"KVNET_{key.upper()}": text}), key) == wanted
    assert getattr(load(home, toml), key) == wanted


def test_every_setting_but_the_home_can_come_from_the_environment(home: Home) -> None:
    environ = {
        f"KVNET_{spec.name.upper()}": str(
            int(spec.default) if isinstance(spec.default, bool) else spec.default
        )
        for spec in fields(Config)
        if spec.name not in ("home", "name", "interfaces", "limits")
    }
    config = load(home, None, {**environ, "KVNET_INTERFACES": "", "KVNET_NAME": "n", "KVNET_HOME": "/x"})
    assert config == Config(home=home, name="n")


def test_unknown_key_in_the_file_is_refused_with_those_that_are_known(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'modell'.*model"):
        load(home, 'modell = "ref-a"')
    with pytest.raises(ConfigError, match="home"):
        load(home, 'home = "/x"')


@pytest.mark.parametrize("text", ["model =", "= 1", '"model', "a = 1\na = 2", "\x00"])
def test_file_that_is_not_toml_is_refused(home: Home, text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.toml: not TOML"):
        load(home, text)


def test_file_that_is_not_utf_8_or_not_a_file_is_refused(home: Home) -> None:
    home.config.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(home)
    home.config.unlink()
    home.config.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(home)


BAD = [
    'quantization = "int3"',
    'dtype = "float8"',
    'device = "tpu"',
    'compression = "zip"',
    'name = ""',
    'name = "a/b"',
    f'name = "{"n" * 41}"',
    "name = 1",
    'namespace = ""',
    f'namespace = "{"n" * 41}"',
    "model = true",
    'mdns = "maybe"',
    "mdns = []",
    'listen = "7447"',
    'listen = ":7447"',
    'listen = "0.0.0.0:"',
    'listen = "0.0.0.0:65536"',
    'listen = "0.0.0.0:-1"',
    'listen = "0.0.0.0:²"',
    "interfaces = 5",
    'outbox_life_s = "many"',
    "outbox_life_s = true",
    "outbox_life_s = 1.5",
    "outbox_life_s = -1",
    "limits = 5",
    "log_max_nbytes = []",
]


@pytest.mark.parametrize("toml", BAD)
def test_bad_value_is_refused_by_its_key(home: Home, toml: str) -> None:
    with pytest.raises(ConfigError, match=f"setting {toml.split(' ')[0]}"):
        load(home, toml)


@pytest.mark.parametrize(("key", "value"), [("OUTBOX_LIFE_S", "x"), ("MDNS", "maybe"), ("LISTEN", "here")])
def test_bad_value_in_the_environment_is_refused_too(home: Home, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.lower()):
        load(home, None, {f"KVNET_{key}": value})


def test_name_that_was_given_once_stays_until_another_is_given(home: Home) -> None:
    keep_name(load(home, name="bob"))
    assert load(home).name == "bob"
    assert load(home, name="robert").name == "robert"
    assert load(home).name == "bob"  # it has not run under the other one
    keep_name(load(home, name="robert"))
    assert load(home).name == "robert"
    assert load(home, 'name = "of the file"').name == "of the file"
    assert load(home, environ={"KVNET_NAME": "of the environment"}).name == "of the environment"


@pytest.mark.parametrize("kept", [b"a/b", b"\xff", b"x" * 41])
def test_kept_name_that_is_none_is_refused(home: Home, kept: bytes) -> None:
    home.name.write_bytes(kept)
    with pytest.raises(ConfigError, match="name"):
        load(home)
