"""A guest of 512 bytes: a boot sector that writes numbered records to its own disk through the BIOS, for `-M pc`.

    sector 0            the boot sector
    sectors 1..REGION   record number N is in sector 1 + N % REGION, so the region always holds the last REGION of them

At its start the guest reads the region and goes on after the highest number there. Before it writes a record it reads
what it is about to replace: a number that is not below its own can only have come from a second writer, and it stops
for good. A record fills its sector with 32 copies of {magic, number, time stamp counter}, so that a torn one shows.

On the first serial port it prints `s` once its scan is over, `.` for every 256 records, `e` for every disk error (it
tries the same record again, after its rest) and `c` when it stops because of a second writer.

It can rest before each record, until the timer has ticked a few times. Where a QEMU emulates the processor, a record
costs one some 10 ms: the firmware's way to the disk and back writes to pages with code, which is then translated anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
REGION = 2048
"""Sectors of records: a power of two and a multiple of BATCH."""
BATCH = 64
"""Sectors read at once while scanning: they fill 8000h to FFFFh."""
MAGIC = b"STKW"
SIZE = 2 << 20
"""The smallest disk for it, in bytes."""

ORIGIN = 0x7C00
LISTING = """
        31C0                      ; xor ax, ax
        8ED8                      ; mov ds, ax
        8EC0                      ; mov es, ax
        8ED0                      ; mov ss, ax
        BC 007C                   ; mov sp, 7C00h
        FB                        ; sti
        FC                        ; cld
        8816 @drive               ; mov [drive], dl
        66 31FF                   ; xor edi, edi              the highest number seen

scan:   B4 42                     ; mov ah, 42h               extended read (Phoenix EDD, INT 13h)
        E8 =disk                  ; call disk
        72 ~scan                  ; jc scan
        BB 0080                   ; mov bx, 8000h
look:   66 813F MAGIC             ; cmp dword [bx], MAGIC
        75 ~next                  ; jne next
        66 8B47 04                ; mov eax, [bx+4]
        66 39F8                   ; cmp eax, edi
        76 ~next                  ; jbe next
        66 97                     ; xchg eax, edi
next:   81C3 0002                 ; add bx, 512
        75 ~look                  ; jnz look                  past FFFFh: that was the batch
        66 8306 @lba BATCH        ; add dword [lba], BATCH
        66 813E @lba REGION       ; cmp dword [lba], REGION
        76 ~scan                  ; jbe scan
        C606 @count 01            ; mov byte [count], 1
        B0 73                     ; mov al, 's'
        E8 =print                 ; call print

record: REST                      ; mov cx, TICKS
                                  ; hlt; loop hlt
        66 47                     ; inc edi
        66 89F8                   ; mov eax, edi
        66 25 MASK                ; and eax, REGION - 1
        66 40                     ; inc eax
        66 A3 @lba                ; mov [lba], eax
        B4 42                     ; mov ah, 42h               what is there now?
        E8 =disk                  ; call disk
        72 ~failed                ; jc failed
        66 813E 0080 MAGIC        ; cmp dword [8000h], MAGIC
        75 ~fill                  ; jne fill
        66 393E 0480              ; cmp [8004h], edi
        73 ~second                ; jae second
fill:   0F31                      ; rdtsc                     edx:eax
        66 89C6                   ; mov esi, eax
        BB 0080                   ; mov bx, 8000h
copy:   66 C707 MAGIC             ; mov dword [bx], MAGIC
        66 897F 04                ; mov [bx+4], edi
        66 8977 08                ; mov [bx+8], esi
        66 8957 0C                ; mov [bx+12], edx
        83C3 10                   ; add bx, 16
        81FB 0082                 ; cmp bx, 8200h
        72 ~copy                  ; jb copy
        B8 0043                   ; mov ax, 4300h             extended write, no verify
        E8 =disk                  ; call disk
        72 ~failed                ; jc failed
        66 89F8                   ; mov eax, edi
        84C0                      ; test al, al
        75 ~record                ; jnz record
        B0 2E                     ; mov al, '.'
        E8 =print                 ; call print
        EB ~record                ; jmp record

failed: B0 65                     ; mov al, 'e'
        E8 =print                 ; call print
        66 4F                     ; dec edi
        EB ~record                ; jmp record                it rests before it tries again

second: B0 63                     ; mov al, 'c'
        E8 =print                 ; call print
halt:   F4                        ; hlt
        EB ~halt                  ; jmp halt

disk:   BE @packet                ; mov si, packet
        8A16 @drive               ; mov dl, [drive]
        CD 13                     ; int 13h                   carry: it failed
        C3                        ; ret

print:  BA F803                   ; mov dx, 3F8h              the first serial port
        EE                        ; out dx, al
        C3                        ; ret

