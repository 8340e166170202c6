"""Preparation of Visual Genome: its official files are converted to bua's annotation files."""
