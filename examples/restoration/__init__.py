"""What the example scripts share: data, networks, protocols and the training loop."""
