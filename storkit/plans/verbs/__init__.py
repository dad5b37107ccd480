"""The verbs of plans: what each does is in the files beside this one, what a verb is in storkit.plans.verb."""

from __future__ import annotations

from typing import Any

from storkit.core import codec
from storkit.plans.plan import Step
from storkit.plans.verb import Verb
from storkit.plans.verbs.attachments import AttachVolumes, DetachVolumes, Prove
from storkit.plans.verbs.draining import DrainHost, UndrainHost
from storkit.plans.verbs.exports import CutOff, ExportVolumes, GrowExports, SetWriters, UnexportVolumes
from storkit.plans.verbs.fences import (
    BarManager,
    DeclareOff,
    FenceHost,
    Reattach,
    TakeOver,
    UnbarManager,
    UnfenceHost,
    WithdrawOff,
)
from storkit.plans.verbs.fleets import LayFiles, Personalise
from storkit.plans.verbs.freezing import FreezeGuest, ThawGuest
from storkit.plans.verbs.guests import (
    DefineGuest,
    ForgetGuests,
    GiveGuestBack,
    GrowGuest,
    KeepGuests,
    PauseGuest,
    StartGuest,
    StopGuest,
    TakeGuests,
    UndefineGuest,
    WakeGuest,
)
from storkit.plans.verbs.images import ExamineVolume, PutBackFiles, SealVolume
from storkit.plans.verbs.mirroring import (
    CallOffMirror,
    CompareCopy,
    LetFill,
    LetGoOfOld,
    MirrorDisk,
    SettleMirror,
    SwitchDisk,
)
from storkit.plans.verbs.moves import ConfirmPlace, ReceiveGuest, ResumeGuest, RetireGuest, SendGuest
from storkit.plans.verbs.relocating import (
    CarryGuests,
    CopyVolume,
    DigestVolume,
    DropCopy,
    OpenCopy,
    PlaceCopy,
    SameDigest,
)
from storkit.plans.verbs.sleeping import (
    AwakeGuest,
    EndSaved,
    GiveUpHolds,
    HoldVolumes,
    LoadGuest,
    ReleaseVolumes,
    SaveGuest,
    SpendMemory,
    WakeWriters,
)
from storkit.plans.verbs.volumes import (
    AdoptVolumes,
    CloneVolume,
    CloseVolume,
    CreateVolumes,
    DeleteVolumes,
    DisownVolumes,
    ExportImage,
    FillVolume,
    FlattenVolumes,
    ImportTree,
    RefillVolume,
    RelabelVolumes,
    RenameVolumes,
    ResizeVolumes,
    SnapshotVolume,
)

_ALL: tuple[type[Verb[Any]], ...] = (
    CreateVolumes, AdoptVolumes, DisownVolumes, ImportTree, CloneVolume, SnapshotVolume, FillVolume, RelabelVolumes,
    ResizeVolumes, FlattenVolumes, DeleteVolumes, ExportImage, ExportVolumes, UnexportVolumes, CutOff, SetWriters,
    AttachVolumes, DetachVolumes, Prove, DefineGuest, UndefineGuest, StartGuest, StopGuest, PauseGuest, WakeGuest,
    ReceiveGuest, SendGuest, ConfirmPlace, ResumeGuest, RetireGuest, HoldVolumes, SaveGuest, EndSaved, WakeWriters,
    LoadGuest, ReleaseVolumes, GiveUpHolds, AwakeGuest, SpendMemory, FenceHost, UnfenceHost, DeclareOff, WithdrawOff,
    KeepGuests,
    ForgetGuests, TakeGuests, GiveGuestBack, LayFiles, Personalise, SealVolume, PutBackFiles, ExamineVolume,
    DrainHost, UndrainHost, GrowExports, GrowGuest, RefillVolume, CloseVolume, PlaceCopy, DropCopy, CopyVolume,
    DigestVolume, SameDigest, CarryGuests, OpenCopy, RenameVolumes, LetFill, MirrorDisk, CompareCopy,
    SwitchDisk, SettleMirror, CallOffMirror, LetGoOfOld,
    FreezeGuest, ThawGuest, BarManager, UnbarManager, TakeOver, Reattach,
)  # fmt: skip
VERBS: dict[str, type[Verb[Any]]] = {cls.verb: cls for cls in _ALL}
"""By name, as steps have it."""


def of(step: Step) -> Verb[Any]:
    """The verb of a step, with its arguments. Raises StorkitError: they are not the verb's."""
    return codec.load(VERBS[step.verb], step.args, f"step {step.id} ({step.verb})")
