"""What the adapter of `smol-refuser` is trained on."""
