"""The runs of the deep learning dynamics recipe, one file per question."""
