"""Examples of each command, for its help and for the manual page; they belong to the table in cli/commands.

Each is what to type and one line of what it does. The names are those of a small site: hosts a and b, pools fast and
large, the golden image debian, the guest web with its volume web.
"""

EXAMPLES = {
    "host list": (("storkit host list", "Every host of the inventory, with its URL, address and state directory."),),
    "host check": (
        ("storkit host check", "Ask every host of the inventory what it lacks."),
        ("storkit --json host check b", "Ask host b alone, and print the findings for a script."),
    ),
    "host restore": (
        ("storkit host restore", "After a power cut: bring back what ended on every host."),
        ("storkit host restore b", "Host b alone was rebooted."),
        ("storkit host restore --boot", "For a unit that runs when this machine boots: no inventory is needed."),
    ),
    "host drain": (
        ("storkit host drain a", "Before work on host a: move its guests to the other hosts, and keep new ones off."),
        ("storkit host drain a --to b --first 'db-*' --at-once 4", "To host b, the databases first, four at a time."),
        ("storkit host drain a --shutdown-rest", "Shut down what cannot move live."),
    ),
    "host undrain": (("storkit host undrain a", "Host a takes guests again. Nothing is moved back."),),
    "host evacuate": (
        ("storkit host evacuate a --first 'db-*'", "Host a has died: cut it off, and start its guests elsewhere."),
        ("storkit -n host evacuate a", "Say which guests that would be, and change nothing."),
    ),
    "host accept": (
        ("storkit host accept", "Show what this machine accepts, and what coordinators asked for in vain."),
        ("storkit host accept pool:fast hypervisor:qemu", "Accept these two as they were asked for."),
        ("storkit host accept --import-dir /srv/images", "Let images below /srv/images be imported."),
    ),
    "pool list": (("storkit pool list", "Every pool, its host, and how much room is left."),),
    "pool attach": (
        ("storkit pool attach fast --on b", "Each volume of pool fast appears on b as /dev/storkit/NAME."),
        ("storkit pool attach fast --on b --read-only", "The same for a backup, which must not write."),
    ),
    "pool detach": (("storkit pool detach fast --on b", "Host b gives up all volumes of pool fast."),),
    "volume create": (
        ("storkit volume create web 20GiB", "Make an empty disk of 20 GiB in the default pool."),
        ("storkit volume create db 1.5T --pool large", "Make it in pool large instead."),
    ),
    "volume adopt": (
        ("storkit volume adopt vg0/web", "The logical volume is volume web from now on."),
        ("storkit volume adopt /var/lib/libvirt/images/web.img web --on a", "A file of host a is, under its new name."),
    ),
    "volume release": (("storkit volume release web", "Give it back: its bytes are where they were before."),),
    "volume import": (
        ("storkit volume import --golden debian.qcow2 debian", "Make a golden image, which clones are made from."),
        ("storkit volume import disk.raw.zst web --size 40GiB", "Unpack a disk, and make it 40 GiB large."),
        ("storkit volume import - web < disk.raw", "Read the disk from this machine, over the connection."),
    ),
    "volume export": (
        ("storkit volume export web /srv/web.qcow2 --format qcow2 --compress", "Write a file on the volume's host."),
        ("storkit volume export web - > web.raw", "Write it to this machine, over the connection."),
    ),
    "volume clone": (
        ("storkit volume clone debian web db", "Make two disks from the golden image debian."),
        ("storkit volume clone debian mail --size 100GiB", "Make the clone larger than its source."),
    ),
    "volume snapshot": (
        ("storkit volume snapshot web web-before-upgrade", "Keep web as it is now, under a second name."),
    ),
    "volume restore": (
        ("storkit volume restore web web-monday", "Set a disk back; what it is now is kept as another snapshot."),
        ("storkit volume restore web web-monday --discard", "What it is now is lost."),
    ),
    "volume resize": (
        ("storkit volume resize web 40GiB", "Grow the disk, also of a running guest; it grows its file system itself."),
        ("storkit volume resize web +5GiB", "Five GiB more than it has."),
        ("storkit volume resize web 10GiB --shrink --shrink", "Cut off all that lies beyond 10 GiB."),
    ),
    "volume move": (
        ("storkit volume move web --to fast", "To another pool, here or on another host; its guest starts from there."),
        ("storkit volume move web --to fast --rate 50MiB", "Leave the network to others as well."),
        ("storkit volume move web --to fast --keep", "A snapshot stays where it was."),
    ),
    "volume rename": (
        ("storkit volume rename web shop", "Another name; its guest's record says so too."),
    ),
    "volume flatten": (
        ("storkit volume flatten web", "Give web all its bytes: it needs the image debian no longer."),
    ),
    "volume delete": (
        ("storkit volume delete web --if-exists", "For a script: gone already is as good."),
        ("storkit volume delete web-before-upgrade", "Delete one volume for good."),
        ("storkit volume delete web db --force", "Delete these two, though defined guests name them."),
    ),
    "volume list": (
        ("storkit volume list", "The volumes of every pool."),
        ("storkit volume list --pool fast", "Those of pool fast."),
    ),
    "volume show": (("storkit volume show web", "Its size, UUID and pool, who has it attached and who may write."),),
    "image list": (("storkit image list", "Each version of each golden image, its clones and its fleets."),),
    "image show": (
        ("storkit image show debian", "All versions of the image."),
        ("storkit image show debian@3", "Version 3 alone."),
    ),
    "image verify": (("storkit image verify debian@3", "See whether its bytes are those that were sealed."),),
    "image seal": (
        ("storkit image seal web debian", "A copy of web, which nobody writes now, is the next version of debian."),
        ("storkit image seal template", "Nobody writes template from now on: it is version 1 of itself."),
    ),
    "image build": (
        ("storkit image build debian --script update.sh", "Boot a clone of debian, update it, and seal it."),
        ("storkit image build web --from debian@3 --script web.sh", "The first version of another image."),
    ),
    "image prune": (("storkit image prune debian --keep 2", "Delete what nobody uses, but for the newest two."),),
    "attach": (
        ("storkit attach web --on b", "Host b gets /dev/storkit/web, and may write it."),
        ("storkit attach web --on b --read-only", "Host b gets it while another host writes it."),
    ),
    "detach": (("storkit detach web --on b", "Host b gives up the volume and its right to write."),),
    "verify": (
        ("storkit verify web", "Compare the volume on all hosts that have it attached."),
        ("storkit verify web --on a b", "Compare it on these two."),
    ),
    "guest define": (
        ("storkit guest define web --disk web --memory 2GiB", "A guest that boots from volume web."),
        (
            "storkit guest define web --disk web --disk iso:ro --bridge br0",
            "A second disk that it may only read, and a network card on bridge br0.",
        ),
        ("storkit guest define web --replace --memory 4GiB", "Change the memory, and nothing else."),
    ),
    "guest import": (
        ("storkit guest import web.xml --disk /dev/vg0/web=web", "Take a libvirt domain over; volume web is its disk."),
        ("storkit guest import /etc/xen/web.cfg --name web2", "Take an xl configuration over under another name."),
    ),
    "guest adopt": (
        ("storkit guest adopt shop --on a", "Its libvirt domain, or its QEMU, and its disks are storkit's now."),
        ("storkit guest adopt --all --on a --local hda", "All domains of host a, whose cdroms stay its own."),
        ("storkit guest adopt mail --config /etc/xen/mail.cfg --on a", "A Xen guest, by its own configuration."),
    ),
    "guest release": (("storkit guest release shop", "Give it back: its domain has its own disks again."),),
    "guest clone": (
        ("storkit guest clone web web2", "A second guest with clones of web's disks and an identity of its own."),
        ("storkit guest clone web web3 --set memory=1GiB", "The same with other memory."),
    ),
    "guest render": (
        ("storkit guest render web", "Print the configuration for the guest's own hypervisor."),
        ("storkit guest render web --for xl --on b", "Print it for Xen, with the disks as host b has them."),
    ),
    "guest start": (
        ("storkit guest start web", "Start it where its first disk lies."),
        ("storkit guest start web --on b", "Attach its disks on host b and start it there."),
    ),
    "guest stop": (
        ("storkit guest stop web", "Ask it to shut down, and wait a minute."),
        ("storkit guest stop web --timeout 300", "Wait five minutes."),
        ("storkit guest stop web --force", "Do not ask: what it has not written is lost."),
    ),
    "guest save": (("storkit guest save web", "Before its host restarts: the guest sleeps, and its disks are held."),),
    "guest restore": (
        ("storkit guest restore web", "It goes on where it was."),
        ("storkit guest restore web /srv/shared/web.memory --on b", "On another host, which reads the file there."),
    ),
    "guest discard": (("storkit guest discard web --force", "Its memory is lost; start it as after a power cut."),),
    "host add": (
        ("storkit host add c ssh://root@c --address 10.0.0.3", "Copy this storkit.pyz there, and say what else to do."),
        ("storkit host add c local:/srv/c", "A second host on this machine, as for a try."),
    ),
    "host upgrade": (
        ("storkit host upgrade", "All hosts, one after another, to the storkit.pyz that is running."),
        ("storkit host upgrade b --file build/storkit.pyz", "One of them first."),
    ),
    "host remove": (("storkit host remove c", "It has no disk, no guest and no pool any more: forget it."),),
    "audit": (("storkit audit", "What differs between hosts, volumes, guests and plans, and what mends it."),),
    "sweep": (
        ("storkit sweep", "Show what has no use any more."),
        ("storkit sweep --yes", "Remove it."),
    ),
    "guest snapshot": (("storkit guest snapshot web monday", "Its disks as they are now: web.monday, data.monday."),),
    "guest revert": (("storkit guest revert web monday", "It is stopped: its disks are Monday's again."),),
    "guest console": (("storkit guest console web", "It does not boot: see what it says. Ctrl-] leaves it."),),
    "guest address": (
        ("storkit guest address web", "As far as its host has seen it."),
        ("storkit guest address 'ci-*' --json", "For a script."),
    ),
    "guest resume": (("storkit guest resume web", "Its disk has room again: let it go on."),),
    "guest list": (("storkit guest list", "Every guest, and the host that runs it."),),
    "guest show": (("storkit guest show web", "Its disks, memory and network cards, and where it runs."),),
    "guest commit": (("storkit guest commit web", "Keep what guests/web.toml and guests/web.xml say now."),),
    "guest checkout": (
        ("storkit guest checkout web", "Write guests/web.toml, and its document, as they are kept."),
        ("storkit guest checkout web --generation 3", "Take an earlier state; `guest commit` then keeps it again."),
    ),
    "guest diff": (("storkit guest diff web", "What was changed in guests/, and is not kept yet."),),
    "guest refresh": (("storkit guest refresh web", "After virsh edit web: what it says is kept, and moves with it."),),
    "guest edit": (("storkit guest edit web", "Open its texts in $EDITOR; what is wrong with them is refused."),),
    "guest move": (
        ("storkit guest move web --to b", "Its disks go to b's pool; it is started there when somebody does."),
        ("storkit guest move web --to b --stop", "It runs: shut it down, move its disks, start it on b."),
    ),
    "guest rename": (("storkit guest rename web shop", "Another name; its volumes keep theirs."),),
    "guest delete": (("storkit guest delete web", "Forget the guest; its volumes stay."),),
    "fleet create": (
        ("storkit fleet create web --image debian --count 20 --start", "Twenty guests, web-01 to web-20, each itself."),
        (
            "storkit fleet create ci --image debian --count 8 --on a b --memory 1GiB --ttl 2h",
            "Eight of them, spread over two hosts, which fleet sweep ends after two hours.",
        ),
    ),
    "fleet list": (("storkit fleet list", "Every fleet, its image, and how many of its members run."),),
    "fleet show": (("storkit fleet show web", "Each member: its state, its host, its address."),),
    "fleet start": (
        ("storkit fleet start web", "Start all members that do not run."),
        ("storkit fleet start web web-03", "Start this one."),
    ),
    "fleet stop": (("storkit fleet stop web", "Shut all members down, at the same time."),),
    "fleet reset": (
        ("storkit fleet reset web web-03", "Its disk is as the image again; its name and keys stay."),
        ("storkit fleet reset web --all", "The same for every member."),
    ),
    "fleet replace": (("storkit fleet replace web web-03 --start", "A new machine in its place, with new keys."),),
    "fleet wait": (("storkit fleet wait web --timeout 120", "Until each member lets ssh in, or two minutes."),),
    "fleet run": (
        ("storkit fleet run web -- hostname", "Every member says its name."),
        ("storkit fleet run web --on web-03 -- 'apt-get update && apt-get -y upgrade'", "A shell's text in one."),
    ),
    "fleet ssh": (("storkit fleet ssh web-03", "A shell in a member; its host key is known already."),),
    "fleet console": (("storkit fleet console web-03", "Its serial console; Ctrl-] leaves it."),),
    "fleet inventory": (
        ("storkit fleet inventory web > web.yml", "For Ansible: ansible-playbook -i web.yml site.yml."),
        ("storkit fleet inventory web --ssh > web.ssh", "For ssh: ssh -F web.ssh web-03."),
    ),
    "fleet destroy": (("storkit fleet destroy web", "Its members, their disks and their keys are gone."),),
    "fleet sweep": (("storkit fleet sweep", "For a timer: what a killed job has left ends in time."),),
    "migrate run": (
        ("storkit migrate run web --to b", "Move the running guest to host b."),
        ("storkit migrate run 'web-*' db --to b --at-once 4", "Several guests, four at the same time."),
        ("storkit -n migrate run web --to b", "Print the plan, and change nothing."),
    ),
    "migrate prepare": (
        ("storkit migrate prepare web --to b", "Get host b ready; then let the hypervisor move the guest."),
    ),
    "migrate finish": (("storkit migrate finish web", "It has been moved: its old host may no longer write."),),
    "migrate abort": (("storkit migrate abort web", "It was not moved: the destination gives the disk up again."),),
    "migrate status": (
        ("storkit migrate status", "All guests: where they run, and who may write their disks."),
        ("storkit migrate status web", "One guest."),
    ),
    "migrate cleanup": (
        ("storkit migrate cleanup web", "After a crash, on any machine with the inventory: no journal is needed."),
    ),
    "fence": (
        ("storkit fence b", "The storage refuses host b from now on."),
        ("storkit fence b --confirmed-off", "No storage can cut b off, and you have seen that it is without power."),
    ),
    "unfence": (("storkit unfence b", "Host b was mended: it may be given disks again."),),
    "plan list": (("storkit plan list", "All plans of this machine; unfinished ones say so."),),
    "plan show": (("storkit plan show 20261121-134920-71955", "Its steps, and which of them are done."),),
    "plan resume": (("storkit plan resume 20261121-134920-71955", "The command was killed: do the rest of it."),),
    "plan rollback": (("storkit plan rollback 20261121-134920-71955", "Undo the steps that are done."),),
    "hooks install": (
        ("storkit hooks install --name xen2 --manager s=ssh://root@10.0.0.1 --identity /etc/storkit/hook_key",
         "This host is xen2; its hooks ask host s for disks."),
        ("storkit hooks install", "Write the scripts again, after an upgrade or for a new hypervisor."),
    ),
    "hooks status": (("storkit hooks status", "Which scripts are here, and whether each manager answers."),),
    "hooks remove": (("storkit hooks remove", "From now on only storkit's own commands attach disks here."),),
    "hooks admit": (
        ("storkit hooks admit xen2 --volumes 'fast/*' --address 10.0.0.2 --key xen2.pub",
         "Host xen2 may have all disks of pool fast; the line for authorized_keys is printed."),
        ("storkit hooks admit xen2 --remove", "Its hooks are let in no longer."),
    ),
    "hook xen": (("storkit hook xen add", "What Xen's block-storkit does before a domain gets its disk."),),
    "hook libvirt": (
        ("storkit hook libvirt web prepare begin - < web.xml", "What libvirt's hook does before guest web starts."),
    ),
    "status": (
        ("storkit status", "What is exported to whom, where it is attached, and what is unfinished."),
        ("storkit --json status", "The same for a script."),
        ("storkit status --check", "One line, and an exit status, for a monitoring system."),
    ),
    "completion": (
        ("storkit completion bash > /etc/bash_completion.d/storkit", "Complete commands and names in bash."),
        ("storkit completion fish > ~/.config/fish/completions/storkit.fish", "The same in fish."),
    ),
    "names": (("storkit names volumes", "The volumes that completion offers."),),
    "agent": (
        ("storkit agent --grade storage", "For command= in authorized_keys: the key may do all with volumes."),
        ("storkit agent --for xen2", "The key is bound to xen2: its hypervisor's hooks may ask for xen2's own right."),
    ),
}  # fmt: skip
