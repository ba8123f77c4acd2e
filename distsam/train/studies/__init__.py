"""Many runs for one question: comparisons of methods, searches."""
