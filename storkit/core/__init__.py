"""What every part of storkit shares: words, errors, plans and the engine that runs them."""
