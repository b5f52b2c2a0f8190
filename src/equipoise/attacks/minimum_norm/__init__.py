"""Attacks that look for the shortest perturbation that changes the prediction."""
