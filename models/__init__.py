"""How: networks, losses and image geometry. Tensors in, tensors out; no file, no params, no logging."""
