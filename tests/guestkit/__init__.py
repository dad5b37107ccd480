"""Tiny guests that write to their disks and can tell afterwards whether a write was lost, torn or made twice."""
