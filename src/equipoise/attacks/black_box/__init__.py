"""Attacks that use predictions of the model under test, and no gradient."""
