"""The runs of the Z-Forcing recipe."""
