"""The runs of the recipe of ladder networks."""
