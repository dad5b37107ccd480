"""`storkit plan ...`."""

from __future__ import annotations

from argparse import Namespace

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec
from storkit.core.errors import StorkitError
from storkit.plans.journal import Journals


def list_(session: Session, options: Namespace) -> None:
    journals = Journals(session.state / "plans")
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, object]] = []
    for plan in journals.ids():
        try:
            record = journals.read(plan)
        except StorkitError as error:
            session.warn(f"storkit: {error.message}")
            rows.append((plan, "damaged", "", ""))
            data.append({"id": plan, "status": "damaged"})
            continue
        total, done = len(record.plan.steps), len(record.done.keys() - record.undone)
        rows.append((plan, record.status, f"{done}/{total}", record.plan.title))
        data.append({"id": plan, "status": record.status, "done": done, "steps": total, "title": record.plan.title})
    session.result(data, output.table(("PLAN", "STATUS", "STEPS", "WHAT"), rows))


def show(session: Session, options: Namespace) -> None:
    record = Journals(session.state / "plans").read(options.id)
    lines = [output.shown(f"{record.plan.title}: {record.status}")]
    for step in record.plan.steps:
        if step.id in record.undone:
            state = "undone"
        elif step.id in record.failed:
            state = f"failed: {record.failed[step.id]['message']}"
        elif step.id in record.done:
            state = "done"
        else:
            state = "begun" if step.id in record.started else "to do"
        lines.append(output.shown(f"  {step.id:5} {step.host}: {step.title}: {state}"))
    data = {
        "plan": codec.dump(record.plan),
        "status": record.status,
        "started": sorted(record.started),
        "done": record.done,
        "failed": record.failed,
        "undone": sorted(record.undone),
    }
    session.result(data, "\n".join(lines))


def resume(session: Session, options: Namespace) -> None:
    results = session.engine().resume(options.id)
    session.result({"plan": options.id, "results": results}, f"{options.id}: completed")


def rollback(session: Session, options: Namespace) -> None:
    undone = session.engine().rollback(options.id)
    session.result({"plan": options.id, "undone": undone}, f"{options.id}: rolled back")
