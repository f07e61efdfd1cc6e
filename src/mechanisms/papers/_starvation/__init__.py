"""The runs of the gradient starvation recipe, one file per question."""
