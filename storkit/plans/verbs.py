"""The verbs of plans, by name (VERBS): those of volumes, exports, attachments and definitions, and fences.

What a verb is: storkit.plans.verb. Those that move a guest: storkit.plans.moves.
"""

from __future__ import annotations

from typing import Any

from storkit.core import codec, registry
from storkit.core.backend import refuse_broken
from storkit.core.errors import Conflict, Unsafe
from storkit.core.model import Attachment, Client, Evidence, guest_of
from storkit.plans import elsewhere
from storkit.plans.moves import Confirm, Receive, Send
from storkit.plans.plan import Step
from storkit.plans.proof import Comparison, same_disk
from storkit.plans.verb import Run, Verb, names, uuids


class Make(Verb):
    """create, clone, snapshot: undone by deleting the volumes that this plan made, known by their UUIDs."""

    def find(self, run: Run, step: Step) -> Any:
        there = run.call(step.host, step.target, "find", names=names(step))
        return [volume["uuid"] for volume in there]

    def undo(self, run: Run, step: Step, before: Any) -> None:
        made = [volume for volume in step.args["volumes"] if volume["uuid"] not in before]
        there = {volume["uuid"] for volume in run.call(step.host, step.target, "find", names=names(step))}
        run.call(step.host, step.target, "delete", volumes=[v for v in made if v["uuid"] in there])

    def by_hand(self, step: Step) -> str:
        return f"storkit volume delete {' '.join(names(step))}"


class Relabel(Verb):
    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find", names=names(step))

    def undo(self, run: Run, step: Step, before: Any) -> None:
        run.call(step.host, step.target, "relabel", volumes=before)


class Final(Verb):
    """delete, resize: nothing brings the bytes back."""

    undoable = False


class Fill(Verb):
    """Undone by deleting the volume, which the step that made it does."""


class ExportVerb(Verb):
    """export, unexport: who had an export before, and who could write."""

    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find_exports", volumes=uuids(step))

    def act(self, run: Run, step: Step) -> Any:
        if step.verb == "unexport":
            volumes, clients = step.args["volumes"], step.args["clients"]
            return run.call(step.host, step.target, "unexport", volumes=volumes, clients=clients)
        clients = [client(run, step.host, name, step.args.get("addresses")) for name in step.args["clients"]]
        return run.call(step.host, step.target, "export", volumes=step.args["volumes"], clients=clients)

    def undo(self, run: Run, step: Step, before: Any) -> None:
        for volume in step.args["volumes"]:
            had = {export["client"]: export for export in before if export["uuid"] == volume["uuid"]}
            for name in step.args["clients"]:
                if name not in had:
                    run.call(step.host, step.target, "unexport", volumes=[volume], clients=[name])
                else:
                    clients = [client(run, step.host, name, step.args.get("addresses"))]
                    run.call(step.host, step.target, "export", volumes=[volume], clients=clients)
            writers = sorted(name for name, export in had.items() if export["writable"])
            if step.verb == "unexport" and writers:
                run.call(step.host, step.target, "set_writers", volumes=[volume], hosts=writers)

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit detach {name} --on {c}" for name in names(step) for c in step.args["clients"])


class CutOffVerb(ExportVerb):
    """End an export to a client that nobody asks. As a fence, it is repeated and never put back: what the client did
    meanwhile nobody has seen."""

    undoable = False

    def act(self, run: Run, step: Step) -> Any:
        volumes, clients = step.args["volumes"], step.args["clients"]
        return run.call(step.host, step.target, "unexport", volumes=volumes, clients=clients)

    def by_hand(self, step: Step) -> str:
        return ""

    def again(self, step: Step) -> str:
        return super().by_hand(step)


