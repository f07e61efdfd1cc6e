"""The experiments on gradient starvation."""
