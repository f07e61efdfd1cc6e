"""What recipes of recurrent networks share: each file trains and tests a network on one kind of sequences."""
