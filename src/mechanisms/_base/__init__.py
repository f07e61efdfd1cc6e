"""What every part needs and none should copy: missing extras, seeds, devices, and checks of user input."""
