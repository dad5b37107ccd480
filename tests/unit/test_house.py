"""The house: imports point down only, without a circle; folders stay small; a class name stands for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import storkit

PACKAGE = Path(storkit.__file__).parent
FACES = "faces"
FLOORS = ["core", "system", "tech", "guests", "hypervisors", FACES, "hosts", "hooks", "plans", "api", "cli"]
"""From the ground up; the faces are the files of the package itself that are backends."""
MOST_FILES = 16
BELOW_TRANSPORTS = ["images", "files", "lvm"]
OUTSIDE = {"storkit", "storkit.__main__"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["storkit", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules of storkit that a file imports, anywhere in it and also for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "storkit":
            assert node.level == 0
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "storkit")


GRAPH = {module: set(imports(path)) - {module} for module, path in MODULES.items()}


def floor(module: str) -> int:
    first = module.split(".")[1]
    return FLOORS.index(first if first in FLOORS else FACES)


def test_imports_point_down() -> None:
    up = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if not {module, other} & OUTSIDE and floor(other) > floor(module)
    ]
    assert not up


def test_the_ground_imports_nothing_else() -> None:
    assert not [
        m for m in MODULES if m.startswith("storkit.core.") for o in GRAPH[m] if not o.startswith("storkit.core")
    ]


def test_the_command_line_uses_nothing_but_the_api() -> None:
    """What may be done is decided below it, for every caller; it knows arguments and output."""
    allowed = ("storkit.api", "storkit.cli", "storkit.core")
    mine = [module for module in MODULES if module.startswith("storkit.cli")]
    assert not [f"{m} -> {o}" for m in mine for o in GRAPH[m] if o not in OUTSIDE and not o.startswith(allowed)]


def test_technologies_do_not_know_each_others_faces() -> None:
    """A face is found by listing; what two technologies share stands in tech/, where neither owns it."""
    faces = {module for module in MODULES if module.count(".") == 1 and floor(module) == FLOORS.index(FACES)} - OUTSIDE
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    known = [f"{m} -> {o}" for m in MODULES for o in GRAPH[m] if o in faces - packages and m not in OUTSIDE]
    assert [edge for edge in known if not edge.startswith(("storkit.api", "storkit.cli"))] == []


def test_rooms_build_on_what_lies_below_every_transport() -> None:
    """images, then files, then lvm; a transport's room imports no other transport's, and nothing below imports one."""

    def level(room: str) -> int:
        return BELOW_TRANSPORTS.index(room) if room in BELOW_TRANSPORTS else len(BELOW_TRANSPORTS)

    def room(module: str) -> str:
        parts = module.split(".")
        return parts[2] if parts[1:2] == ["tech"] and (PACKAGE / "tech" / "/".join(parts[2:3])).is_dir() else ""

    both = [(m, o) for m in MODULES for o in GRAPH[m] if room(m) and room(o) and room(m) != room(o)]
    assert not [f"{m} -> {o}" for m, o in both if level(room(o)) >= level(room(m))]


def test_hypervisors_and_guests_know_no_storage_technology() -> None:
    """They see disk sources: a device, a file, a URI (core.model.DiskSource)."""
    high = [
        module for module in MODULES if module.startswith(("storkit.hypervisors", "storkit.guests", "storkit.system"))
    ]
    assert not [f"{module} -> {o}" for module in high for o in GRAPH[module] if o.startswith("storkit.tech")]


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(GRAPH.get(module, ())):
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_no_folder_is_crowded(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


def test_a_class_name_stands_for_one_class() -> None:
    where = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    assert not {name: places for name, places in where.items() if len(places) > 1}
