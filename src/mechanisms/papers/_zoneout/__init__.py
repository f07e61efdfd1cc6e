"""The runs of the recipe on Zoneout."""
