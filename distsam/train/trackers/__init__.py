"""Who is told how a run goes: one file a tracker."""
