#!/bin/sh
# @MARK@
# Xen's hotplug script for disks that are volumes of storkit. In xl.cfg(5), target= last:
#     disk = [ "format=raw, vdev=xvda, access=rw, script=block-storkit, target=VOLUME" ]
# xl runs it as `block-storkit add|remove` with XENBUS_PATH, kills it after 40 seconds, and prints hotplug-error.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C
said=$(timeout -k 1 37 @STORKIT@ hook xen @OPTIONS@ -- "$1" </dev/null 2>&1)
status=$?
[ $status -ne 124 ] && [ $status -ne 137 ] || said="storkit hook xen $1 did not end within 37 seconds"
[ $status -eq 0 ] || said=${said:-storkit hook xen $1 failed with status $status}
said=$(printf '%s' "$said" | tr '\n' ' ' | cut -c 1-1000)
[ -z "$said" ] || logger -p daemon.notice -t block-storkit -- "$1 $XENBUS_PATH: $said" </dev/null >/dev/null 2>&1
[ $status -eq 0 ] || xenstore-write "$XENBUS_PATH/hotplug-error" "$said" "$XENBUS_PATH/hotplug-status" error
[ $status -eq 0 ]
