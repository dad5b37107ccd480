#!/bin/sh
# @MARK@
# libvirt calls this for every domain: one without a disk of storkit's costs no more than is here.
case "$2 $3" in
    "migrate begin" | "restore begin" | "prepare begin" | "started begin" | "release end") ;;
    *) exit 0 ;;
esac
xml=$(cat)
case $xml in
    *storkit*) ;;
    *) exit 0 ;;
esac
printf '%s\n' "$xml" | @STORKIT@ hook libvirt @OPTIONS@ -- "$1" "$2" "$3" "$4"
