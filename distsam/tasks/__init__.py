"""What is learnt, from which data. Import from the modules: task, completion, target, sampler, sources, ..."""
