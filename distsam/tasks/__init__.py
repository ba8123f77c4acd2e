"""What is learnt, from which data. Import from the modules: sources, split, sampler, metrics, completion."""
