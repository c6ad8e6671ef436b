"""The arithmetic of the losses on given features."""
