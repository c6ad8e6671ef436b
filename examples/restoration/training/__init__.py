"""The training loop, its checkpoint, and what it says on the terminal."""
