"""The runs of the recipe of sparse attentive backtracking."""
