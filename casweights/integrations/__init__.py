"""Adapters to training and inference libraries, imported only where those are installed."""
