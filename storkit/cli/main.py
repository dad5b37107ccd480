"""`storkit`: parses the command line, calls the command, prints what came of it."""

import sys
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from typing import Any, NoReturn


def parser(words: "Sequence[str]" = (), whole: bool = True) -> "ArgumentParser":
    """The parser for a command line: the commands of the nouns in `words` only, or all nouns without theirs.

    One that is not `whole` has nothing but what `words` may name, and neither helps nor says what is wrong: to make it
    costs a tenth.
    """
    import argparse

    from storkit.cli.commands import COMMANDS, GLOBAL, NOUNS

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "NoReturn":
            """As argparse, but an error like any other (its subparsers are of this class as well)."""
            from storkit.core.errors import UsageError

            if whole:
                self.print_usage(sys.stderr)
            raise UsageError(message, f"{self.prog} --help")

    top = Parser(
        prog="storkit",
        description="Make the disks of Xen and KVM guests migratable.",
        epilog="storkit NOUN --help lists a noun's verbs; storkit NOUN VERB --help has examples.",
        allow_abbrev=False,
        add_help=whole,
        formatter_class=_formatter(argparse.HelpFormatter, whole),
    )
    if whole:
        import storkit

        top.add_argument("--version", action="version", version=f"storkit {storkit.__version__}")
    _add(top, GLOBAL)
    nouns = top.add_subparsers(dest="noun", metavar="COMMAND", required=True, prog="storkit")
    for noun, text in NOUNS.items():
        if not whole and noun not in words:
            continue
        group = nouns.add_parser(
            noun, help=text, description=text, allow_abbrev=False, add_help=whole,
            formatter_class=_formatter(argparse.HelpFormatter, whole),
        )  # fmt: skip
        _add(group, GLOBAL, suppress=True)
        if noun in words:
            verbs = group.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"storkit {noun}")
            for command in COMMANDS:
                if command.noun == noun and (whole or command.verb in words):
                    _command(verbs, command, whole)
    for command in COMMANDS:
        if not command.noun and (whole or command.verb in words):
            _command(nouns, command, whole)
    return top


def _command(verbs: "Any", command: "Any", whole: bool) -> None:
    import argparse

    from storkit.cli.commands import GLOBAL

    epilog = ""
    if whole:
        from storkit.cli.manual.examples import EXAMPLES

        lines = [f"  {line}\n      {text}" for line, text in EXAMPLES[f"{command.noun} {command.verb}".strip()]]
        epilog = "\n".join(["examples:", *lines])
    leaf = verbs.add_parser(
        command.verb, help=command.help, description=command.help, allow_abbrev=False, add_help=whole,
        epilog=epilog, formatter_class=_formatter(argparse.RawDescriptionHelpFormatter, whole),
    )  # fmt: skip
    _add(leaf, command.args)
    # Global options may stand anywhere; SUPPRESS keeps what stood before the command.
    _add(leaf, GLOBAL, suppress=True)
    leaf.set_defaults(function=command.function)


def _formatter(kind: "Any", whole: bool) -> "Any":
    """argparse makes one for each argument that is added, and each looks for the terminal's width, by a module that
    costs more than the parser. Where nothing will be shown, it is said."""
    return kind if whole else partial(kind, width=80)


def _add(target: "Any", args: "Any", suppress: bool = False) -> None:
    import argparse

    for each in args:
        kwargs = {key: value for key, value in each.kwargs.items() if key != "complete"}
        if suppress:
            kwargs["default"] = argparse.SUPPRESS
            target.add_argument(*each.flags, help=argparse.SUPPRESS, **kwargs)
        else:
            target.add_argument(*each.flags, help=each.help, **kwargs)


def parsed(words: "Sequence[str]") -> "Namespace":
    """What a command line says. Raises UsageError; SystemExit: it asked for help, which was printed."""
    from storkit.cli.commands import COMMANDS

    given = words[: words.index("--")] if "--" in words else words
    ends_in_a_command = any(
        command.noun in given and command.verb in given and command.args and command.args[-1].flags == ("words",)
        for command in COMMANDS
    )
    if given is words or not ends_in_a_command:
        return _by_argparse(words)
    # argparse gives such an argument what stands before an option, and then no more.
    options = _by_argparse(given)
    options.words += words[len(given) + 1 :]
    return options


def _by_argparse(words: "Sequence[str]") -> "Namespace":
    from storkit.core.errors import UsageError

    try:
        return parser(words, whole=False).parse_args(words)
    except UsageError:
        return parser(words).parse_args(words)


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command; the exit status (docs/exit-codes.md)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parsed(words)
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
