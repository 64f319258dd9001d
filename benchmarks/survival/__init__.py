"""What `benchmarks.chaos` is made of: a farm (a workspace under service), whom to kill in it, and what must hold."""
