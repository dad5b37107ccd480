"""storkit makes guests' disks migratable; see docs/design.md."""

__version__ = "0.1.0"
