"""`storkit migrate ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.guest import matching, one_or_all
from storkit.cli.session import Session
from storkit.cli.volume import proof_line
from storkit.core import codec
from storkit.core.errors import Unsupported

if TYPE_CHECKING:
    from argparse import Namespace

    from storkit.api import GuestView, Migrated


def run(session: Session, options: Namespace) -> int:
    """The exit status of the first that could not be moved."""
    names = matching(session, options.names)
    if one_or_all([True], options.names) is True:
        done = session.site.migrate.run(names[0], options.to)
        _report(session, done, moved_line(done))
        return 0
    data: list[dict[str, Any]] = []
    lines, worst = [], 0
    for each in session.site.migrate.run_all(names, options.to, options.at_once):
        if each.error:
            data.append({"guest": each.guest, "error": each.error.to_json()})
            output.explain(each.error)
            worst = worst or each.error.exit_code
        elif each.done:
            data.append(moved_data(each.done))
            lines.append(moved_line(each.done))
        else:
            data.append({"guest": each.guest, "to": options.to, "plan": "", "migration": None})
            lines.append(f"{each.guest} runs on {options.to} already")
    session.result(data, "\n".join(lines))
    return worst


def moved_line(done: Migrated) -> str:
    """A guest that has moved, for people."""
    moved = done.moved
    assert moved is not None
    down = "" if moved.downtime_ms is None else f", down for {moved.downtime_ms} ms"
    return f"{done.guest} runs on {done.to}: moved in {moved.total_ms} ms{down}"


def moved_data(done: Migrated) -> dict[str, Any]:
    """A guest that has moved, or may, for scripts."""
    return {"guest": done.guest, "to": done.to, "plan": done.plan, "proof": codec.dump(done.proofs),
            "migration": codec.dump(done.moved), "warnings": done.warnings}  # fmt: skip


def prepare(session: Session, options: Namespace) -> None:
    done = session.site.migrate.prepare(options.name, options.to)
    _report(
        session,
        done,
        f"{done.to} is ready and may write; move {done.guest} there, then: storkit migrate finish "
        f"{done.guest} (or: storkit migrate abort {done.guest})",
    )


def _report(session: Session, done: Migrated, line: str) -> None:
    session.result(moved_data(done), "\n".join([*(proof_line(proof) for proof in done.proofs), line]))


def finish(session: Session, options: Namespace) -> None:
    _settled(session, session.site.migrate.finish(options.name))


def cleanup(session: Session, options: Namespace) -> None:
    _settled(session, session.site.migrate.cleanup(options.name))


def abort(session: Session, options: Namespace) -> None:
    finish(session, options)


def _settled(session: Session, what: GuestView) -> None:
    here = ", ".join(what.running)
    text = f"{what.name} runs on {here}, which alone may write" if here else f"{what.name} runs nowhere"
    session.result({"guest": what.name, "places": what.places}, text)


def status(session: Session, options: Namespace) -> None:
    rows: list[tuple[object, ...]] = []
    data: list[dict[str, Any]] = []
    for each in session.site.migrate.status(options.name or ""):
        what = each.view
        if what is None:
            if each.error and not isinstance(each.error, Unsupported):
                rows.append((each.name, "unknown", "unknown", "unknown"))
                data.append({"guest": each.name, "error": each.error.to_json()})
            continue
        window = "open" if each.window else "closed"
        rows.append((each.name, what.shown, ", ".join(each.writers) or "nobody", window))
        data.append(
            {
                "guest": each.name,
                "places": what.places,
                "reasons": what.reasons,
                "writers": each.writers,
                "window": each.window,
                "exports": codec.dump([*what.exports, *what.root_exports]),
            }
        )
    session.result(data, output.table(("GUEST", "STATE", "WRITERS", "WINDOW"), rows))
