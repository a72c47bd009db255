"""The trainer: a folder of labelled images in, a checkpoint and a report out."""
