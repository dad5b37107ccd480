"""Volumes and guests that get another place, or another name."""
