"""Where guests run: one file per hypervisor, found by listing this package."""
