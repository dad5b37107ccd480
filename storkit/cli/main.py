"""`storkit`: parses the command line, calls the command, prints what came of it."""

import sys

from storkit.cli.commands import COMMANDS, GLOBAL, NOUNS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Sequence
    from typing import Any, NoReturn


def parser(words: "Sequence[str]" = ()) -> "ArgumentParser":
    """The parser for a command line: the commands of the noun in `words` only, or all nouns without theirs."""
    import argparse

    import storkit

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "NoReturn":
            """As argparse, but an error like any other (its subparsers are of this class as well)."""
            from storkit.core.errors import UsageError

            self.print_usage(sys.stderr)
            raise UsageError(message, f"{self.prog} --help")

    top = Parser(
        prog="storkit",
        description="Make the disks of Xen and KVM guests migratable.",
        epilog="storkit NOUN --help lists a noun's verbs; storkit NOUN VERB --help has examples.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"storkit {storkit.__version__}")
    _add(top, GLOBAL)
    nouns = top.add_subparsers(dest="noun", metavar="COMMAND", required=True)
    for noun, text in NOUNS.items():
        group = nouns.add_parser(noun, help=text, description=text, allow_abbrev=False)
        _add(group, GLOBAL, suppress=True)
        if noun in words:
            verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True)
            for command in COMMANDS:
                if command.noun == noun:
                    _command(verbs, command)
    for command in COMMANDS:
        if not command.noun:
            _command(nouns, command)
    return top


def _command(verbs: "Any", command: "Any") -> None:
    import argparse

    from storkit.cli.manual.examples import EXAMPLES

    lines = [f"  {line}\n      {text}" for line, text in EXAMPLES[f"{command.noun} {command.verb}".strip()]]
    leaf = verbs.add_parser(
        command.verb, help=command.help, description=command.help, allow_abbrev=False,
        epilog="\n".join(["examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add(leaf, command.args)
    # Global options may stand anywhere; SUPPRESS keeps what stood before the command.
    _add(leaf, GLOBAL, suppress=True)
    leaf.set_defaults(function=command.function)


def _add(target: "Any", args: "Any", suppress: bool = False) -> None:
    import argparse

    for each in args:
        kwargs = {key: value for key, value in each.kwargs.items() if key != "complete"}
        if suppress:
            kwargs["default"] = argparse.SUPPRESS
            target.add_argument(*each.flags, help=argparse.SUPPRESS, **kwargs)
        else:
            target.add_argument(*each.flags, help=each.help, **kwargs)


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command; the exit status (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser(words).parse_args(words)
    except SystemExit as error:
        return int(error.code or 0)
    except Exception as error:
        # argparse's own; UsageError is imported where one is made, so that the usual way costs nothing.
        from storkit.cli.session import failed
        from storkit.core.errors import UsageError

        if not isinstance(error, UsageError):
            raise
        given = words[: words.index("--")] if "--" in words else words
        return failed(error, json="--json" in given)
    from storkit.cli.session import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
