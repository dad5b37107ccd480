"""What the device-mapper module builds and reads; no kernel is needed."""

from __future__ import annotations

import base64
import itertools
import zlib

import pytest

from storkit.core.errors import NotFound, UsageError
from storkit.system.block import devmapper, dmioctl
from storkit.system.block.devmapper import Wanted, concise, error, node_name, node_uuid


def test_names_of_different_volumes_and_roles_never_collide() -> None:
    volumes = ["a", "a-b", "a--b", "a.b", "a_b", "a-guest", "guest", "a.guest", "x" * 63]
    names = [node_name(volume, role) for volume, role in itertools.product(volumes, ["guest", "export"])]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 127, "DM_NAME_LEN with its NUL is 128"
    assert len(node_uuid("2b5e0f0e-7d3c-4c53-9a55-0e8c9c2f7a11", "export")) <= 128


def test_tables() -> None:
    assert error(1 << 20) == "0 2048 error"
    with pytest.raises(UsageError):
        error(1000)
    with pytest.raises(NotFound, match="no device"):
        devmapper.linear("/dev/none-such", 512)
    with pytest.raises(NotFound, match="not a block device"):
        devmapper.linear("/dev/null", 512)


def test_what_dmsetup_is_told() -> None:
    nodes = [Wanted("n1", "STORKIT-1", "0 8 linear 8:0 0\n8 8 error"), Wanted("n2", "STORKIT-2", "0 8 error", True)]
    assert concise(nodes) == "n1,STORKIT-1,,rw,0 8 linear 8:0 0,8 8 error;n2,STORKIT-2,,ro,0 8 error"


# Linux 6.1's own answers, by zlib and base85: to DM_LIST_DEVICES, and to DM_TABLE_STATUS of each of the three nodes.
LIST = (
    "c-rmIF$#k~5CzcLkV9DJ25E!0QLzY$3yI)WJgq1gNWdn&@4;t=57W#wBJQ!9Q^X?$e@M$di!Jp}fBE#cEkhpK!{PE>-(!At&#|1^y6kgP_1"
    "+2q0000000000000000B~9>P2UX~"
)
STATUS = {
    "b": "c-rmAI|{;36a>(DVBs>d1AidT?85~_2t*JI_fIeoA*pP&I0uG1b2mwLnGGeWQ_5$bvMA$xZ~3k3F@I&d>ia2=`?K#}%kNU#!?~#e"
    "000000000000000004k*-mOpv4*",
    "none": "c-rm8u?>JA07b!%VE{KVb}U4T`!|GwL>I8UYu>9#u55QnTFLADHpko@&*%XF000000000000000004fq07tt6Uj",
    "storkit:web:local": "c-rmIPYMBX6ae5y7LMTp!bZ#uWT9{Xf0~6%rhcZJ!-a*2DSH;auU_v@uU@@YMD*g}+=v+6qWSFmQFD2uV^ya8uF6jN"
    "CM(MAx`^*uENAoSWZ4~be{ua&yH?--RqPJ=I=yG(Q8pNM`meqE{^}NaN@WTF0000000000000000092o6$r@`aR",
}


def answer(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def test_what_the_kernel_says_of_nodes() -> None:
    assert dmioctl.parse_names(answer(LIST)) == [name.encode() for name in STATUS]
    b, none, web = (devmapper._node(dmioctl.parse_status(answer(text))) for text in STATUS.values())
    assert (b.uuid, b.size, b.readonly, b.suspended, b.table) == ("U2", 4096, True, True, "0 8 linear 98:16 8")
    assert (none.uuid, none.size, none.table) == ("", 0, "")
    assert (web.uuid, web.size, web.readonly, web.suspended) == ("STORKIT-1-local", 8192, False, False)
    assert web.table == "0 8 linear 98:16 0\n8 8 error"
    assert [node.device for node in (b, none, web)] == ["/dev/dm-1", "/dev/dm-2", "/dev/dm-0"]
    assert (web.name, web.path) == ("storkit:web:local", "/dev/mapper/storkit:web:local")
