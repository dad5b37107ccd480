"""What a host answers, compared with what it was asked.

A host speaks for itself: of its own pools and attachments, of the volumes, clients and guests that it was asked about,
in the order of the question where there is one. Anything else may be a slip or a lie, and is believed by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from storkit.hosts.remote.wire import Malformed

Record = dict[str, Any]


def compared(host: str, target: str, verb: str, args: dict[str, Any], result: Any) -> Any:
    """The result of a verb, of the declared types (answers.py). Raises Malformed: it is not of what was asked."""
    kind, _, name = target.partition(":")
    compare = COMPARED.get((kind, verb))
    for strange in compare(host, name, args, result) if compare else ():
        raise Malformed(f"{verb} of {target}: it answers with {strange}")
    return result


def _told(records: Iterable[Record], **wanted: object) -> Iterator[str]:
    """Where these records have other values than all of them must have."""
    for record in records:
        for key, value in wanted.items():
            if record[key] != value:
                yield f"{key} {record[key]!r}, where {value!r} was asked for"


def _among(records: Iterable[Record], key: str, wanted: Iterable[str] | None) -> Iterator[str]:
    """Where these records are of something that was not asked for (`wanted` None: all were)."""
    known = None if wanted is None else set(wanted)
    for record in records:
        if known is not None and record[key] not in known:
            yield f"{key} {record[key]!r}, which was not asked for"


def _once(records: Iterable[Record], key: str) -> Iterator[str]:
    seen: set[str] = set()
    for record in records:
        if record[key] in seen:
            yield f"{key} {record[key]!r} twice"
        seen.add(record[key])


def _each(records: list[Record], wanted: list[Record], *keys: tuple[str, str]) -> Iterator[str]:
    """Where these records are not one for each that was asked for, in that order; `keys` are those of both."""
    if len(records) != len(wanted):
        yield f"{len(records)} records, where {len(wanted)} were asked for"
    for record, asked in zip(records, wanted, strict=False):
        for key, other in keys:
            if record[key] != asked[other]:
                yield f"{key} {record[key]!r}, where {asked[other]!r} was asked for"


def _uuids(args: Record) -> list[str]:
    return [volume["uuid"] for volume in args["volumes"]]


# Pools


def _volumes(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, pool=pool, host=host)
    yield from _among(result, "name", args.get("names"))
    yield from _once(result, "name")


def _look(host: str, pool: str, args: Record, result: Record) -> Iterator[str]:
    yield from _volumes(host, pool, args, result["volumes"])
    yield from _volumes(host, pool, args, result["damaged"])


def _made(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, pool=pool, host=host)
    yield from _each(result, args["volumes"], ("uuid", "uuid"), ("name", "name"))


def _renamed(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, pool=pool, host=host)
    wanted = [{"uuid": each["uuid"], "name": name} for each, name in zip(args["volumes"], args["names"], strict=True)]
    yield from _each(result, wanted, ("uuid", "uuid"), ("name", "name"))


def _held(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _made(host, pool, args, result)
    for record, asked in zip(result, args["volumes"], strict=False):
        if record["hold"] != (None if "hold" in args else asked["hold"]):
            yield f"another hold of volume {asked['name']} than was asked for"


def _adoptable(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _each(result, args["found"], ("place", "place"))


def _disowned(host: str, pool: str, args: Record, result: list[str]) -> Iterator[str]:
    if len(result) != len(args["volumes"]):
        yield f"{len(result)} places, where {len(args['volumes'])} were asked for"


def _capacity(host: str, pool: str, args: Record, result: Record) -> Iterator[str]:
    yield from _told([result], pool=pool, host=host)


def _kept(host: str, pool: str, args: Record, result: Record) -> Iterator[str]:
    yield from _texts(host, pool, args, result["guests"])


def _texts(host: str, pool: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _among(result, "uuid", args.get("volumes"))
    yield from _once(result, "uuid")
    if wanted := args.get("generation"):
        yield from _told(result, generation=wanted)


# Transports


def _find_exports(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport)
    yield from _among(result, "uuid", args.get("volumes"))


def _look_exports(host: str, transport: str, args: Record, result: Record) -> Iterator[str]:
    yield from _find_exports(host, transport, args, result["exports"])


def _export(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport)
    yield from _among(result, "uuid", _uuids(args))
    yield from _among(result, "client", [client["name"] for client in args["clients"]])


def _taken_over(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport)
    yield from _among(result, "uuid", _uuids(args))


def _offers(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport, client=args["client"])
    yield from _each(result, args["volumes"], ("uuid", "uuid"), ("volume", "name"), ("size", "size"))


def _attach(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _attachments(host, transport, result)
    yield from _each(result, args["offers"], ("uuid", "uuid"), ("volume", "volume"), ("size", "size"))


def _find_attachments(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _attachments(host, transport, result)
    yield from _among(result, "uuid", args.get("volumes"))


def _look_attachments(host: str, transport: str, args: Record, result: Record) -> Iterator[str]:
    yield from _find_attachments(host, transport, args, result["attachments"])


def _attachments(host: str, transport: str, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport, host=host)
    for each in result:
        if each["path"].rpartition("/")[2] != each["volume"]:
            yield f"path {each['path']!r} for volume {each['volume']}"


def _evidence(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, host=host)
    yield from _each(result, args["volumes"], ("volume", "name"))
    offsets = args.get("offsets")
    for each in result:
        strange = [at for at in each["blocks"] if offsets is not None and int(at) not in offsets]
        if strange:
            yield f"a block at {strange[0]}, which was not asked for"


def _sources(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    if result and all(source["kind"] == "block" for source in result):
        yield from _beside(args["offers"], result)
        return
    yield from _told(result, kind="network")
    yield from _each(result, args["offers"], ("export", "name"))


def _beside(offers: list[Record], result: list[Record]) -> Iterator[str]:
    """Where these are not, in that order, the nodes by which the copies of the offered volumes are filled."""
    if len(result) != len(offers):
        yield f"{len(result)} devices, where {len(offers)} were asked for"
    for source, offer in zip(result, offers, strict=False):
        if not source["path"].startswith(f"/dev/mapper/storkit:{offer['volume']}:fill."):
            yield f"{source['path']!r}, which is no copy of volume {offer['volume']}"


def _digests(host: str, transport: str, args: Record, result: list[str]) -> Iterator[str]:
    wanted = -(-max(0, min(args["length"], args["volume"]["size"] - args["offset"])) // args["block"])
    if len(result) != wanted:
        yield f"{len(result)} digests, where {wanted} were asked for"


def _fence(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport, client=args["client"])


def _restore(host: str, transport: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, transport=transport)


# Hypervisors


def _guests(host: str, hypervisor: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, host=host, hypervisor=hypervisor)
    yield from _among(result, "name", args.get("guests"))
    yield from _once(result, "name")


def _start(host: str, hypervisor: str, args: Record, result: Record) -> Iterator[str]:
    yield from _told([result], host=host, hypervisor=hypervisor, name=args["name"])


def _originals(host: str, hypervisor: str, args: Record, result: list[Record]) -> Iterator[str]:
    if [each["name"] for each in result] != list(args["names"]):
        yield "other guests than were asked for"


def _edited(host: str, hypervisor: str, args: Record, result: list[Record]) -> Iterator[str]:
    yield from _told(result, name=args["name"])
    yield from _once(result, "name")


def _saved(host: str, hypervisor: str, args: Record, result: Record) -> Iterator[str]:
    yield from _told([result], hypervisor=hypervisor, name=args["name"])
    asked = args.get("saved", {})
    yield from _told([result], **{key: asked[key] for key in ("guest", "hold", "generations") if key in asked})


def _receive(host: str, hypervisor: str, args: Record, result: str) -> Iterator[str]:
    if result.startswith("unix:") and not args["same_machine"]:
        yield f"{result!r}, a socket of another machine, to send a guest to"


def _forwarded(host: str, hypervisor: str, args: Record, result: Record) -> Iterator[str]:
    for name in result.keys() - set(args["guests"]):
        yield f"guest {name!r}, which was not asked for"


def _of_guest(host: str, hypervisor: str, args: Record, result: Record) -> Iterator[str]:
    yield from _told([result], name=args["name"])


def _console(host: str, hypervisor: str, args: Record, result: Record) -> Iterator[str]:
    words = result["words"]
    if result["kind"] == "socket" and (len(words) != 1 or not words[0].startswith("/") or ":" in words[0]):
        yield f"{words!r} for the path of a socket"
    if not words:
        yield "no program for a console"


# Images


def _laid(host: str, _: str, args: Record, result: list[Record]) -> Iterator[str]:
    slots = {file["path"]: len(file["content"].encode()) for file in args["files"] if file.get("slot")}
    for each in result:
        if slots.get(each["path"]) != each["size"]:
            yield f"a slot {each['path']!r} of {each['size']} bytes, which was not asked for"
        for extent in each["extents"]:
            if extent["offset"] + extent["length"] > args["volume"]["size"]:
                yield f"a place for {each['path']} beyond the end of the disk"


# Hooks


def _entered(host: str, _: str, args: Record, result: Record) -> Iterator[str]:
    yield from _each(result["offers"], [{"name": name} for name in args["names"]], ("volume", "name"))
    yield from _named(host, _, args, result["given"])


def _named(host: str, _: str, args: Record, result: list[str]) -> Iterator[str]:
    for name in set(result) - set(args["names"]):
        yield f"volume {name!r}, which was not asked for"


# Words that a person has said of a host


def _declared(host: str, _: str, args: Record, result: Record) -> Iterator[str]:
    yield from _told([result], host=args["client"])


COMPARED: dict[tuple[str, str], Callable[[str, str, Record, Any], Iterator[str]]] = {
    ("pool", "look"): _look,
    ("pool", "find"): _volumes,
    ("pool", "create"): _made,
    ("pool", "import_tree"): _made,
    ("pool", "clone"): _made,
    ("pool", "snapshot"): _made,
    ("pool", "resize"): _made,
    ("pool", "rename"): _renamed,
    ("pool", "flatten"): _made,
    ("pool", "relabel"): _made,
    ("pool", "hold"): _held,
    ("pool", "release"): _held,
    ("pool", "adoptable"): _adoptable,
    ("pool", "adopt"): _made,
    ("pool", "disown"): _disowned,
    ("pool", "capacity"): _capacity,
    ("pool", "kept"): _kept,
    ("pool", "texts"): _texts,
    ("transport", "take_over"): _taken_over,
    ("transport", "find_exports"): _find_exports,
    ("transport", "look_exports"): _look_exports,
    ("transport", "export"): _export,
    ("transport", "offers"): _offers,
    ("transport", "attach"): _attach,
    ("transport", "find_attachments"): _find_attachments,
    ("transport", "look_attachments"): _look_attachments,
    ("transport", "evidence"): _evidence,
    ("transport", "sources"): _sources,
    ("transport", "digests"): _digests,
    ("transport", "fence"): _fence,
    ("transport", "restore"): _restore,
    ("hypervisor", "find"): _guests,
    ("hypervisor", "start"): _start,
    ("hypervisor", "wake"): _start,
    ("hypervisor", "pause"): _start,
    ("hypervisor", "originals"): _originals,
    ("hypervisor", "edited"): _edited,
    ("hypervisor", "receive"): _receive,
    ("hypervisor", "save"): _saved,
    ("hypervisor", "saved"): _saved,
    ("hypervisor", "forwarded"): _forwarded,
    ("hypervisor", "console"): _console,
    ("hypervisor", "execute"): _of_guest,
    ("hypervisor", "cards"): _forwarded,
    ("hypervisor", "freeze"): _of_guest,
    ("hypervisor", "thaw"): _of_guest,
    ("images", "lay"): _laid,
    ("hook", "enter"): _entered,
    ("hook", "may_leave"): _named,
    ("host", "declare_off"): _declared,
}
WORDS = frozenset(
    {
        ("host", "drain"),
        ("host", "find_drained"),
        ("host", "find_off"),
        ("images", "digest"),
        ("images", "examine"),
        ("images", "export_image"),
        ("images", "fill"),
        ("images", "inspect"),
        ("images", "look_inside"),
        ("hypervisor", "check"),
        ("hypervisor", "credential"),
        ("hypervisor", "define"),
        ("hypervisor", "fingerprint"),
        ("hypervisor", "grow"),
        ("hypervisor", "messages"),
        ("hypervisor", "mirrored"),
        ("hypervisor", "switch"),
        ("hypervisor", "ready"),
        ("hypervisor", "send"),
        ("hypervisor", "strangers"),
        ("hypervisor", "take"),
        ("pool", "ready"),
        ("transport", "doors"),
        ("transport", "ready"),
    }
)
"""Verbs whose answer speaks of nothing that the question names."""
