"""Every command has examples in its help and in the manual page, and each of them parses."""

from __future__ import annotations

import shlex

import pytest

from storkit.cli.commands import COMMANDS, Command
from storkit.cli.main import main, parsed
from storkit.cli.manual.examples import EXAMPLES
from storkit.cli.manual.page import page

REDIRECTIONS = ("<", ">")


def name(command: Command) -> str:
    return f"{command.noun} {command.verb}".strip()


def words(line: str) -> list[str]:
    """The words that storkit is given by a line for the shell: what stands before a redirection, without `storkit`."""
    found = shlex.split(line)
    end = next((n for n, word in enumerate(found) if word in REDIRECTIONS), len(found))
    program, *given = found[:end]
    assert program == "storkit"
    return given


def test_every_command_has_one_to_three_examples_and_nothing_else_has() -> None:
    assert set(EXAMPLES) == {name(command) for command in COMMANDS}
    assert {len(examples) for examples in EXAMPLES.values()} <= {1, 2, 3}


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_every_example_is_one_of_its_own_command_and_says_what_it_does(command: Command) -> None:
    for line, text in EXAMPLES[name(command)]:
        given = words(line)
        options = parsed(given)
        assert options.function == command.function, line
        assert text.endswith(".") and "\n" not in text


@pytest.mark.parametrize("command", COMMANDS, ids=name)
def test_the_help_of_a_command_shows_its_examples(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name(command).split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for line, text in EXAMPLES[name(command)]:
        assert f"  {line}\n" in shown and text in shown


def test_the_manual_page_shows_every_example() -> None:
    shown = page().replace("\\-", "-")
    for examples in EXAMPLES.values():
        for line, text in examples:
            assert f"\\fB{line}\\fR\n{text}\n" in shown


def test_an_argument_is_described_by_a_noun() -> None:
    """`volume show` once said of its argument: "it"."""
    vague = {"it", "this", "that", "of what", "what"}
    found = {f"{name(command)}: {each.help}" for command in COMMANDS for each in command.args if each.help in vague}
    assert not found
