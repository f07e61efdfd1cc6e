"""The runs of the recipe of RIMs and BRIMs."""
