"""Runs of the recipe of fortified networks, and its command for classifiers of one's own."""
