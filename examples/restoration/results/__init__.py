"""What a trained network reaches: metrics, tables and pictures."""
