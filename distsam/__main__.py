"""`python -m distsam` is `distsam`."""

from distsam.cli import main

main()
