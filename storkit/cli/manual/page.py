"""storkit(1) in man(7) format, derived from the table of commands: `python -m storkit.cli.manual.page > storkit.1`."""

from __future__ import annotations

import storkit
from storkit.cli.commands import COMMANDS, GLOBAL, NOUNS, Arg, Command
from storkit.cli.manual.examples import EXAMPLES
from storkit.core.errors import (
    CommandFailed,
    Conflict,
    HostUnreachable,
    Interrupted,
    NotAllowed,
    NotFound,
    ServiceUnreachable,
    StepFailed,
    StorkitError,
    TimedOut,
    Unsafe,
    Unsupported,
    UsageError,
)

KINDS: tuple[type[StorkitError], ...] = (
    StorkitError, UsageError, Unsupported, NotFound, Conflict, CommandFailed, HostUnreachable, TimedOut, Unsafe,
    StepFailed, ServiceUnreachable, NotAllowed, Interrupted,
)  # fmt: skip


def page() -> str:
    """The whole page."""
    out = [
        f'.TH STORKIT 1 "" "storkit {storkit.__version__}" "User Commands"',
        ".SH NAME",
        "storkit \\- make the disks of Xen and KVM guests migratable",
        ".SH SYNOPSIS",
        ".B storkit",
        "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR ...",
        ".SH DESCRIPTION",
        "storkit makes volumes, exports them from the host that holds them, attaches them on every host that needs "
        "them under one stable path, proves that both hosts see the same disk, decides at the storage side who may "
        "write, and hands that right over during a live migration.",
        ".SH OPTIONS",
        *(line for each in GLOBAL for line in _arg(each)),
        ".SH COMMANDS",
    ]
    for noun, text in (*NOUNS.items(), ("", "everything else")):
        out.append(f".SS {_escape(f'{noun}: {text}' if noun else text)}")
        for command in COMMANDS:
            if command.noun == noun:
                out += _command(command)
    out.append(".SH EXIT STATUS")
    out += [".TP", "0", "Done."]
    for kind in KINDS:
        out += [".TP", str(kind.exit_code), _escape((kind.__doc__ or "").split("\n\n")[0].replace("\n", " "))]
    out += [
        ".SH FILES",
        *(".TP", "/etc/storkit/inventory.toml", "The inventory. Guests' files are in /etc/storkit/guests."),
        *(".TP", "/etc/storkit/accept.toml", "What this host accepts of coordinators (storkit host accept)."),
        *(".TP", "/var/lib/storkit", "State: plans, and what the servers of this host grant."),
        *(".TP", "/dev/storkit", "The stable paths of attached volumes."),
        "Without root, $XDG_CONFIG_HOME/storkit and $XDG_STATE_HOME/storkit.",
        ".SH ENVIRONMENT",
        *(".TP", "STORKIT_INVENTORY", "The inventory file, where \\fB\\-\\-inventory\\fR does not say."),
        *(".TP", "STORKIT_LOG_SOCKET", "Where this host logs rights that are given and taken, other than at /dev/log."),
    ]
    return "\n".join(out) + "\n"


def _command(command: Command) -> list[str]:
    words = [f"\\fB{' '.join(part for part in (command.noun, command.verb) if part)}\\fR"]
    for each in command.args:
        name = each.kwargs.get("metavar") or each.flags[0].upper()
        if each.flags[0].startswith("-"):
            continue
        words.append(f"\\fI{_escape(name)}\\fR" + ("..." if each.kwargs.get("nargs") in ("+", "*") else ""))
    lines = [".TP", " ".join(words), _escape(command.help[0].upper() + command.help[1:] + ".")]
    options = [each for each in command.args if each.flags[0].startswith("-")]
    if options:
        lines += [".RS", *(line for each in options for line in _arg(each)), ".RE"]
    return [*lines, ".RS", *_examples(f"{command.noun} {command.verb}".strip()), ".RE"]


def _examples(command: str) -> list[str]:
    lines = [".PP", "Examples:" if len(EXAMPLES[command]) > 1 else "Example:"]
    for line, text in EXAMPLES[command]:
        lines += [".TP", f"\\fB{_escape(line)}\\fR", _escape(text)]
    return lines


def _arg(each: Arg) -> list[str]:
    flags = ", ".join(f"\\fB{_escape(flag)}\\fR" for flag in each.flags)
    takes = "" if each.kwargs.get("action") in ("store_true", "count") else each.kwargs.get("metavar", "")
    choices = "|".join(each.kwargs.get("choices", ()))
    value = f" \\fI{_escape(takes or choices)}\\fR" if takes or choices else ""
    return [".TP", flags + value, _escape(each.help[0].upper() + each.help[1:] + ".")]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("-", "\\-")


if __name__ == "__main__":
    print(page(), end="")
