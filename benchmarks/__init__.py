"""What measures speed: always a ratio of two things in one run, never a test."""
