"""`storkit plan ...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storkit.cli import output
from storkit.cli.session import Session
from storkit.core import codec

if TYPE_CHECKING:
    from argparse import Namespace


def list_(session: Session, options: Namespace) -> None:
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, Any]] = []
    for plan in session.site.plans.listing():
        if plan.error:
            session.say(plan.error.message)
            rows.append((plan.id, plan.status, "", ""))
            data.append({"id": plan.id, "status": plan.status})
            continue
        rows.append((plan.id, plan.status, f"{plan.done}/{plan.steps}", plan.title))
        data.append({"id": plan.id, "status": plan.status, "done": plan.done, "steps": plan.steps, "title": plan.title})
    session.result(data, output.table(("PLAN", "STATUS", "STEPS", "WHAT"), rows))


def show(session: Session, options: Namespace) -> None:
    record = session.site.plans.show(options.id)
    lines = [output.shown(f"{record.plan.title}: {record.status}")]
    for step in record.plan.steps:
        if step.id in record.undone:
            state = "undone"
        elif step.id in record.undoing:
            state = "being taken back"
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
        "undoing": sorted(record.undoing),
    }
    session.result(data, "\n".join(lines))


def resume(session: Session, options: Namespace) -> None:
    results = session.site.plans.resume(options.id)
    session.result({"plan": options.id, "results": results}, f"{options.id}: completed")


def rollback(session: Session, options: Namespace) -> None:
    undone = session.site.plans.rollback(options.id)
    session.result({"plan": options.id, "undone": undone}, f"{options.id}: rolled back")
