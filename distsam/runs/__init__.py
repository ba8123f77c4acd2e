"""What does a run folder hold? Its paths, rows, summary and checkpoints: written and read in this one place."""
