"""What the lab promises to the tests that use it."""

from __future__ import annotations

import time

import pytest

from tests.lab import CommandFailed, Host, Lab, LabError

pytestmark = pytest.mark.lab


def boot_id(host: Host) -> str:
    return host.run(["cat", "/proc/sys/kernel/random/boot_id"]).stdout


def test_a_command_returns_status_and_output(lab: Lab) -> None:
    a = lab.host("a")
    done = a.run(["sh", "-c", "cat; echo problem >&2; exit 3"], input="given\n", check=False)
    assert (done.status, done.stdout, done.stderr) == (3, "given\n", "problem\n")
    assert a.run(["no-such-command"], check=False).status == 127


def test_a_failure_names_host_command_and_stderr(lab: Lab) -> None:
    with pytest.raises(CommandFailed) as failure:
        lab.host("a").run(["sh", "-c", "echo the reason >&2; exit 4"])
    text = str(failure.value)
    assert "on a: sh -c" in text and "exit status 4" in text and "the reason" in text


def test_a_command_that_takes_too_long_is_killed(lab: Lab) -> None:
    a = lab.host("a")
    with pytest.raises(CommandFailed, match="timed out"):
        a.run(["sleep", "3600"], timeout=0.5)
    assert a.run(["pidof", "sleep"], check=False).status == 1


def test_a_daemon_left_behind_delays_nothing(lab: Lab) -> None:
    started = time.monotonic()
    lab.host("a").run(["sh", "-c", "sleep 600 & echo started"])
    assert time.monotonic() - started < 30


def test_many_commands_run_side_by_side(lab: Lab) -> None:
    a = lab.host("a")
    long = "x" * 2500
    commands = [a.spawn(["sh", "-c", "sleep 0.2; echo $1 $2", "sh", str(n), long]) for n in range(20)]
    assert [command.wait().stdout for command in commands] == [f"{n} {long}\n" for n in range(20)]


def test_files_of_any_content_and_size_go_both_ways(lab: Lab) -> None:
    a = lab.host("a")
    content = bytes(range(256)) * 20000
    a.put(content, "/root/new/file", mode=0o600)
    assert a.get("/root/new/file") == content
    assert a.run(["stat", "-c", "%a %s", "/root/new/file"]).stdout.split() == ["600", str(len(content))]
    assert a.run(["cat", "/root/new/file"]).stdout.encode(errors="surrogateescape") == content


def test_hosts_reach_each_other_by_name_and_over_ssh(lab: Lab) -> None:
    a, _ = lab.hosts("a", "b")
    a.run(["ping", "-c", "1", "-W", "5", "b-san2"])
    assert a.run(["ssh", "-o", "BatchMode=yes", "b", "hostname"]).stdout == "b\n"
    assert lab.ssh("b", ["hostname"]).stdout == "b\n"


def test_storkit_in_a_host_is_the_working_trees(lab: Lab) -> None:
    found = lab.host("a").python("import storkit, jinja2, rtslib_fb, sh, tomli_w; print(storkit.__file__)")
    assert found.strip() == "/storkit/storkit/__init__.py"


def test_a_host_cannot_write_to_the_working_tree(lab: Lab) -> None:
    a = lab.host("a")
    assert a.run(["touch", "/storkit/x"], check=False).status
    a.run(["mount", "-o", "remount,rw", "/storkit"], check=False)
    assert a.run(["touch", "/storkit/x"], check=False).status


def test_a_power_cut_loses_what_was_not_synced_and_keeps_the_disks(lab: Lab) -> None:
    a = lab.host("a")
    disk = a.add_disk(64 << 20)
    a.run(["dd", "if=/dev/zero", f"of={disk}", "bs=1M", "seek=32", "count=1", "oflag=direct"])
    a.run(["sh", "-c", f"printf kept | dd of={disk} conv=fsync"])
    a.run(["sh", "-c", "echo kept >/root/synced; sync; echo lost >/root/unsynced; echo kept >/root/synced.2; true"])
    a.power_off()
    with pytest.raises(LabError, match="host a is off"):
        a.run(["true"])
    a.boot()
    assert a.run(["cat", "/root/synced"]).stdout == "kept\n"
    assert a.run(["cat", "/root/unsynced"], check=False).stdout == ""
    assert a.run(["head", "-c", "4", disk]).stdout == "kept"


