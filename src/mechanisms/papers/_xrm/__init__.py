"""The runs of the XRM recipe, one file per question, and the command `mech discover`."""
