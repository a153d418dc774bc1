"""Networks: backbones, meta-architectures, heads, and the losses they share."""
