"""Forward, backward and step by DeepSpeed: ZeRO stages 0 to 2, with SAM on the partitions."""