class SetWriters(Verb):
    """The server decides; where a transport's clients have to take a right up, each that has it is told to."""

    def needs(self, step: Step) -> set[str]:
        return super().needs(step) | (set(step.args["hosts"]) if self._claims(step) else set())

    def act(self, run: Run, step: Step) -> Any:
        self._set(run, step, step.args["volumes"], step.args["hosts"])

    def _set(self, run: Run, step: Step, volumes: list[Any], hosts: list[str]) -> None:
        run.call(step.host, step.target, "set_writers", volumes=volumes, hosts=hosts)
        if self._claims(step):
            for host in hosts:
                run.call(host, step.target, "claim", volumes=volumes, writers=hosts)

    def _claims(self, step: Step) -> bool:
        return registry.transport(step.target.partition(":")[2]).claims

    def find(self, run: Run, step: Step) -> Any:
        exports = run.call(step.host, step.target, "find_exports", volumes=uuids(step))
        return {
            uuid: sorted(export["client"] for export in exports if export["uuid"] == uuid and export["writable"])
            for uuid in uuids(step)
        }

    def undo(self, run: Run, step: Step, before: Any) -> None:
        for volume in step.args["volumes"]:
            exports = run.call(step.host, step.target, "find_exports", volumes=[volume["uuid"]])
            if exports or before[volume["uuid"]]:
                self._set(run, step, [volume], before[volume["uuid"]])


class Attach(Verb):
    """attach, detach. The offer, with its credential, is fetched from the home host when needed, and never kept."""

    def find(self, run: Run, step: Step) -> Any:
        found = run.call(step.host, step.target, "find_attachments", volumes=uuids(step))
        return [attachment["uuid"] for attachment in found]

    def act(self, run: Run, step: Step) -> Any:
        return self._attach(run, step, step.args["volumes"]) if step.verb == "attach" else self._detach(run, step)

    def undo(self, run: Run, step: Step, before: Any) -> None:
        had = [volume for volume in step.args["volumes"] if volume["uuid"] in before]
        had_not = [volume for volume in step.args["volumes"] if volume["uuid"] not in before]
        if had and step.verb == "detach":
            self._attach(run, step, had)
        if had_not:
            run.call(step.host, step.target, "detach", volumes=had_not)

    def _attach(self, run: Run, step: Step, volumes: list[Any]) -> Any:
        offers = run.call(step.peer, step.target, "offers", volumes=volumes, client=step.host)
        strange = [offer["socket"] or offer["path"] for offer in offers if offer["socket"] or offer["path"]]
        same = run.same_machine(step.peer, step.host)
        if strange and not same:
            raise Unsafe(
                f"host {step.peer} offers {strange[0]} to host {step.host}, which is on another machine",
                "believe nothing that it says until you know why",
            )
        for offer in offers:
            elsewhere.refuse(offer, run.doors(step.peer, step.target), step.peer, step.host, same)
        return run.call(step.host, step.target, "attach", offers=offers)

    def _detach(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "detach", volumes=step.args["volumes"])

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit detach {name} --on {step.host}" for name in names(step))


class Prove(Verb):
    """Evidence from every host in `hosts`, compared. The result is what was compared, for people and scripts."""

    question = True
    ROUNDS = 5
    """A guest that writes can change a block between two readings: differing blocks are read again, this often."""

    def needs(self, step: Step) -> set[str]:
        return set(step.args["hosts"])

    def act(self, run: Run, step: Step) -> Any:
        return [self._prove(run, step, volume) for volume in step.args["volumes"]]

    def _prove(self, run: Run, step: Step, volume: Any) -> Any:
        hosts, name = step.args["hosts"], volume["name"]
        comparison = Comparison()
        offsets: list[int] | None = None
        for _ in range(self.ROUNDS):
            asked = {"volumes": [volume], "offsets": offsets}
            said = [run.call(host, step.target, "evidence", **asked) for host in hosts]
            seen = [codec.load(list[Evidence], evidence)[0] for evidence in said]
            same_disk(name, seen)
            offsets = comparison.add(seen)
            if not offsets:
                break
        return {
            "volume": name,
            "uuid": volume["uuid"],
            "hosts": hosts,
            "identity": seen[0].identity,
            "size": seen[0].size,
            "blocks": comparison.conclude(name, hosts),
        }


