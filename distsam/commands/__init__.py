"""What may I type? One file a command; `distsam.cli` registers them."""
