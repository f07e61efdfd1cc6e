"""The runs of the negative momentum recipe, one file per question."""
