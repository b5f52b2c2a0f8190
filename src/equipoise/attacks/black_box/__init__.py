"""Attacks that ask the model under test for predictions and never for a gradient."""
