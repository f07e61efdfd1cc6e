"""What the recipes of recurrent networks share."""
