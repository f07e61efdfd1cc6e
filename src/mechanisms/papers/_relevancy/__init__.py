"""The runs of the relevancy screening recipe, one file per question."""
