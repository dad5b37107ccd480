"""The documentation says what is so: the tour runs, every key and code is there, every link leads somewhere.

`pytest tests/e2e/test_docs.py --regenerate` writes the tour's output anew from what is printed now; read the diff.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storkit.cli.commands import COMMANDS
from storkit.cli.manual.page import KINDS
from storkit.core import inventory, registry
from storkit.core.backend import Backend, Hypervisor, Pool, Transport
from storkit.core.errors import Problems, StorkitError
from storkit.core.inventory import Defaults

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")])
TOUR = "/tmp/tour"


# The tour of README.md: every ```console block, in order, in one shell.

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass
class Said:
    """One command of the tour, what the page says it prints, and what it printed."""

    command: str
    expected: str
    printed: str = ""
    status: int = 0


def commands(block: str) -> list[Said]:
    """The commands of a console block; lines without a prompt are the output of the one before."""
    found: list[Said] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(Said(line[2:], ""))
        else:
            found[-1].expected += line + "\n"
    return found


def stable(text: str) -> list[str]:
    """Lines without what differs from run to run: times, UUIDs, plan numbers, column widths, the kernel's version."""
    for pattern, word in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"UUID:[0-9a-f]{16}", "UUID:INSTANCE"),
        (r"\b\d{8}-\d{6}-[0-9a-f]{5}\b", "PLAN"),
        (r"\d+\.\d{3} s", "SECONDS"),
        (r"\d+ ms", "MS"),
        # Chosen by the UUID: on a small disk two of them may be one.
        (r"\d+ blocks alike", "BLOCKS alike"),
        (r"\b(reflink|copy)\b", "CLONED"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return text.strip().splitlines()


def run_all(said: list[Said], place: str) -> None:
    """Run the commands one after the other in one bash, with /tmp/tour standing for `place`."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, arguments in (("storkit", " -m storkit"), ("python3", "")):
            shim = Path(scratch, name)
            shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            shim.chmod(0o755)
        script = ["exec 2>&1"]
        for one in said:
            mark = r"printf '\001%s\001' $status; (exit $status)"
            script += [one.command.replace(TOUR, place), f"status=$?; {mark}"]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "STORKIT_"))},
            "PATH": f"{scratch}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            ["bash", "-s"], input="\n".join(script), capture_output=True, text=True, cwd=ROOT, env=environment,
            timeout=120, check=False,
        )  # fmt: skip
    parts = done.stdout.split("\x01")
    assert len(parts) == 2 * len(said) + 1, f"the shell ended early: {done.stdout[-500:]} {done.stderr}"
    for number, one in enumerate(said):
        one.printed = parts[2 * number].replace(place, TOUR)
        one.status = int(parts[2 * number + 1])


@pytest.fixture
def place() -> Iterator[str]:
    """A path as long as the tour's, for the columns; what a failed tour left running there is ended by its own pid."""
    directory = f"/tmp/t{os.urandom(2).hex()[:3]}"
    assert len(directory) == len(TOUR) and not Path(directory).exists()
    yield directory
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if directory.encode() in line and b"qemu" in line:
            os.kill(int(entry.name), 9)
    shutil.rmtree(directory, ignore_errors=True)


def test_the_tour_prints_what_the_readme_says(place: str, regenerate: bool) -> None:
    if shutil.which("qemu-system-x86_64") is None or shutil.which("qemu-storage-daemon") is None:
        pytest.skip("qemu-system-x86 not installed")
    page = ROOT / "README.md"
    text = page.read_text()
    blocks = [commands(match[1]) for match in BLOCK.finditer(text)]
    said = [one for block in blocks for one in block]
    assert len(said) > 20
    run_all(said, place)
    assert not Path(place).exists()
    if regenerate:
        bodies = iter("".join(f"$ {one.command}\n{one.printed}" for one in block) for block in blocks)
        page.write_text(BLOCK.sub(lambda _: f"```console\n{next(bodies)}```", text))
        return
    for one, after in zip(said, [*said[1:], None], strict=True):
        asked = after is not None and after.command == "echo $?"
        assert asked or one.status == 0, f"{one.command}: status {one.status}\n{one.printed}"
        assert stable(one.printed) == stable(one.expected), one.command


# Links


def test_all_relative_links_lead_somewhere() -> None:
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                lost.append(f"{page.relative_to(ROOT)}: {target}")
    assert lost == []


def test_every_page_is_reachable_from_the_readme() -> None:
    listed = set(re.findall(r"\(docs/([a-z-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} <= listed


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"\bmake ([a-z]+)(?=`|\s+#|$)", page.read_text(), re.M)}
    assert named and named <= targets


def test_every_command_that_is_named_exists() -> None:
    known = {f"{command.noun} {command.verb}".strip() for command in COMMANDS}
    nouns = {command.noun for command in COMMANDS}
    wrong = []
    for page in PAGES:
        for first, second in re.findall(r"`storkit ([a-z]+)(?: ([a-z]+))?[^`]*`", page.read_text()):
            if first not in known and (first not in nouns or f"{first} {second}" not in known):
                wrong.append(f"{page.name}: storkit {first} {second}")
    assert wrong == []


# Exit codes


def rows(text: str) -> list[list[str]]:
    """The cells of all tables of a page, without their headers."""
    found: list[list[str]] = []
    for line in text.splitlines():
        if re.fullmatch(r"\|[- |]+\|", line):
            found.pop()
        elif line.startswith("|"):
            found.append([cell.strip() for cell in line.split("|")[1:-1]])
    return found


def test_exit_codes_are_those_of_the_errors() -> None:
    page = (DOCS / "exit-codes.md").read_text()
    table = {row[0]: row[1:] for row in rows(page) if row[0].isdigit()}
    for kind in KINDS:
        word, meaning = table.pop(str(kind.exit_code))
        assert word == kind.kind
        if kind is not StorkitError:
            assert meaning == " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    assert set(table) == {"0"}
    every = set(StorkitError.__subclasses__()) | {StorkitError}
    assert every - {Problems} == set(KINDS) and Problems.kind in page


# The inventory


def backends() -> list[type[Backend]]:
    kinds: list[Any] = [Pool, Transport, Hypervisor]
    finders = (registry.pool, registry.transport, registry.hypervisor)
    return [find(name) for kind, find in zip(kinds, finders, strict=True) for name in registry.names(kind)]


def section(text: str, title: str) -> str:
    """The part of a page below a title, to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {title!r}"
    return match[1]


def keys(text: str) -> dict[str, str]:
    """Key to default of a table of keys."""
    return {row[0].strip("`"): row[1].strip("`") for row in rows(text) if re.fullmatch(r"`\w+`", row[0])}


def shown(value: object) -> str:
    """A default as TOML has it."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("backend", backends(), ids=lambda backend: backend.__name__)
def test_every_setting_of_every_backend_is_documented_with_its_default(backend: type[Backend]) -> None:
    title = f'type = "{backend.name}"' if issubclass(backend, Pool) else ""
    title = title or f"[{'transports' if issubclass(backend, Transport) else 'hypervisors'}.{backend.name}]"
    fields = {
        field.name: "" if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(backend.Settings)
    }
    if not fields:
        return
    documented = keys(section((DOCS / "inventory.md").read_text(), title))
    assert documented.keys() == fields.keys()
    for name, default in fields.items():
        if default != "" and not isinstance(default, Path):
            assert documented[name] == shown(default), name


def test_every_other_key_of_the_inventory_is_documented() -> None:
    page = (DOCS / "inventory.md").read_text()
    hosts = keys(section(page, "[hosts.NAME]").partition("| url |")[0])
    assert hosts.keys() == {field.name for field in dataclasses.fields(inventory._Host)}
    assert {"host", "hosts", "type", "transport"} == keys(section(page, "[pools.NAME]")).keys()
    defaults = keys(section(page, "[defaults]"))
    assert defaults.keys() == {field.name for field in dataclasses.fields(Defaults)}
    assert set(inventory._SECTIONS) == {"hosts", "pools", "transports", "hypervisors", "defaults"}


def test_the_example_inventories_are_good(tmp_path: Path) -> None:
    page = (DOCS / "inventory.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    parsed = inventory.parse(text, tmp_path / "inventory.toml")
    assert set(parsed.hosts) == {"a", "b"} and parsed.defaults.pool == "fast"
    for block in re.findall(r"```toml\n(.*?)```", "".join(page.read_text() for page in PAGES), re.DOTALL):
        tomllib.loads(block)


# A backend of one file


def test_the_example_backend_passes_the_contract_tests(tmp_path: Path) -> None:
    page = (DOCS / "add-a-backend.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (entry,) = re.findall(r'(\[project\.entry-points\."storkit\.backends"\].*?)```', page, re.DOTALL)
    assert len(code.splitlines()) <= 60
    ((name, module),) = tomllib.loads(entry)["project"]["entry-points"]["storkit.backends"].items()
    (tmp_path / f"{module}.py").write_text(code)
    # What pip writes when it installs a package (packaging.python.org/specifications/entry-points).
    installed = tmp_path / f"{module}-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[storkit.backends]\n{name} = {module}\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    before = set(Path("/dev/shm").glob("storkit-*"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract", "-k", name],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        for left in set(Path("/dev/shm").glob(f"storkit-{name}-*")) - before:
            shutil.rmtree(left)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) >= 25, done.stdout[-2000:] + done.stderr[-500:]
    for text in re.findall(r"```toml\n(\[hosts.*?)```", page, re.DOTALL):
        check = f"from pathlib import Path; from storkit.core.inventory import parse; parse({text!r}, Path('x'))"
        subprocess.run([sys.executable, "-c", check], env=environment, check=True)
    for words in (["check"], ["format", "--check"]):
        argv = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        subprocess.run(argv, check=True, capture_output=True)


def test_python_blocks_of_all_pages_compile() -> None:
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            compile(textwrap.dedent(code), str(page), "exec")