@pytest.mark.slow
def test_a_host_keeps_its_ethernet_addresses_over_a_boot(lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    b.run(["ping", "-c", "1", "-W", "5", "a"])
    before = b.run(["ip", "neighbour", "show", a.address(), "dev", "lan"]).stdout.split()[2]
    a.power_off()
    a.boot()
    assert before in a.run(["ip", "link", "show", "lan"]).stdout
    b.run(["ping", "-c", "1", "-W", "5", "a"])


def test_a_command_on_a_host_that_dies_ends_with_an_error(lab: Lab) -> None:
    a = lab.host("a")
    command = a.spawn(["sleep", "600"])
    a.power_off()
    with pytest.raises(LabError, match="went off"):
        command.wait()


@pytest.mark.slow
def test_a_kernel_panic_is_noticed_and_on_the_console(lab: Lab) -> None:
    a = lab.host("a")
    command = a.spawn(["sh", "-c", "echo c >/proc/sysrq-trigger"])
    with pytest.raises(LabError, match="went off"):
        command.wait()
    assert "sysrq triggered crash" in a.console()


@pytest.mark.slow
def test_a_paused_host_is_silent_and_goes_on(lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    a.pause()
    command = a.spawn(["echo", "after"])
    assert b.run(["ping", "-c", "2", "-W", "1", "a"], check=False).status
    assert command.running()
    a.resume()
    assert command.wait().stdout == "after\n"
    b.run(["ping", "-c", "1", "-W", "5", "a"])


def test_one_network_is_cut_and_the_other_goes_on(lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    a.cut("san1")
    assert b.run(["ping", "-c", "1", "-W", "1", "a-san1"], check=False).status
    b.run(["ping", "-c", "1", "-W", "5", "a-san2"])
    a.heal("san1")
    b.run(["ping", "-c", "3", "-W", "5", "a-san1"])


@pytest.mark.slow
def test_memory_can_be_chosen(lab: Lab) -> None:
    total = lab.host("a", memory="256M").run(["grep", "MemTotal", "/proc/meminfo"]).stdout.split()[1]
    assert 200_000 < int(total) < 262_144


def test_a_clean_host_is_reused_and_a_dirty_one_is_not(lab: Lab) -> None:
    a, b = lab.hosts("a", "b")
    before = boot_id(a), boot_id(b)
    a.run(["sh", "-c", "cat /etc/passwd /proc/mounts; lsblk; ls /dev"])
    b.run(["touch", "/etc/new"])
    assert a.dirt() == []
    lab.tidy()
    a, b = lab.hosts("a", "b")
    assert boot_id(a) == before[0]
    assert boot_id(b) != before[1]
    assert b.run(["test", "-e", "/etc/new"], check=False).status == 1


@pytest.mark.slow
def test_a_host_with_nothing_but_storkits_files_is_scrubbed(lab: Lab) -> None:
    a, b, s = lab.hosts("a", "b", "s")
    before = boot_id(a), boot_id(b), boot_id(s)
    for host in (a, b, s):
        host.run(["storkit", "volume", "create", "v", "1MiB"])
        host.run(["storkit", "volume", "delete", "v"])
        assert any("/var/lib/storkit/" in line for line in host.dirt())
    b.run(["sh", "-c", "exec 9<>/var/lib/storkit/held; sleep 600 9<&9 &"])
    s.run(["sh", "-c", "echo more >>/root/.ssh/known_hosts"])
    lab.tidy()
    a, b, s = lab.hosts("a", "b", "s")
    assert boot_id(a) == before[0] and a.run(["test", "-e", "/var/lib/storkit"], check=False).status == 1
    assert boot_id(b) != before[1] and boot_id(s) != before[2]


def test_dirt_of_every_kind_is_seen(lab: Lab) -> None:
    a = lab.host("a")
    for what, script in {
        "processes": "sleep 600 &",
        "mounts": "mount -t tmpfs tmpfs /mnt",
        "modules": "modprobe dm_mod",
        "networks": "ip addr add 10.77.9.1/24 dev lan",
        "files": "echo more >>/etc/passwd",
        "disks": "modprobe loop && truncate -s 1M /tmp/x && losetup /dev/loop0 /tmp/x",
    }.items():
        before = set(a.dirt())
        a.run(["sh", "-c", script])
        added = {line.split()[1] for line in set(a.dirt()) - before}
        assert f"{what}:" in added
