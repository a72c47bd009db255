"""Whole catalogues on the engine of a bundle, by Ray Data: see README.md here."""
