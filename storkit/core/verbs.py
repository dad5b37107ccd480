"""The verbs of plans: how each looks before it acts (`find`), acts, and takes itself back (`undo`).

Idempotence, resume, rollback and dry run are the engine's, written once; a verb only says what it saw and how to
restore that. `find` may change nothing. `undo` restores what `find` saw, and is itself idempotent.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from storkit.core import codec, registry
from storkit.core.backend import Client
from storkit.core.errors import CommandFailed, Conflict, HostUnreachable, StorkitError, TimedOut, Unsafe
from storkit.core.model import Evidence, GuestState, Volume, guest_of
from storkit.core.plan import Step
from storkit.core.proof import Comparison, same_disk


class Run(Protocol):
    """What a verb may use of the engine."""

    def call(self, host: str, target: str, verb: str, **args: Any) -> Any:
        """Carry out a backend's verb on a host (JSON values in and out)."""

    def result(self, step: str) -> Any:
        """The result of an earlier step of the plan."""

    def same_machine(self, one: str, other: str) -> bool:
        """Whether two hosts share Unix sockets."""

    def address(self, host: str) -> str:
        """Where a host comes from, as the inventory has it; empty: it says nothing."""

    def source(self, host: str, towards: str) -> str:
        """The IP address that `host` says it comes from when it connects to the host `towards`; empty: it is silent."""


class Verb:
    """The default: call the backend's verb of the same name with the step's arguments."""

    undoable: ClassVar[bool] = True
    """False: said in the plan before anything runs."""
    question: ClassVar[bool] = False
    """True: it changes nothing. A plan of questions leaves nothing behind, whatever becomes of it."""
    barrier: ClassVar[bool] = False
    """True: if the undo fails, nothing before it is undone, since that would break what still stands on it."""

    def needs(self, step: Step) -> set[str]:
        """The hosts that must answer, or the plan is not begun."""
        return {host for host in (step.host, step.peer) if host}

    def find(self, run: Run, step: Step) -> Any:
        """What is there before the step acts, as much as `undo` needs."""
        return None

    def act(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, step.verb, **step.args)

    def undo(self, run: Run, step: Step, before: Any) -> None:
        """Restore `before`."""

    def by_hand(self, step: Step) -> str:
        """The command to type if the undo fails."""
        return ""

    def again(self, step: Step) -> str:
        """The command that goes on with what this verb's plan could not do everywhere. What it did is never put back
        by itself; empty: it is put back, or resumed."""
        return ""


def _names(step: Step) -> list[str]:
    return [volume["name"] for volume in step.args["volumes"]]


def _uuids(step: Step) -> list[str]:
    return [volume["uuid"] for volume in step.args["volumes"]]


class Make(Verb):
    """create, clone, snapshot: undone by deleting the volumes that this plan made, known by their UUIDs."""

    def find(self, run: Run, step: Step) -> Any:
        there = run.call(step.host, step.target, "find", names=_names(step))
        return [volume["uuid"] for volume in there]

    def undo(self, run: Run, step: Step, before: Any) -> None:
        made = [volume for volume in step.args["volumes"] if volume["uuid"] not in before]
        there = {volume["uuid"] for volume in run.call(step.host, step.target, "find", names=_names(step))}
        run.call(step.host, step.target, "delete", volumes=[v for v in made if v["uuid"] in there])

    def by_hand(self, step: Step) -> str:
        return f"storkit volume delete {' '.join(_names(step))}"


class Relabel(Verb):
    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find", names=_names(step))

    def undo(self, run: Run, step: Step, before: Any) -> None:
        run.call(step.host, step.target, "relabel", volumes=before)


class Final(Verb):
    """delete, resize: nothing brings the bytes back."""

    undoable = False


class Fill(Verb):
    """Undone by deleting the volume, which the step that made it does."""


