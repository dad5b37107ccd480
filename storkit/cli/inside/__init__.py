"""Into guests that run: their consoles, and commands in them."""
