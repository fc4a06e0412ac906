"""Many runs: the points of a sweep, their index, searches."""
