"""What every part needs and none should copy: missing extras, random streams, devices."""
