"""node.toml: the example is valid, mistakes are named, and paths start where the file is."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

from unetx_opt.cli.main import main
from unetx_opt.errors import SpecError
from unetx_opt.node.config import read_config

EXAMPLE = resources.files("unetx_opt.node").joinpath("node.example.toml").read_text("utf-8")
LEAST = """
state = "state"
ae_title = "NODE"
port = 11112
calling_ae_titles = ["CR1"]
peer_addresses = ["127.0.0.1"]
[[destination]]
name = "pacs"
dicom = { host = "h", port = 104, ae_title = "PACS", tls = { ca_file = "ca.crt" } }
"""


def read(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_the_example_is_valid_as_it_is_and_with_every_line_that_is_commented_out(tmp_path, capsys):
    assert main(["serve", "bundle", "--example"]) == 0
    assert capsys.readouterr().out == EXAMPLE
    plain = read(tmp_path, EXAMPLE)
    assert plain.destination[0].commitment
    everything = re.sub(r"^# (?=[\[a-z])(?!dicom\.tls)(?!A |Relative)", "", EXAMPLE, flags=re.MULTILINE)
    full = read(tmp_path, everything)
    assert full.tls is not None
    assert full.audit.syslog is not None
    assert [one.name for one in full.destination] == ["pacs", "archive"]
    assert full.limits == plain.limits, "what is commented out are the defaults"
    assert full.kinds == ("seg", "sr")


def test_relative_paths_start_at_the_file(tmp_path):
    config = read(tmp_path, LEAST)
    assert config.state == tmp_path / "state"
    assert config.destination[0].dicom.tls.ca_file == tmp_path / "ca.crt"
    assert read(tmp_path, LEAST.replace('"state"', '"/var/lib/x"')).state == Path("/var/lib/x")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('ae_title = "NODE"', 'ae_titel = "NODE"'), "ae_titel|ae_title"),
        (("port = 11112", "port = 11112\nlimit = 3"), "unknown key limit"),
        (("[[destination]]", "[limits]\nassociation = 3\n[[destination]]"), r"limits\.association"),
        (('name = "pacs"', 'name = "pacs"\ncommitement = true'), "commitement"),
        (("port = 11112", "port = 0"), "expected 1 to 65535"),
        (("port = 11112", 'port = "many"'), "port"),
        (('["127.0.0.1"]', '["127.0.0.1/8"]'), "address"),
        (('["127.0.0.1"]', "[]"), "who may send"),
        (('["CR1"]', '["A TITLE THAT IS FAR TOO LONG"]'), "16"),
        (("[[destination]]", '[http]\naddress = "0.0.0.0"\n[[destination]]'), "127"),
        (("[[destination]]", "[limits]\npdu_bytes = 1\n[[destination]]"), "pdu_bytes"),
        (("[[destination]]", '[results]\nsegmentation_kind = "binary"\n[[destination]]'), "BINARY"),
        (("[[destination]]", "[work]\nprocesses = 0\n[[destination]]"), "at least 1"),
        (("state", "= state"), "cannot be read"),
    ],
    ids=lambda value: value[1][:30] if isinstance(value, tuple) else None,
)
def test_a_mistake_is_one_line_that_names_it(tmp_path, change, named):
    assert change[0] in LEAST
    with pytest.raises(SpecError, match=named) as caught:
        read(tmp_path, LEAST.replace(*change, 1))
    assert "\n" not in str(caught.value)
    assert "node.toml" in str(caught.value)


def test_two_destinations_of_one_name_are_refused(tmp_path):
    again = LEAST[LEAST.index("[[destination]]") :]
    with pytest.raises(SpecError, match="each name once"):
        read(tmp_path, LEAST + again)


def test_a_configuration_that_is_not_there_is_exit_1(tmp_path, capsys):
    assert main(["serve", "bundle", "--config", str(tmp_path / "none.toml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_the_systemd_unit_starts_serve_and_gives_it_time_to_stop():
    from configparser import ConfigParser

    from unetx_opt.node.lifecycle import _PATIENCE_S

    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(resources.files("unetx_opt.node").joinpath("unetx-opt-node.service").read_text("utf-8"))
    assert " serve /" in unit["Service"]["ExecStart"]
    assert " --config /" in unit["Service"]["ExecStart"]
    assert int(unit["Service"]["TimeoutStopSec"]) > _PATIENCE_S