class Export(Verb):
    """export, unexport: who had an export before, and who could write."""

    def find(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "find_exports", volumes=_uuids(step))

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
        return "; ".join(f"storkit detach {name} --on {c}" for name in _names(step) for c in step.args["clients"])


class CutOff(Export):
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
        exports = run.call(step.host, step.target, "find_exports", volumes=_uuids(step))
        return {
            uuid: sorted(export["client"] for export in exports if export["uuid"] == uuid and export["writable"])
            for uuid in _uuids(step)
        }

    def undo(self, run: Run, step: Step, before: Any) -> None:
        for volume in step.args["volumes"]:
            exports = run.call(step.host, step.target, "find_exports", volumes=[volume["uuid"]])
            if exports or before[volume["uuid"]]:
                self._set(run, step, [volume], before[volume["uuid"]])


class Attach(Verb):
    """attach, detach. The offer, with its credential, is fetched from the home host when needed, and never kept."""

    def find(self, run: Run, step: Step) -> Any:
        found = run.call(step.host, step.target, "find_attachments", volumes=_uuids(step))
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
        if strange and not run.same_machine(step.peer, step.host):
            raise Unsafe(
                f"host {step.peer} offers {strange[0]} to host {step.host}, which is on another machine",
                "believe nothing that it says until you know why",
            )
        return run.call(step.host, step.target, "attach", offers=offers)

    def _detach(self, run: Run, step: Step) -> Any:
        return run.call(step.host, step.target, "detach", volumes=step.args["volumes"])

    def by_hand(self, step: Step) -> str:
        return "; ".join(f"storkit detach {name} --on {step.host}" for name in _names(step))


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
            for attachment in run.call(step.host, transport, "find_attachments", volumes=_uuids(step))
        ]
        sources = {attachment["uuid"]: attachment["source"] for attachment in found}
        gone = [volume["name"] for volume in step.args["volumes"] if volume["uuid"] not in sources]
        if gone:
            raise Conflict(f"{', '.join(gone)} is not attached on {step.host}", "storkit status")
        disks = [sources[uuid] for uuid in _uuids(step)]
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


class Receive(Verb):
    """The destination's waiting process. Undone by ending it, unless the guest runs there."""

    def act(self, run: Run, step: Step) -> Any:
        return receive(run, step.host, step.peer, step.target, step.args["name"])

    def undo(self, run: Run, step: Step, before: Any) -> None:
        run.call(step.host, step.target, "retire", name=step.args["name"])


