"""What the three grades of key may have done: every verb of the contracts (core/backend.py), classified here.

    read      surveys: what there is, and who has it
    storage   everything with volumes, exports and attachments
    guests    guests as well; whoever defines a guest on a host is root there

Each grade may do what those before it may. A verb that is not here is for nobody whose key has a grade: whoever adds a
verb to a contract says here what it is, and a test sees to it.
"""

from __future__ import annotations

from typing import Any, Final

from storkit.core.errors import NotAllowed

READ: Final = "read"
STORAGE: Final = "storage"
GUESTS: Final = "guests"
GRADES: Final = (READ, STORAGE, GUESTS)
HOOK: Final = "hook"
"""No grade: what a key may have done that is bound to one host (`storkit agent --for HOST`), and no other key."""

_VERBS: Final[dict[str, dict[str, str]]] = {
    READ: {
        "pool": "ready look find capacity kept texts",
        "transport": "ready doors find_exports look_exports find_attachments look_attachments",
        "hypervisor": "ready find forwarded",
        "images": "",
        "host": "find_off find_drained",
        "agent": "facts source marked unlock neighbours",
    },
    STORAGE: {
        "pool": "create import_tree clone snapshot resize rename flatten relabel hold release delete "
        "adoptable adopt disown bar unbar",
        # `offers` has credentials in its answer; `evidence` and `digests` tell what is in a disk, block by block.
        "transport": "export unexport take_over grow offers set_writers attach claim detach evidence fence unfence "
        "restore sources digests",
        "hypervisor": "",
        "images": "inspect fill refill pull digest export_image look_inside lay put_back examine write_in",
        "host": "declare_off withdraw_off",
        # A port that is opened, and one that is tried, are more than a look.
        "agent": "lock epoch mark unmark listen unlisten reach",
    },
    GUESTS: {
        # What is kept of a guest is what it is started as, on whatever host.
        "pool": "keep unkeep",
        "host": "drain undrain",
        # `check` and `fingerprint` look at any file that a guest's record names.
        "hypervisor": "check fingerprint define strangers originals edited note take give_back undefine start stop "
        "pause console receive credential send resume wake messages grow cancel retire save unsave saved load spend "
        "mirror mirrored switch unmirror "
        # To be root in a guest, and to have it stand still.
        "execute cards freeze thaw",
    },
    HOOK: {"hook": "enter woken may_leave leave hold"},
}
VERBS: Final = {
    (kind, verb): grade for grade, kinds in _VERBS.items() for kind, verbs in kinds.items() for verb in verbs.split()
}
"""(the kind of a target, or agent; verb or request) to the lowest grade that may have it done."""

PATHS: Final = {
    ("pool", "import_tree"): ("source", "import"),
    ("images", "inspect"): ("source", "import"),
    ("images", "fill"): ("source", "import"),
    ("images", "export_image"): ("file", "export"),
    ("hypervisor", "save"): ("file", "export"),
    ("hypervisor", "unsave"): ("file", "export"),
    ("hypervisor", "spend"): ("file", "export"),
    ("hypervisor", "saved"): ("file", "import"),
    ("hypervisor", "load"): ("file", "import"),
}
"""The arguments that name a file of the host, and whether it is read (import) or made (export); empty: the host's own
place."""

ADOPTING: Final = frozenset({("pool", "adoptable"), ("pool", "adopt")})
"""The verbs whose argument `found` names files that are looked into, and taken from where they lie."""


def check(grade: str, request: dict[str, Any]) -> None:
    """Raise NotAllowed unless a key of this grade may make the agent's request; without a grade it may make any."""
    if not grade:
        return
    kind, verb = "agent", str(request.get("do"))
    if verb == "call":
        kind, verb = str(request.get("target")).partition(":")[0], str(request.get("verb"))
    needed = VERBS.get((kind, verb))
    if needed == HOOK:
        raise NotAllowed(
            f"a key of grade {grade} may not have {verb} done for a hook: that takes a key that is bound to its host",
            'command="storkit agent --for HOST" in authorized_keys of that host',
        )
    if needed is not None and GRADES.index(needed) <= GRADES.index(grade):
        return
    what = f"{kind}.{verb}" if kind != "agent" else verb
    if needed is None:
        raise NotAllowed(f"a key of grade {grade} may not have {what!r} done: it has no grade")
    raise NotAllowed(
        f"a key of grade {grade} may not have {what} done: that takes the grade {needed}",
        f'if it should: command="storkit agent --grade {needed}" in authorized_keys of that host',
    )
