"""Networks and their parts: meta-architectures, backbones, heads, and losses as pure functions on tensors."""
