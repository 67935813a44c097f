"""Carrying what was trained away: written for others to load, reloaded, and compared with the trained model."""
