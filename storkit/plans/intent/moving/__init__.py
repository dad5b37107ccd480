"""Guests moved while they run: one, several, all of a host; and started elsewhere when their host has died."""
