"""Listeners for the events of casweights, one file per library that they need."""