class Define(Verb):
    """define, undefine: the guest's configuration on a host, rendered from its attachments there."""

    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find", guests=[step.args["guest"]["name"]])

    def act(self, run: Run, step: Step) -> Any:
        return self._define(run, step) if step.verb == "define" else self._undefine(run, step)

    def undo(self, run: Run, step: Step, before: Any) -> None:
        if step.verb == "define" and not before:
            self._undefine(run, step)
        if step.verb == "undefine" and before:
            self._define(run, step)

    def _define(self, run: Run, step: Step) -> Any:
        found = [
            attachment
            for transport in dict.fromkeys(step.args["transports"])
            for attachment in run.call(step.host, transport, "find_attachments", volumes=uuids(step))
        ]
        sources = {attachment["uuid"]: attachment["source"] for attachment in found}
        gone = [volume["name"] for volume in step.args["volumes"] if volume["uuid"] not in sources]
        if gone:
            raise Conflict(f"{', '.join(gone)} is not attached on {step.host}", "storkit status")
        refuse_broken(codec.load(list[Attachment], found, step.host, strict=False))
        disks = [sources[uuid] for uuid in uuids(step)]
        return run.call(
            step.host, step.target, "define", guest=step.args["guest"], disks=disks, machine=step.args["machine"]
        )

    def _undefine(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "undefine", name=step.args["guest"]["name"])


class Start(Verb):
    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find", guests=[step.args["name"]])

    def undo(self, run: Run, step: Step, before: Any) -> None:
        ran = any(state["status"] in ("running", "paused") for state in before)
        if not ran:
            run.call(step.host, step.target, "stop", name=step.args["name"], force=True)

    def by_hand(self, step: Step) -> str:
        return f"storkit guest stop {step.args['name']} --force"


class Stop(Verb):
    """A stopped guest starts again by `guest start`, not by rollback: what it was doing is gone."""

    undoable = False


class Fence(Verb):
    """fence, unfence: a person decides either. Nothing but the other command undoes what is done, least of all a
    storage host that failed: a host that was fenced could be about to write."""

    undoable = False

    def needs(self, step: Step) -> set[str]:
        return set()  # one storage host that is silent keeps none of the others from cutting a host off

    def by_hand(self, step: Step) -> str:
        return f"storkit {'unfence' if step.verb == 'fence' else 'fence'} {step.args['client']}"

    def again(self, step: Step) -> str:
        return f"storkit {step.verb} {step.args['client']}"


class DeclareOff(Fence):
    """declare_off, withdraw_off: a person's word that a host is off, kept by hosts that answer (hosts/declared.py)."""

    def by_hand(self, step: Step) -> str:
        other = "unfence {}" if step.verb == "declare_off" else "fence {} --confirmed-off"
        return f"storkit {other.format(step.args['client'])}"

    def again(self, step: Step) -> str:
        this = "fence {} --confirmed-off" if step.verb == "declare_off" else "unfence {}"
        return f"storkit {this.format(step.args['client'])}"


def client(run: Run, home: str, name: str, guests: dict[str, str] | None = None) -> Any:
    """The Client record, as JSON, of host `name` for servers of host `home`; a guest's has its address in `guests`."""
    if guest_of(name):
        return codec.dump(Client(name, False, (guests or {}).get(name, "")))
    same = run.same_machine(home, name)
    return codec.dump(Client(name, same, run.address(name), "" if same else run.source(name, home)))


VERBS: dict[str, Verb] = {
    "create": Make(),
    "import_tree": Make(),
    "clone": Make(),
    "snapshot": Make(),
    "fill": Fill(),
    "relabel": Relabel(),
    "resize": Final(),
    "delete": Final(),
    "export_image": Verb(),
    "export": ExportVerb(),
    "unexport": ExportVerb(),
    "cut_off": CutOffVerb(),
    "set_writers": SetWriters(),
    "attach": Attach(),
    "detach": Attach(),
    "prove": Prove(),
    "define": Define(),
    "undefine": Define(),
    "start": Start(),
    "stop": Stop(),
    "receive": Receive(),
    "send": Send(),
    "confirm": Confirm(),
    "resume": Verb(),
    "retire": Verb(),
    "wake": Verb(),
    "fence": Fence(),
    "unfence": Fence(),
    "declare_off": DeclareOff(),
    "withdraw_off": DeclareOff(),
}
