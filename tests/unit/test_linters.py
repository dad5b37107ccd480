"""Layout, types, scripts, the manual page and the completions are checked as the rest is: by tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storkit.cli import completion
from storkit.cli.commands import COMMANDS, GLOBAL, NOUNS
from storkit.cli.manual import page as manpage

ROOT = Path(__file__).resolve().parents[2]


def check(*argv: str, text: str | None = None) -> str:
    """Run a program that must succeed and say nothing on stderr; what it printed."""
    done = subprocess.run(argv, cwd=ROOT, input=text, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and not done.stderr, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"
    return done.stdout


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} not installed")


def tracked() -> list[Path]:
    """The files of the project: git's, or in an unpacked archive, all but what is built."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = done.stdout.split("\0")[:-1]
    if done.returncode or not names:
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [path for name in names if (path := ROOT / name).is_file()]


def test_ruff() -> None:
    check(sys.executable, "-m", "ruff", "check", "-q", ".")


def test_layout() -> None:
    check(sys.executable, "-m", "ruff", "format", "-q", "--check", ".")


def test_types() -> None:
    check(sys.executable, "-m", "mypy")


def scripts(*shells: str) -> list[str]:
    """The scripts that start with one of these interpreters."""
    found = []
    for path in tracked():
        with path.open("rb") as file:
            first = file.readline(80).decode(errors="replace").strip()
        if first.startswith("#!") and first[2:].strip() in shells:
            found.append(str(path))
    return found


BUSYBOX = {"SC2187", "SC3028", "SC3045", "SC2034"}
"""What busybox's shell can and dash, which shellcheck takes it for, cannot: EPOCHREALTIME, read -t."""
ELSEWHERE = {"SC2174"}
"""mkdir -m -p: only the last directory gets the mode, which is what is meant where its parents exist."""


@needs("shellcheck")
def test_shell_scripts() -> None:
    plain = scripts("/bin/sh", "/bin/bash", "/usr/bin/env bash")
    assert plain
    check("shellcheck", "--severity=warning", f"--exclude={','.join(sorted(ELSEWHERE))}", *plain)


@needs("shellcheck")
def test_busybox_scripts() -> None:
    small = scripts("/bin/busybox sh")
    assert small
    check("shellcheck", "--severity=warning", "--shell=dash", f"--exclude={','.join(sorted(BUSYBOX))}", *small)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_can_be_read(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} not installed")
    script = tmp_path / f"storkit.{shell}"
    script.write_text(getattr(completion, shell)())
    check(shell, "--no-execute" if shell == "fish" else "-n", str(script))


def complete(line: str, names: Path) -> list[str]:
    """What bash offers after `line`, with a `storkit` that knows the volume `web`."""
    fake = names / "storkit"
    fake.write_text('#!/bin/sh\n[ "$*" = "names volumes" ] && echo web\n')
    fake.chmod(0o755)
    words = [word or "''" for word in line.split(" ")]
    script = (
        f"{completion.bash()}\nPATH={names}:$PATH\nCOMP_WORDS=({' '.join(words)})\n"
        f"COMP_CWORD={len(words) - 1}\n_storkit\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    return check("bash", "--norc", text=script).split()


@needs("bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("storkit ", {*NOUNS, *(command.verb for command in COMMANDS if not command.noun)}),
        ("storkit vol", {"volume"}),
        ("storkit migrate ", {"run", "prepare", "finish", "abort", "status", "cleanup"}),
        ("storkit volume show ", {"web"}),
        ("storkit volume clone --s", {"--size"}),
        ("storkit -v migrate ru", {"run"}),
    ],
)
def test_bash_completes(line: str, offered: set[str], tmp_path: Path) -> None:
    flags = {flag for each in GLOBAL for flag in each.flags}
    found = {word for word in complete(line, tmp_path) if not (line.endswith(" ") and word.startswith("--"))} - flags
    assert found == offered


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("man") / "storkit.1"
    path.write_text(manpage.page())
    return path


@needs("groff")
def test_the_manual_page_is_rendered_without_warnings(page: Path) -> None:
    check("groff", "-man", "-Tutf8", "-ww", "-z", str(page))


@needs("man")
def test_man_shows_every_command_and_option(page: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "120", "MANROFFOPT": "-c"}
    done = subprocess.run(
        ["man", "--warnings", "-P", "cat", "-l", str(page)],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for command in COMMANDS:
        start = f"{command.noun} {command.verb}".strip()
        assert any(line == start or line.startswith(f"{start} ") for line in lines), start
    words = set(done.stdout.replace(",", " ").split())
    wanted = {flag for command in COMMANDS for each in command.args for flag in each.flags if flag.startswith("-")}
    assert wanted <= words


def test_nothing_committed_is_long_or_temporary() -> None:
    odd = [str(path) for path in tracked() if path.suffix in (".orig", ".rej", ".pyc", ".swp")]
    assert odd == []