drive:  80
packet: 10 00                     ; size of the disk address packet, 0
count:  BATCH 00                  ; sectors
        0080 0000                 ; buffer 0000:8000h
lba:    01000000 00000000         ; first sector
"""


def boot_sector(region: int = REGION, rest: int = 0) -> bytes:
    """The guest's code, with the signature that makes it bootable."""
    if region & (region - 1) or region < BATCH:
        raise ValueError(f"{region} is no power of two from {BATCH} on")
    words = {
        "MAGIC": MAGIC,
        "BATCH": bytes([BATCH]),
        "REGION": struct.pack("<I", region),
        "MASK": struct.pack("<I", region - 1),
        "REST": b"\xb9" + struct.pack("<H", rest) + b"\xf4\xe2\xfd" if rest else b"",
    }
    code = assemble(LISTING, words)
    if len(code) > 440:
        raise ValueError(f"the code is {len(code)} bytes long: it would reach into the partition table")
    return code.ljust(510, b"\0") + b"\x55\xaa"


def assemble(listing: str, words: dict[str, bytes] | None = None) -> bytes:
    """Machine code for 7C00h from lines `label: bytes ; comment`.

    Bytes are hexadecimal, a name from `words`, or a label: @label its address, =label the distance to it in two bytes
    (call), ~label in one byte (short jumps).
    """
    code = bytearray()
    labels: dict[str, int] = {}
    fixups: list[tuple[int, str]] = []
    for line in listing.splitlines():
        for token in line.partition(";")[0].split():
            if token.endswith(":"):
                labels[token[:-1]] = len(code)
            elif token[0] in "@=~":
                fixups.append((len(code), token))
                code += bytes(1 if token[0] == "~" else 2)
            elif words and token in words:
                code += words[token]
            else:
                code += bytes.fromhex(token)
    for place, token in fixups:
        target = labels[token[1:]]
        if token[0] == "~":
            code[place : place + 1] = struct.pack("<b", target - place - 1)
        elif token[0] == "=":
            code[place : place + 2] = struct.pack("<h", target - place - 2)
        else:
            code[place : place + 2] = struct.pack("<H", target + ORIGIN)
    return bytes(code)


def make_disk(path: Path, size: int = SIZE, region: int = REGION, rest: int = 0) -> None:
    """A raw disk image of `size` bytes with the guest on it, sparse but for the boot sector. `rest` is how many ticks,
    18 a second, it rests before each record."""
    if size < (1 + region) * SECTOR:
        raise ValueError(f"{size} bytes do not hold {region} records")
    with path.open("wb") as image:
        image.write(boot_sector(region, rest))
        image.truncate(size)


_RECORD = struct.Struct("<4sIQ")


@dataclass(frozen=True)
class Report:
    """What the disk says of its guest. `gaps`, `torn` and `backwards` are lists of record numbers."""

    first: int
    """The oldest record still in the region; 0: none was ever written."""
    last: int
    gaps: list[int] = field(default_factory=list)
    """Records up to `last` that must be there and are not."""
    torn: list[int] = field(default_factory=list)
    """Sectors whose 32 copies differ."""
    backwards: list[int] = field(default_factory=list)
    """Records with an earlier time stamp than the record before: written twice, or by another guest."""

    @property
    def clean(self) -> bool:
        return not (self.gaps or self.torn or self.backwards)


def verify(path: Path, region: int = REGION) -> Report:
    """Read the region of a raw image (or block device) back. Each reboot of the guest shows as one `backwards`."""
    with path.open("rb") as image:
        image.seek(SECTOR)
        data = image.read(region * SECTOR)
    records: dict[int, tuple[int, int]] = {}
    torn = []
    for slot, sector in enumerate(_sectors(data)):
        copies = set(_RECORD.iter_unpack(sector))
        if len(copies) > 1:
            torn.append(slot + 1)
            continue
        magic, number, stamp = copies.pop()
        if magic == MAGIC:
            records[slot] = (number, stamp)
    last = max((number for number, _ in records.values()), default=0)
    first = max(1, last - region + 1)
    gaps, backwards = [], []
    before = -1
    for number in range(first, last + 1):
        found, stamp = records.get(number % region, (0, 0))
        if found != number:
            gaps.append(number)
        elif stamp < before:
            backwards.append(number)
        before = stamp
    return Report(first if last else 0, last, gaps, torn, backwards)


def _sectors(data: bytes) -> Iterator[bytes]:
    return (data[start : start + SECTOR] for start in range(0, len(data), SECTOR))


def last_record(path: Path, region: int = REGION) -> int:
    """The highest number on the disk now, also while the guest writes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, region * SECTOR, SECTOR)
    finally:
        os.close(descriptor)
    heads = (_RECORD.unpack_from(data, start) for start in range(0, len(data), SECTOR))
    return max((number for magic, number, _ in heads if magic == MAGIC), default=0)
