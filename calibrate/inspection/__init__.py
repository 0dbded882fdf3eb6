"""Published ways to look at a model before anything is bounded, one file each."""
