"""What a person reads of the commands: examples, and the manual page."""
