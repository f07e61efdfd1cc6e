"""Runs and pictures of the recipe `meta_rims`."""
