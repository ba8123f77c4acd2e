"""What happened in these runs? Reads run folders only."""
