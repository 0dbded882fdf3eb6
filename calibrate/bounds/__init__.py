"""Ways to learn activation bounds, one file each; every one maps a BoundsProblem to ActivationBounds."""
