"""The runs of the recipe on negative momentum in games."""
