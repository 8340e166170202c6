"""The detector's data sets, training and evaluation."""
