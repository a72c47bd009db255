"""The exporters: a checkpoint in, a verified bundle out."""