class Send(Verb):
    """The live migration itself, from `host` to `peer`. Undone by migrating back.

    The guest goes on at the destination only when the source says that it has let go: a network cut in the switchover
    cannot leave it running on both. A barrier: while it runs at the destination, its disk must not be taken from there.
    """

    barrier = True

    def act(self, run: Run, step: Step) -> Any:
        name, paused = step.args["name"], step.args["paused"]
        uri = run.result(step.args["receive"])
        if guest_on(run, step.peer, step.target, name) == "incoming":
            # Who listened there may have ended with a command that was killed.
            uri = receive(run, step.peer, step.host, step.target, name)
        return self._move(run, step.target, name, step.host, step.peer, uri, not paused)

    def _move(self, run: Run, target: str, name: str, source: str, destination: str, uri: str, go_on: bool) -> Any:
        credential = run.call(destination, target, "credential", name=name)
        try:
            result = run.call(source, target, "send", name=name, uri=uri, credential=credential)
        except HostUnreachable:
            raise
        except StorkitError as error:
            self._see_that_it_runs(run, target, name, source, destination, error)
            if not isinstance(error, CommandFailed):
                raise
            said = run.call(destination, target, "messages", name=name)
            raise CommandFailed(
                error.argv, error.status, f"{said}\n{error.stderr}" if said else error.stderr,
                host=error.host, hint=error.hint,
            ) from None  # fmt: skip
        run.call(destination, target, "resume", name=name, run=go_on)
        return result

    def _see_that_it_runs(
        self, run: Run, target: str, name: str, source: str, destination: str, error: StorkitError
    ) -> None:
        """After a move that failed. Raises StorkitError: the guest is gone; nobody has its memory any more."""
        if guest_on(run, source, target, name) != "stopped":
            return
        if guest_on(run, destination, target, name) in ("stopped", "incoming"):
            raise StorkitError(
                f"guest {name} is gone: its process on {source} ended while it was moved to {destination}"
                f" ({error.message}); its disks are as it left them",
                f"storkit guest start {name} --on {source}",
            ) from None

    def undo(self, run: Run, step: Step, before: Any) -> None:
        name, origin, destination = step.args["name"], step.host, step.peer
        go_on = not step.args["paused"]
        # It goes on by itself when its coordinator is killed: between two looks the guest could still move.
        try:
            run.call(origin, step.target, "cancel", name=name)
        except TimedOut:
            # A hypervisor that hangs may be waiting for the destination's: that is ended first, if nothing runs there.
            run.call(destination, step.target, "retire", name=name)
            run.call(origin, step.target, "cancel", name=name)
        there = guest_on(run, destination, step.target, name)
        here = guest_on(run, origin, step.target, name)
        if here in ("running", "paused"):
            if there in ("running", "paused"):
                raise Unsafe(f"guest {name} runs on {origin} and on {destination}", f"storkit migrate status {name}")
            return
        if there == "arrived":
            run.call(destination, step.target, "resume", name=name, run=go_on)
        elif there not in ("running", "paused"):
            if here == "stopped":
                return
            raise Unsafe(
                f"guest {name} is {there} on {destination} and {here} on {origin}",
                f"storkit plan resume, or storkit guest stop {name} --force and start it again",
            )
        run.call(origin, step.target, "retire", name=name)
        uri = receive(run, origin, destination, step.target, name)
        self._move(run, step.target, name, destination, origin, uri, go_on)

    def by_hand(self, step: Step) -> str:
        return f"storkit migrate cleanup {step.args['name']}"


class Confirm(Verb):
    """The guest runs on `host` and on none of `others`; nothing that follows happens otherwise."""

    def act(self, run: Run, step: Step) -> Any:
        name = step.args["name"]
        run.call(step.host, step.target, "cancel", name=name)
        here = guest_on(run, step.host, step.target, name)
        if here not in ("running", "paused"):
            raise Unsafe(
                f"guest {name} is {here} on {step.host}, where it should run", f"storkit migrate status {name}"
            )
        for other in step.args["others"]:
            there = guest_on(run, other, step.target, name)
            if there in ("running", "unknown") or (there == "paused" and here == "running"):
                raise Unsafe(
                    f"guest {name} is {there} on {other} while it runs on {step.host}",
                    f"storkit migrate status {name}; stop one of them by hand",
                )
        return {"running": step.host}


def receive(run: Run, destination: str, source: str, target: str, name: str) -> Any:
    """Have `destination` wait for the guest from `source`; the URI to send to."""
    same = run.same_machine(destination, source)
    told = "" if same else run.source(source, destination)
    known = {"same_machine": same, "source": run.address(source), "told": told}
    return run.call(destination, target, "receive", name=name, **known)


def guest_on(run: Run, host: str, target: str, name: str) -> str:
    """The status of a guest on a host, `stopped` if it is not known there; `unknown` if the host is silent."""
    try:
        states = codec.load(list[GuestState], run.call(host, target, "find", guests=[name]))
    except HostUnreachable:
        return "unknown"
    return states[0].status if states else "stopped"


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
    "export": Export(),
    "unexport": Export(),
    "cut_off": CutOff(),
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


def volume_args(volumes: list[Volume]) -> Any:
    """Volumes as a step's argument."""
    return codec.dump(volumes)


def explain(error: StorkitError) -> str:
    """An error as one line."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
