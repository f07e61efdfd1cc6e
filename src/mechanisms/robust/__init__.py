"""When the data shift: finding environments, learning from groups, and the baselines they are compared with."""
