"""The synthetic data set Shapes: drawn images and their annotations in the formats of the real data sets."""
