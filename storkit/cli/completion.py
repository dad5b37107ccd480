"""Completion scripts for bash, zsh and fish, derived from the table of commands.

Names are completed by `storkit names`, which connects to no other machine: no key press waits for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storkit.cli.commands import COMMANDS, GLOBAL, NOUNS, Command

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.cli.session import Session

_BASH = """\
# bash completion for storkit; put it into /etc/bash_completion.d/storkit
_storkit_names() {{
    storkit names "$1" 2>/dev/null
}}
_storkit() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} words=() word key
    COMPREPLY=()
    case $prev in
        --on|--to) COMPREPLY=($(compgen -W "$(_storkit_names hosts)" -- "$cur")); return;;
        --pool) COMPREPLY=($(compgen -W "$(_storkit_names pools)" -- "$cur")); return;;
        --inventory|--kernel|--initrd|--console) COMPREPLY=($(compgen -f -- "$cur")); return;;
    esac
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        [[ $word == -* ]] || words+=("$word")
    done
    case "${{words[*]}}" in
        "") COMPREPLY=($(compgen -W "{top} {globals}" -- "$cur")); return;;
{nouns}
    esac
    case "${{words[0]}} ${{words[1]}}" in
{verbs}
    esac
}}
complete -F _storkit storkit
"""


def print_(options: Namespace) -> int:
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell](), end="")
    return 0


def names(session: Session, options: Namespace) -> None:
    """Volumes: those of this machine's pools, and those that were found or made from here."""
    found = {
        "hosts": lambda: list(session.site.inventory.hosts),
        "pools": lambda: list(session.site.inventory.pools),
        "fleets": lambda: session.site.fleets.names(),
        "guests": lambda: session.site.guests.names(),
        "volumes": session.site.known_volumes,
    }[options.kind]()
    print("".join(f"{name}\n" for name in found), end="")


def bash() -> str:
    """The script for bash(1)."""
    nouns = "\n".join(
        f'        "{noun}") COMPREPLY=($(compgen -W "{" ".join(_verbs(noun))}" -- "$cur")); return;;' for noun in NOUNS
    )
    verbs = "\n".join(_bash_case(command) for command in COMMANDS)
    top = " ".join([*NOUNS, *_verbs("")])
    flags = " ".join(flag for each in GLOBAL for flag in each.flags)
    return _BASH.format(top=top, globals=flags, nouns=nouns, verbs=verbs)


def zsh() -> str:
    """The script for zsh(1): it uses the one for bash."""
    return f"#compdef storkit\nautoload -U +X bashcompinit && bashcompinit\n{bash()}"


def fish() -> str:
    """The script for fish(1)."""
    lines = [
        "# fish completion for storkit; put it into ~/.config/fish/completions/storkit.fish",
        "function __storkit_names",
        "    storkit names $argv[1] 2>/dev/null",
        "end",
        "complete -c storkit -f",
    ]
    for noun, text in NOUNS.items():
        lines.append(f"complete -c storkit -n __fish_use_subcommand -a {noun} -d {_quoted(text)}")
    for command in COMMANDS:
        seen = f"__fish_seen_subcommand_from {command.noun}" if command.noun else "__fish_use_subcommand"
        verbs = " ".join(_verbs(command.noun))
        first = f"{seen}; and not __fish_seen_subcommand_from {verbs}" if command.noun else seen
        lines.append(f"complete -c storkit -n {_quoted(first)} -a {command.verb} -d {_quoted(command.help)}")
        inside = f"__fish_seen_subcommand_from {command.verb}"
        if command.noun:
            inside = f"{seen}; and {inside}"
        for each in command.args:
            names = each.kwargs.get("complete")
            source = f" -a '(__storkit_names {names})'" if names else ""
            if each.flags[0].startswith("--"):
                takes = "" if "action" in each.kwargs and each.kwargs["action"] != "append" else " -r"
                flag = f" -l {each.flags[0][2:]}"
                lines.append(f"complete -c storkit -n {_quoted(inside)}{flag}{takes}{source} -d {_quoted(each.help)}")
            elif source:
                lines.append(f"complete -c storkit -n {_quoted(inside)}{source}")
    return "\n".join(lines) + "\n"


def _verbs(noun: str) -> list[str]:
    return [command.verb for command in COMMANDS if command.noun == noun]


def _bash_case(command: Command) -> str:
    words = [flag for each in command.args for flag in each.flags if flag.startswith("--")]
    names = {each.kwargs.get("complete") for each in command.args if not each.flags[0].startswith("-")} - {None}
    asked = " ".join(f"$(_storkit_names {name})" for name in sorted(names))
    pattern = f'"{command.noun} {command.verb}"' if command.noun else f'"{command.verb} "*'
    files = any(each.kwargs.get("metavar") == "FILE" for each in command.args)
    also = ' $(compgen -f -- "$cur")' if files else ""
    return f'        {pattern}) COMPREPLY=($(compgen -W "{" ".join(words)} {asked}" -- "$cur"){also});;'


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
