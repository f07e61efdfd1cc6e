"""The runs and figures of the recipe of epoch-wise double descent, one file per question."""
