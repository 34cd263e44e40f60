from __future__ import annotations

import importlib

import click
import pytest

from unetx_opt.cli.table import COMMANDS


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        COMMANDS["extra"] = COMMANDS["build"]  # type: ignore[index]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_row_leads_to_a_command_of_its_name_that_documents_every_option(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help
    undocumented = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert undocumented == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_one_short_sentence(name: str) -> None:
    summary = COMMANDS[name].summary
    assert summary.endswith(".")
    assert len(summary) <= 60
