"""Forward, backward and step by DeepSpeed: ZeRO stages 0 to 3, with SAM on the partitions."""
