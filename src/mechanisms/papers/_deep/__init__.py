"""The runs of the recipe on the dynamics of deep networks, one file per question, and its figures."""
