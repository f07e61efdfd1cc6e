"""The runs of the epoch-wise double descent recipe, one file per question."""
